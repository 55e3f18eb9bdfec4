// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

const (
	// trash begins the names of folders that are being deleted.
	trash = "removed-"
	// releaseBatch is how many layers are kept from being pulled while it is seen
	// which of them are used.
	releaseBatch = 64
)

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
		if st, err := os.Lstat(s.upper(id)); !ok || kind != snapshots.KindCommitted || err == nil && st.IsDir() {
			return nil // a folder of its own: nothing of the puller's
		}
		s.awaited.drop(key)
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
	for noted := range slices.Chunk(chains, releaseBatch) {
		if err := s.releaseLayers(ctx, noted); err != nil {
			s.log.Warn("layers stay in the guest until the next cleanup", "err", err)
			return nil
		}
	}
	return nil
}

// releaseLayers removes noted layers from the puller's store, but those that a
// snapshot uses or that are being pulled. It looks at all snapshots once for all
// of them, since that takes longer than anything else. An error says that there is
// no use in going on.
func (s *Snapshotter) releaseLayers(ctx context.Context, noted []digest.Digest) error {
	held := make(map[digest.Digest]func(), len(noted))
	for _, chain := range noted {
		if done, ok := s.flights.remove(chain); ok {
			held[chain] = done
		}
	}
	defer func() {
		for _, done := range held {
			done()
		}
	}()
	users, err := s.layerUsers(ctx) // none is pulled meanwhile
	if err != nil {
		return err
	}
	for chain, done := range held {
		user, used := users[chain]
		if used {
			err = s.dropUsed(ctx, chain, user)
		} else {
			err = s.releaseLayer(ctx, chain)
		}
		switch {
		case err == nil:
		case errdefs.IsUnavailable(err) || errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil:
			return err
		default:
			s.log.Warn("layer stays in the guest until the next cleanup", "layer", chain, "err", err)
		}
		done()
		delete(held, chain)
	}
	return nil
}

// releaseLayer removes a layer that nobody uses.
func (s *Snapshotter) releaseLayer(ctx context.Context, chain digest.Digest) error {
	ctx, cancel := context.WithTimeout(ctx, s.releaseTimeout)
	defer cancel()
	if err := s.puller.RemoveLayer(ctx, chain); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	s.log.Debug("layer released", "layer", chain)
	return s.journal.drop(chain)
}

// layerUsers is, for each image layer, a snapshot that is of it.
func (s *Snapshotter) layerUsers(ctx context.Context) (map[digest.Digest]string, error) {
	users := make(map[digest.Digest]string)
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		names, err := storage.IDMap(ctx)
		for _, name := range names {
			if chain, ok := layerChain(name); ok {
				users[chain] = name
			}
		}
		return ignoreEmpty(err)
	})
	return users, err
}

// dropUsed takes a chain out of the journal if the snapshot user is still there,
// in a write transaction, so that a Remove at the same time is not forgotten.
func (s *Snapshotter) dropUsed(ctx context.Context, chain digest.Digest, user string) error {
	return s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, _, _, err := storage.GetInfo(ctx, user)
		if errdefs.IsNotFound(err) {
			return nil // the next cleanup looks again
		}
		if err != nil {
			return err
		}
		return s.journal.drop(chain)
	})
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
