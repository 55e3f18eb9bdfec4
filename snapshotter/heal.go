// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// errGone is a layer that the puller does not have: it is still to be pulled, or
// a guest that keeps its layers in memory has none after a reboot, while
// containerd still knows them and asks for no pull.
var errGone = fmt.Errorf("not in the guest's layer store: %w", errdefs.ErrFailedPrecondition)

// healed runs mounts, and where it finds layers gone below the snapshot parent,
// once more after they have been pulled again.
func (s *Snapshotter) healed(ctx context.Context, parent string, mounts func() ([]mount.Mount, error)) ([]mount.Mount, error) {
	found, err := retried(ctx, s, parent, mounts)
	if !errors.Is(err, errGone) {
		return found, err
	}
	if healErr := s.pullGone(ctx, parent); healErr != nil {
		// The class is that of the pull: it says whether a retry can help.
		return nil, fmt.Errorf("%s, and it cannot be pulled again (if it never can, remove the image and its containers: crictl rmi, ctr images rm): %w", err.Error(), healErr)
	}
	return mounts()
}

// pullGone pulls what is gone below and at the snapshot name, from the bottom
// up.
func (s *Snapshotter) pullGone(ctx context.Context, name string) error {
	gone, err := s.goneLayers(ctx, name)
	if err != nil {
		return err
	}
	for _, l := range slices.Backward(gone) {
		if err := s.getLayer(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// goneLayers lists the layers at and below the snapshot name whose folders are
// not there, from the top down.
func (s *Snapshotter) goneLayers(ctx context.Context, name string) (gone []layer, err error) {
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		for name != "" {
			id, info, _, err := storage.GetInfo(ctx, name)
			if err != nil {
				return err
			}
			chain, isLayer := layerChain(name)
			if _, err := os.Stat(s.upper(id)); isLayer && errors.Is(err, fs.ErrNotExist) {
				gone = append(gone, layer{key: name, name: name, parent: info.Parent, chain: chain, labels: info.Labels})
			}
			name = info.Parent
		}
		return nil
	})
	return gone, err
}

// restore commits again the image layers at and below the snapshot name, which
// containerd knows and which are not here: the root was deleted or is an older
// one. why is the error so far, and the answer where nothing can be done.
func (s *Snapshotter) restore(ctx context.Context, name string, why error) error {
	chain := digest.Digest(name)
	if s.finder == nil || chain.Validate() != nil {
		return why
	}
	stack, err := s.finder.FindLayers(ctx, chain)
	if err != nil {
		return fmt.Errorf("%w; and it cannot be made anew: %w", why, err)
	}
	s.log.Warn("image layers were lost here, make them anew", "layer", chain, "layers", len(stack))
	parent := ""
	for _, labels := range stack {
		ref, err := parseChain(labels[snapshots.LabelSnapshotRef])
		if err != nil {
			return err
		}
		l := layer{key: "restore " + ref.String(), name: ref.String(), parent: parent, chain: ref, labels: labels}
		if _, err := s.noteLayer(ctx, l); err != nil {
			return err
		}
		parent = ref.String()
	}
	if parent != name {
		return why
	}
	return nil
}

// retried runs call, and once more if it did not find the snapshot name and
// that could be restored.
func retried[T any](ctx context.Context, s *Snapshotter, name string, call func() (T, error)) (T, error) {
	result, err := call()
	if !errdefs.IsNotFound(err) {
		return result, err
	}
	if err := s.restore(ctx, name, err); err != nil {
		return result, err
	}
	return call()
}
