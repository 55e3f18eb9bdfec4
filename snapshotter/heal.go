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
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
)

// errGone is a layer whose folder the puller no longer has: a guest that keeps
// its layers in memory has none after a reboot, while containerd still knows
// them and asks for no pull.
var errGone = fmt.Errorf("gone from the guest's layer store: %w", errdefs.ErrFailedPrecondition)

// healed runs mounts, and where it finds layers gone below the snapshot parent,
// once more after they have been pulled again.
func (s *Snapshotter) healed(ctx context.Context, parent string, mounts func() ([]mount.Mount, error)) ([]mount.Mount, error) {
	found, err := mounts()
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
		s.log.Warn("layer is gone from the guest's store, pull it again", "layer", l.chain)
		err := s.prepareLayer(ctx, l.key, l.parent, l.chain.String(), l.labels)
		if !errdefs.IsAlreadyExists(err) {
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
