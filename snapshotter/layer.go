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

// prepareLayer commits the layer with chain id ref, without its content, and says
// AlreadyExists. It does not wait for the puller: containerd holds a lock until
// Prepare answers, its garbage collection waits for that lock, and everybody
// else behind it. Stat waits instead, which containerd's unpacker calls next.
func (s *Snapshotter) prepareLayer(ctx context.Context, key, parent, ref string, labels map[string]string) error {
	chain, err := parseChain(ref)
	if err != nil {
		return err
	}
	l := layer{key: key, name: layerName(chain, parent), parent: parent, chain: chain, labels: labels}
	there, err := s.noteLayer(ctx, l)
	if errdefs.IsNotFound(err) { // the parent
		if err = s.restore(ctx, parent, err); err == nil {
			there, err = s.noteLayer(ctx, l)
		}
	}
	if err != nil {
		return err
	}
	if !there && s.route == Local {
		s.awaited.add(l.name)
	}
	return fmt.Errorf("layer %s: %w", chain, errdefs.ErrAlreadyExists)
}

// noteLayer commits the layer, unless it is committed, and says whether its
// content is there.
func (s *Snapshotter) noteLayer(ctx context.Context, l layer) (there bool, err error) {
	if there, err = s.haveLayer(ctx, l); err != nil || there {
		return there, err
	}
	return false, s.commitLayer(ctx, l)
}

// getLayer makes sure that a committed layer's content is in the puller's store
// and linked here. No lock and no transaction is held while the puller works. In
// the guest route it makes the layer's folder.
func (s *Snapshotter) getLayer(ctx context.Context, l layer) error {
	if s.route == Guest {
		return s.commitLayer(ctx, l)
	}
	if err := s.flights.pull(ctx, l.chain); err != nil {
		return err
	}
	defer s.flights.pulled(l.chain)
	if there, err := s.haveLayer(ctx, l); there || err != nil {
		return err
	}
	start := time.Now()
	path, usage, err := s.pullLayer(ctx, l)
	if err != nil {
		return err
	}
	if err := checkLayerDir(path); err != nil {
		return err
	}
	if err := s.linkLayer(ctx, l, path, usage); err != nil {
		return fmt.Errorf("commit layer %s: %w", l.chain, err)
	}
	s.awaited.drop(l.name)
	s.log.Info("layer pulled", "layer", l.chain, "snapshot", l.name, "bytes", usage.Size, "seconds", time.Since(start).Seconds())
	return nil
}

// pullLayer has the puller get the layer, of the image that containerd named when
// it was prepared. containerd names none again while it knows the layer, though
// what it pulls may be another image by now, and the first one gone or bad. So
// where that one does not have it, the image that was written last is tried.
func (s *Snapshotter) pullLayer(ctx context.Context, l layer) (path string, usage snapshots.Usage, err error) {
	image, manifest, named := l.image()
	if named {
		if path, usage, err = s.pullFrom(ctx, l, image, manifest); err == nil || ctx.Err() != nil {
			return path, usage, err
		}
	}
	other, otherManifest, findErr := s.finder.FindImage(ctx, l.chain)
	switch {
	case !named && findErr != nil:
		return "", usage, findErr
	case findErr != nil, otherManifest == manifest:
		return "", usage, err // of the image that was named
	}
	path, usage, otherErr := s.pullFrom(ctx, l, other, otherManifest)
	if otherErr != nil && err != nil {
		otherErr = fmt.Errorf("%w (and of image %s: %s)", otherErr, image, err.Error())
	}
	return path, usage, otherErr
}

func (s *Snapshotter) pullFrom(ctx context.Context, l layer, image string, manifest digest.Digest) (string, snapshots.Usage, error) {
	s.log.Debug("pull layer", "image", image, "manifest", manifest, "layer", l.chain)
	path, size, inodes, err := s.puller.PullLayer(ctx, image, manifest, l.chain)
	return path, snapshots.Usage{Size: size, Inodes: inodes}, err
}

// image is what containerd named, if it did. It is only a hint: the puller refuses
// an image that does not have the chain id.
func (l layer) image() (image string, manifest digest.Digest, named bool) {
	image = l.labels[snapshotters.TargetRefLabel]
	manifest, err := digest.Parse(l.labels[snapshotters.TargetManifestDigestLabel])
	return image, manifest, image != "" && err == nil
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

// commitLayer stores the committed snapshot, in one transaction, so that there
// is no active one at any time. In the guest route it makes a lost folder anew.
func (s *Snapshotter) commitLayer(ctx context.Context, l layer) error {
	err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		id, _, _, err := storage.GetInfo(ctx, l.name)
		if err == nil && s.route == Guest {
			if _, err := os.Stat(s.upper(id)); err == nil {
				return nil // somebody was faster, and may have mounted it
			}
			return s.makeEmpty(id, l)
		}
		if err == nil || !errdefs.IsNotFound(err) {
			return err
		}
		labels := snapshots.WithLabels(l.labels)
		snap, err := storage.CreateSnapshot(ctx, snapshots.KindActive, l.key, l.parent, labels)
		if err != nil {
			return err
		}
		if s.route == Guest {
			err = s.makeEmpty(snap.ID, l)
		} else {
			err = s.makeDir(snap.ID, func(string) error { return nil })
		}
		if err != nil {
			return err
		}
		_, err = storage.CommitActive(ctx, l.key, l.name, snapshots.Usage{}, labels)
		return err
	})
	if err != nil {
		return fmt.Errorf("commit layer %s: %w", l.chain, err)
	}
	return nil
}

// linkLayer gives a committed layer its content. A layer that was removed
// meanwhile is in the journal.
func (s *Snapshotter) linkLayer(ctx context.Context, l layer, path string, usage snapshots.Usage) error {
	return s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		id, _, _, err := storage.GetInfo(ctx, l.name)
		if errdefs.IsNotFound(err) {
			return fmt.Errorf("containerd removed it while it was pulled: pull the image again: %w", errdefs.ErrFailedPrecondition)
		}
		if err != nil {
			return err
		}
		return s.relink(id, path, usage)
	})
}

// relink points the committed snapshot id to path.
func (s *Snapshotter) relink(id, path string, usage snapshots.Usage) error {
	if err := os.MkdirAll(s.dir(id), 0o700); err != nil {
		return err
	}
	if err := writeUsage(s.usageFile(id), usage); err != nil {
		return err
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
	return errors.Join(syncDir(s.dir(id)), syncDir(s.dir("")))
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
