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

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// trash begins the names of folders that are being deleted.
const trash = "removed-"

// Remove removes a snapshot that has no children. The layer behind an image
// layer's snapshot is noted on disk and released by Cleanup, which containerd
// calls right after; Remove itself is called under containerd's locks and does
// not wait for the guest.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	var id string
	err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		var err error
		var kind snapshots.Kind
		if id, kind, err = storage.Remove(ctx, key); err != nil {
			return err
		}
		chain, ok := layerChain(key)
		if _, err := os.Readlink(s.upper(id)); err != nil || !ok || kind != snapshots.KindCommitted {
			return nil //nolint:nilerr // a folder, not a link: no image layer
		}
		return s.journal.add(chain)
	})
	if err != nil {
		return s.outOfSpace(fmt.Errorf("remove snapshot %s: %w", key, err))
	}
	// The snapshot is gone already; Cleanup tries again.
	if err := os.RemoveAll(s.dir(id)); err != nil {
		s.log.Warn("snapshot folder stays until the next cleanup", "snapshot", key, "err", err)
	}
	return nil
}

// Cleanup deletes folders that no snapshot owns, and releases the layers that
// no snapshot uses. A guest that is away is no error: what it was not told stays
// noted for the next Cleanup.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	if err := s.removeLeftovers(ctx); err != nil {
		return fmt.Errorf("clean up %s: %w", s.root, err)
	}
	chains, err := s.journal.list()
	if err != nil {
		return fmt.Errorf("clean up %s: %w", s.root, err)
	}
	for i, chain := range chains {
		err := s.releaseLayer(ctx, chain)
		switch {
		case err == nil:
		case errdefs.IsUnavailable(err) || ctx.Err() != nil:
			s.log.Warn("layers stay in the guest until the next cleanup", "layers", len(chains)-i, "err", err)
			return nil //nolint:nilerr // noted, and tried again
		default:
			s.log.Warn("layer stays in the guest until the next cleanup", "layer", chain, "err", err)
		}
	}
	return nil
}

// releaseLayer removes a noted layer from the puller's store, unless a snapshot
// uses it or it is being pulled.
func (s *Snapshotter) releaseLayer(ctx context.Context, chain digest.Digest) error {
	done, ok := s.flights.remove(chain)
	if !ok {
		return nil
	}
	defer done()
	used, err := s.dropIfUsed(ctx, chain)
	if used || err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.releaseTimeout)
	defer cancel()
	if err := s.puller.RemoveLayer(ctx, chain); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	s.log.Debug("layer released", "layer", chain)
	return s.journal.drop(chain)
}

// dropIfUsed takes a chain that a snapshot uses out of the journal, in a write
// transaction, so that a Remove at the same time is not forgotten.
func (s *Snapshotter) dropIfUsed(ctx context.Context, chain digest.Digest) (used bool, err error) {
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		names, err := storage.IDMap(ctx)
		if ignoreEmpty(err) != nil {
			return err
		}
		for _, name := range names {
			if c, ok := layerChain(name); ok && c == chain {
				used = true
				return s.journal.drop(chain)
			}
		}
		return nil
	})
	return used, err
}

// removeLeftovers deletes what crashes left. The folders are renamed in a
// transaction and deleted after it, as a new snapshot may get the same id.
func (s *Snapshotter) removeLeftovers(ctx context.Context) error {
	var doomed []string
	err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		owned, err := storage.IDMap(ctx)
		if ignoreEmpty(err) != nil {
			return err
		}
		dirs, err := os.ReadDir(s.dir(""))
		if err != nil {
			return err
		}
		for _, d := range dirs {
			if _, ok := owned[d.Name()]; ok {
				continue
			}
			name := s.dir(d.Name())
			if !strings.HasPrefix(d.Name(), trash) {
				name = s.dir(trash + d.Name())
				if err := errors.Join(os.RemoveAll(name), os.Rename(s.dir(d.Name()), name)); err != nil {
					return err
				}
			}
			doomed = append(doomed, name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, dir := range doomed {
		if err := os.RemoveAll(dir); err != nil {
			s.log.Warn("leftover folder stays until the next cleanup", "path", filepath.Base(dir), "err", err)
		}
	}
	return nil
}
