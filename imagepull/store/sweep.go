// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Sweep removes the layers that nobody has claimed, holds, or has used for
// Options.Unclaimed, and on which no layer stands that is wanted. While a layer
// is being written it removes none: that layer may stand on any of them.
func (s *Store) Sweep(ctx context.Context) error {
	trash, failed := s.unlinkUnwanted(time.Now().Add(-s.opts.Unclaimed))
	for _, dir := range trash {
		if err := ctx.Err(); err != nil {
			return err // the next Open removes the rest
		}
		failed = errors.Join(failed, os.RemoveAll(dir))
	}
	return failed
}

// unlinkUnwanted makes the layers disappear that nobody wanted since a time, all
// in one step, so that none can be claimed in between. It returns where their
// files are now.
func (s *Store) unlinkUnwanted(since time.Time) (trash []string, failed error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.staged > 0 {
		return nil, nil
	}
	wanted := make(map[digest.Digest]struct{})
	want := func(top digest.Digest) {
		for e := range s.stack(top) {
			wanted[e.meta.ChainID] = struct{}{}
		}
	}
	for _, h := range s.holds {
		want(h.ChainID)
	}
	for chainID, e := range s.layers {
		if e.claimed || e.pins > 0 || e.used.After(since) {
			want(chainID)
		}
	}
	for chainID, e := range s.layers {
		if _, found := wanted[chainID]; found {
			continue
		}
		dir, err := s.discard(e.id)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("remove layer %s: %w", chainID, err))
			continue
		}
		delete(s.layers, chainID)
		trash = append(trash, dir)
	}
	return trash, failed
}

// Sync writes all committed layers and claims to the disk, so that they are
// there after a power cut. It takes as long as the disk takes, and slows down
// layers that are being written meanwhile.
func (s *Store) Sync() error {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return errClosed()
	}
	return s.flush()
}

func (s *Store) flush() error {
	dirty := s.takeDirty()
	if len(dirty) == 0 {
		return nil
	}
	err := syncfs(s.root)
	for _, e := range dirty {
		if err != nil {
			break
		}
		if err = s.markDurable(e.id); errors.Is(err, os.ErrNotExist) {
			err = nil // it has been removed meanwhile
		}
	}
	if err != nil {
		s.giveBack(dirty)
		return fmt.Errorf("flush layers: %w", err)
	}
	return nil
}

// takeDirty returns the layers to be flushed, which then count as clean: a
// claim that comes later makes its layer dirty again.
func (s *Store) takeDirty() []*entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	var dirty []*entry
	for _, e := range s.layers {
		if e.dirty {
			e.dirty = false
			dirty = append(dirty, e)
		}
	}
	return dirty
}

func (s *Store) giveBack(dirty []*entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range dirty {
		e.dirty = true
	}
}

// markDurable notes that everything else of a layer is on the disk, and writes
// that note to the disk too.
func (s *Store) markDurable(id string) error {
	dir := s.path(layersDir, id)
	if err := touch(filepath.Join(dir, durableFile)); err != nil {
		return err
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// syncfs flushes the file system that holds a directory.
func syncfs(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return &os.PathError{Op: "syncfs", Path: dir, Err: err}
	}
	return nil
}
