// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// A hold keeps a layer and all below it from being removed. It is on disk as
// long as it lasts, and void after a boot: no mount survives one.
type hold struct {
	Holder  string        `json:"holder"`
	ChainID digest.Digest `json:"chainID"`
	BootID  string        `json:"bootID"`
}

// Hold keeps a layer and all layers below it until Release is called for the
// same holder, a restart of the process in between or not. A holder is what uses
// the layers, such as the path that they are mounted at: hold before mounting,
// release after unmounting.
//
// Holding again for the same layer does nothing; for another layer it is
// errdefs.ErrAlreadyExists. Absent layers are errdefs.ErrNotFound.
func (s *Store) Hold(holder string, chainID digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed()
	}
	if h, found := s.holds[holder]; found {
		if h.ChainID == chainID {
			return nil
		}
		return fmt.Errorf("hold layer %s: %s holds %s: %w", chainID, holder, h.ChainID, errdefs.ErrAlreadyExists)
	}
	for next := chainID; ; {
		e, err := s.find(next)
		if err != nil {
			return fmt.Errorf("hold layer %s: %w", chainID, err)
		}
		e.used = time.Now()
		if next = e.meta.Parent; next == "" {
			break
		}
	}
	h := hold{Holder: holder, ChainID: chainID, BootID: s.bootID}
	if err := s.replaceJSON(holdsDir, holdFile(holder), h); err != nil {
		return s.OutOfSpace(fmt.Errorf("hold layer %s: %w", chainID, err), 0)
	}
	s.holds[holder] = h
	return nil
}

// Release ends a hold. Where there is none, it does nothing.
func (s *Store) Release(holder string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, found := s.holds[holder]
	if !found {
		return nil
	}
	if err := os.Remove(s.path(holdsDir, holdFile(holder))); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("release layers of %s: %w", holder, err)
	}
	delete(s.holds, holder)
	now := time.Now()
	for e := range s.stack(h.ChainID) {
		e.used = now
	}
	for _, i := range s.images {
		if i.meta.Top == h.ChainID {
			if err := s.useImage(i, now); err != nil {
				return err
			}
		}
	}
	return nil
}

// Holders returns all holders, sorted. After a restart, their owner releases
// those that are no longer there.
func (s *Store) Holders() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.holds))
}

// heldBy returns a holder of a layer. The caller holds mu.
func (s *Store) heldBy(chainID digest.Digest) (string, bool) {
	for _, h := range s.holds {
		for e := range s.stack(h.ChainID) {
			if e.meta.ChainID == chainID {
				return h.Holder, true
			}
		}
	}
	return "", false
}

// stack yields a layer and those below it, as far as they are there. The caller
// holds mu.
func (s *Store) stack(top digest.Digest) func(yield func(*entry) bool) {
	return func(yield func(*entry) bool) {
		for next := top; next != ""; {
			e, found := s.layers[next]
			if !found || !yield(e) {
				return
			}
			next = e.meta.Parent
		}
	}
}

func holdFile(holder string) string {
	return digest.FromString(holder).Encoded() + ".json"
}

// loadHolds reads the holds of this boot and removes all others.
func (s *Store) loadHolds() error {
	return s.loadFiles(holdsDir, func(name string, b []byte, _ time.Time) bool {
		var h hold
		if json.Unmarshal(b, &h) != nil || h.BootID == "" || h.BootID != s.bootID || holdFile(h.Holder) != name {
			return false
		}
		s.holds[h.Holder] = h
		return true
	})
}
