// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// layer is an image layer on its way into a committed snapshot.
type layer struct {
	key    string // containerd's key for the extraction; never stored
	name   string // of the committed snapshot
	parent string
	chain  digest.Digest
	labels map[string]string
}

// prepareLayer makes sure that the layer with chain id ref is in the puller's
// store and committed here, and says AlreadyExists. No lock and no transaction
// is held while the puller works, and nothing is stored before it is done.
func (s *Snapshotter) prepareLayer(ctx context.Context, key, parent, ref string, labels map[string]string) error {
	chain, err := parseChain(ref)
	if err != nil {
		return err
	}
	l := layer{key: key, name: layerName(chain, parent), parent: parent, chain: chain, labels: labels}
	if err := s.flights.pull(ctx, chain); err != nil {
		return err
	}
	defer s.flights.pulled(chain)
	there, err := s.haveLayer(ctx, l)
	if err != nil {
		return err
	}
	if !there {
		if err := s.pullLayer(ctx, l); err != nil {
			return err
		}
	}
	return fmt.Errorf("layer %s: %w", chain, errdefs.ErrAlreadyExists)
}

func (s *Snapshotter) pullLayer(ctx context.Context, l layer) error {
	image, manifest, err := s.findImage(ctx, l)
	if err != nil {
		return err
	}
	if err := s.journal.add(l.chain); err != nil {
		return err
	}
	log := s.log.With("image", image, "layer", l.chain)
	log.Debug("pull layer", "manifest", manifest)
	start := time.Now()
	path, size, inodes, err := s.puller.PullLayer(ctx, image, manifest, l.chain)
	if err != nil {
		return err
	}
	if err := checkLayerDir(path); err != nil {
		return err
	}
	if err := s.commitLayer(ctx, l, path, snapshots.Usage{Size: size, Inodes: inodes}); err != nil {
		return fmt.Errorf("commit layer %s: %w", l.chain, err)
	}
	log.Info("layer pulled", "snapshot", l.name, "bytes", size, "seconds", time.Since(start).Seconds())
	return nil
}

// findImage takes containerd's word for the image where it gives it, and else
// searches. Either is only a hint: the puller refuses an image that does not
// have the chain id.
func (s *Snapshotter) findImage(ctx context.Context, l layer) (string, digest.Digest, error) {
	image := l.labels[snapshotters.TargetRefLabel]
	manifest, err := digest.Parse(l.labels[snapshotters.TargetManifestDigestLabel])
	if image != "" && err == nil {
		return image, manifest, nil
	}
	return s.finder.FindImage(ctx, l.chain)
}

// haveLayer says whether the layer is committed and its folder is there.
func (s *Snapshotter) haveLayer(ctx context.Context, l layer) (bool, error) {
	var id string
	var info snapshots.Info
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		id, info, _, err = storage.GetInfo(ctx, l.name)
		if err == nil || !errdefs.IsNotFound(err) || l.parent == "" {
			return ignoreEmpty(err)
		}
		_, _, _, err = storage.GetInfo(ctx, l.parent)
		if errdefs.IsNotFound(err) {
			return fmt.Errorf("parent snapshot %s is not in %s, though containerd knows it: remove the image from containerd and pull it again: %w", l.parent, s.root, err)
		}
		return err
	})
	if err != nil || id == "" {
		return false, err
	}
	if info.Kind != snapshots.KindCommitted || info.Parent != l.parent {
		return false, fmt.Errorf("snapshot %s is not the layer on parent %q: remove it from containerd: %w", l.name, l.parent, errdefs.ErrFailedPrecondition)
	}
	_, err = os.Stat(s.upper(id))
	return err == nil, nil
}

// commitLayer stores the committed snapshot in one transaction, so that there
// is no active one at any time, and then takes the layer out of the journal: a
// crash in between leaves a note too many, which Cleanup drops.
func (s *Snapshotter) commitLayer(ctx context.Context, l layer, path string, usage snapshots.Usage) error {
	err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		id, _, _, err := storage.GetInfo(ctx, l.name)
		switch {
		case err == nil:
			return s.relink(id, path)
		case errdefs.IsNotFound(err):
			return s.createLayer(ctx, l, path, usage)
		}
		return err
	})
	if err != nil {
		return err
	}
	if _, err := s.dropIfUsed(ctx, l.chain); err != nil {
		s.log.Warn("layer stays noted until the next cleanup", "layer", l.chain, "err", err)
	}
	return nil
}

func (s *Snapshotter) createLayer(ctx context.Context, l layer, path string, usage snapshots.Usage) error {
	labels := snapshots.WithLabels(l.labels)
	snap, err := storage.CreateSnapshot(ctx, snapshots.KindActive, l.key, l.parent, labels)
	if err != nil {
		return err
	}
	err = s.makeDir(snap.ID, func(dir string) error {
		if err := os.Symlink(path, s.upper(snap.ID)); err != nil {
			return err
		}
		// The link must be on the disk before the metadata that relies on it.
		return errors.Join(syncDir(dir), syncDir(filepath.Dir(dir)))
	})
	if err != nil {
		return err
	}
	_, err = storage.CommitActive(ctx, l.key, l.name, usage, labels)
	return err
}

// relink points the committed snapshot id to path.
func (s *Snapshotter) relink(id, path string) error {
	if target, err := os.Readlink(s.upper(id)); err == nil && target == path {
		return nil
	}
	link := filepath.Join(s.dir(id), "new")
	if err := os.RemoveAll(link); err != nil {
		return err
	}
	if err := os.Symlink(path, link); err != nil {
		return err
	}
	if err := os.Rename(link, s.upper(id)); err != nil {
		return err
	}
	return syncDir(s.dir(id))
}

func checkLayerDir(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("guest named layer folder %q, which is not an absolute path: %w", path, errdefs.ErrInternal)
	}
	st, err := os.Stat(path)
	if err == nil && !st.IsDir() {
		err = fmt.Errorf("%s is not a folder", path)
	}
	if err != nil {
		return fmt.Errorf("guest's layer folder cannot be seen from here: run coffer-guest on this machine and in the same mount namespace: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func parseChain(ref string) (digest.Digest, error) {
	chain, err := digest.Parse(ref)
	if err == nil && chain.Algorithm() != digest.SHA256 {
		err = digest.ErrDigestUnsupported
	}
	if err != nil {
		return "", fmt.Errorf("label %s has %q, not the chain id of a layer: %w: %w", snapshots.LabelSnapshotRef, ref, err, errdefs.ErrInvalidArgument)
	}
	return chain, nil
}

// layerName is the name of the committed snapshot of a layer: its chain id,
// shared by all namespaces. On a parent that is not such a snapshot (containerd
// unpacked it itself, in one namespace) the layer gets a name of its own, since
// containerd looks a layer up by chain id and parent.
func layerName(chain digest.Digest, parent string) string {
	if parent == "" || digest.Digest(parent).Validate() == nil {
		return chain.String()
	}
	return chain.String() + "@" + digest.FromString(parent).Encoded()[:16]
}

// layerChain returns the chain id of a name that layerName made.
func layerChain(name string) (digest.Digest, bool) {
	chain, _, _ := strings.Cut(name, "@")
	return digest.Digest(chain), digest.Digest(chain).Validate() == nil
}
