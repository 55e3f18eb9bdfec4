// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Sync writes all committed layers, claims and records to the disk, so that they are
// there after a power cut. It takes as long as the disk takes, and slows down
// layers that are being written meanwhile.
func (s *Store) Sync() error {
	if s.isClosed() {
		return errClosed()
	}
	return s.flush()
}

func (s *Store) flush() error {
	dirty, changed := s.takeDirty()
	if len(dirty) == 0 && !changed {
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
// claim that comes later makes its layer dirty again. changed says that there is
// something else to flush, such as the record of an image.
func (s *Store) takeDirty() (dirty []*entry, changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed, s.changed = s.changed, false
	for _, e := range s.layers {
		if e.dirty {
			e.dirty = false
			dirty = append(dirty, e)
		}
	}
	return dirty, changed
}

func (s *Store) giveBack(dirty []*entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed = true
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
