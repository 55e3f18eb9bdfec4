// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	diskusage "github.com/containerd/continuity/fs"
	"github.com/containerd/continuity/sysx"
	"github.com/containerd/errdefs"
)

// Prepare makes a writable snapshot on parent and returns its mounts. With the
// label containerd.io/snapshot.ref it commits that image layer instead and answers
// AlreadyExists. In the local route whoever needs the layer first pulls it, as a
// rule the Stat that follows.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) (_ []mount.Mount, err error) {
	defer func() { err = s.outOfSpace(err) }()
	var base snapshots.Info
	for _, opt := range opts {
		if err := opt(&base); err != nil {
			return nil, err
		}
	}
	if ref := base.Labels[snapshots.LabelSnapshotRef]; ref != "" {
		return nil, s.prepareLayer(ctx, key, parent, ref, base.Labels)
	}
	if err := s.checkExtraction(ctx, key); err != nil {
		return nil, err
	}
	if err := s.admit(ctx, key, parent); err != nil {
		return nil, fmt.Errorf("create snapshot %s: %w", key, err)
	}
	return s.healed(ctx, parent, func() ([]mount.Mount, error) {
		return s.create(ctx, snapshots.KindActive, key, parent, opts)
	})
}

// View makes a read-only snapshot of parent and returns its mounts.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	if err := s.admit(ctx, key, parent); err != nil {
		return nil, fmt.Errorf("create snapshot %s: %w", key, err)
	}
	mounts, err := s.healed(ctx, parent, func() ([]mount.Mount, error) {
		return s.create(ctx, snapshots.KindView, key, parent, opts)
	})
	return mounts, s.outOfSpace(err)
}

// Mounts returns the mounts of an active snapshot or view.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	var snap storage.Snapshot
	var info snapshots.Info
	var image guestImage
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		if snap, err = storage.GetSnapshot(ctx, key); err != nil {
			return err
		}
		if _, info, _, err = storage.GetInfo(ctx, key); err != nil {
			return err
		}
		image, err = s.guestImage(ctx, info.Kind, info.Parent)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot %s: %w", key, err)
	}
	return s.healed(ctx, info.Parent, func() ([]mount.Mount, error) {
		if err := s.checkParents(snap); err != nil {
			return nil, fmt.Errorf("mounts of snapshot %s: %w", key, err)
		}
		mounts, err := s.mounts(snap, image)
		if err != nil {
			return nil, fmt.Errorf("mounts of snapshot %s: %w", key, err)
		}
		return mounts, nil
	})
}

// Commit makes the active snapshot key immutable under name.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) (err error) {
	defer func() { err = s.outOfSpace(err) }()
	var id string
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		id, _, _, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil {
		return fmt.Errorf("commit snapshot %s: %w", key, err)
	}
	usage, err := diskusage.DiskUsage(ctx, s.upper(id))
	if err != nil {
		return fmt.Errorf("measure snapshot %s: %w", key, err)
	}
	return s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		if _, err := storage.CommitActive(ctx, key, name, snapshots.Usage(usage), opts...); err != nil {
			return fmt.Errorf("commit snapshot %s: %w", key, err)
		}
		return nil
	})
}

func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) ([]mount.Mount, error) {
	var mounts []mount.Mount
	err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		snap, err := storage.CreateSnapshot(ctx, kind, key, parent, opts...)
		if err != nil {
			return err
		}
		if err := s.checkParents(snap); err != nil {
			return err
		}
		_, info, _, err := storage.GetInfo(ctx, key)
		if err != nil {
			return err
		}
		image, err := s.guestImage(ctx, kind, parent)
		if err != nil {
			return err
		}
		if mounts, err = s.mounts(snap, image); err != nil {
			return err // before anything is made
		}
		return s.makeDir(snap.ID, func(string) error { return s.makeUpper(snap, info.Labels) })
	})
	if err != nil {
		return nil, fmt.Errorf("create snapshot %s: %w", key, err)
	}
	return mounts, nil
}

// makeDir makes the folder of a new snapshot and fills it, inside its
// transaction. What lies there is what a crash left before the transaction was
// committed. If the commit of this one fails, the folder waits for Cleanup or for
// its next owner.
func (s *Snapshotter) makeDir(id string, fill func(dir string) error) (err error) {
	dir := s.dir(id)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return fill(dir)
}

// makeUpper makes the root directory of a new snapshot, and what overlay needs
// beside it.
func (s *Snapshotter) makeUpper(snap storage.Snapshot, labels map[string]string) error {
	if err := os.Mkdir(s.upper(snap.ID), 0o755); err != nil { //nolint:gosec // the root directory of a container
		return err
	}
	if snap.Kind == snapshots.KindActive {
		if err := os.Mkdir(s.work(snap.ID), 0o711); err != nil { //nolint:gosec // as overlay wants it
			return err
		}
	}
	uid, gid, err := s.owner(snap, labels)
	if err != nil || uid < 0 {
		return err
	}
	return os.Lchown(s.upper(snap.ID), uid, gid)
}

// owner returns who owns the root directory of a new snapshot: the mapped root
// of a container in a user namespace, else the owner of the parent's root. -1
// means as created.
func (s *Snapshotter) owner(snap storage.Snapshot, labels map[string]string) (uid, gid int, err error) {
	uids, gids := labels[snapshots.LabelSnapshotUIDMapping], labels[snapshots.LabelSnapshotGIDMapping]
	if uids != "" || gids != "" {
		return mappedRoot(uids, gids)
	}
	if len(snap.ParentIDs) == 0 {
		return -1, -1, nil
	}
	st, err := os.Stat(s.upper(snap.ParentIDs[0]))
	if err != nil {
		return -1, -1, fmt.Errorf("parent: %w", err)
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return -1, -1, fmt.Errorf("parent %s has no owner: %w", st.Name(), errdefs.ErrNotImplemented)
	}
	return int(sys.Uid), int(sys.Gid), nil
}

// checkParents makes sure that the folders below a snapshot are there. An image
// layer's folder belongs to the puller and can vanish.
func (s *Snapshotter) checkParents(snap storage.Snapshot) error {
	for _, id := range snap.ParentIDs {
		_, err := os.Stat(s.upper(id))
		if err == nil {
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("parent: %w", err)
		}
		folder, linkErr := os.Readlink(s.upper(id))
		if linkErr != nil {
			folder = s.upper(id)
		}
		return fmt.Errorf("image layer %s is %w", folder, errGone)
	}
	return nil
}

func (s *Snapshotter) mounts(snap storage.Snapshot, image guestImage) (_ []mount.Mount, err error) {
	if snap.ParentIDs, err = s.visible(snap.ParentIDs); err != nil {
		return nil, err
	}
	switch {
	case len(snap.ParentIDs) == 0 && snap.Kind == snapshots.KindView:
		return bind(s.upper(snap.ID), "ro"), nil
	case len(snap.ParentIDs) == 0:
		return bind(s.upper(snap.ID), "rw"), nil
	case len(snap.ParentIDs) == 1 && snap.Kind == snapshots.KindView:
		return bind(s.upper(snap.ParentIDs[0]), "ro"), nil
	}
	var options []string
	if snap.Kind == snapshots.KindActive {
		options = append(options, "workdir="+s.work(snap.ID), "upperdir="+s.upper(snap.ID))
	}
	lower := make([]string, len(snap.ParentIDs))
	for i, id := range snap.ParentIDs {
		// The link, not what it points to: short names keep a long chain
		// within the page that mount options have.
		lower[i] = s.upper(id)
	}
	options = append(options, "lowerdir="+strings.Join(lower, ":"))
	return s.guestMounts(mount.Mount{Type: "overlay", Source: "overlay", Options: append(options, s.overlayOptions...)}, image)
}

// visible are the parents, top first, down to the first whose root directory is
// opaque. Overlayfs itself does not look at a root's mark and would show what
// that layer hides.
func (s *Snapshotter) visible(ids []string) ([]string, error) {
	for i, id := range ids {
		mark, err := sysx.Getxattr(s.upper(id), "trusted.overlay.opaque")
		switch {
		case errors.Is(err, syscall.ENODATA), errors.Is(err, syscall.ENOTSUP):
		case err != nil:
			return nil, fmt.Errorf("mark of parent %s: %w", s.upper(id), err)
		case string(mark) == "y":
			return ids[:i+1], nil
		}
	}
	return ids, nil
}

func bind(source, mode string) []mount.Mount {
	return []mount.Mount{{Type: "bind", Source: source, Options: []string{mode, "rbind"}}}
}
