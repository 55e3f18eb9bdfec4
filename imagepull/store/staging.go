// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// idLength is the number of characters that name a layer's directory. It is
// short, and not the chain id, because overlayfs takes the paths of all layers
// of an image in one option of limited length.
const idLength = 8

// A Staging is a layer that is being written. It is used by one goroutine.
type Staging struct {
	// Dir is the empty directory to unpack the layer into.
	Dir string

	store *Store
	id    string
	tree  *Tree // what it has, if it is parked
	done  bool
}

// Stage starts a layer. The caller ends it by Commit, Leave or Discard; to defer
// Discard is always right.
func (s *Store) Stage(ctx context.Context) (*Staging, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosed()
	}
	id, err := s.newDir()
	if err != nil {
		return nil, s.OutOfSpace(fmt.Errorf("stage layer: %w", err), 0)
	}
	s.staged++
	return &Staging{Dir: s.path(stagingDir, id, fsDir), store: s, id: id}, nil
}

// newDir makes a staging directory of a name that no layer has.
func (s *Store) newDir() (string, error) {
	for {
		id := strings.ToLower(rand.Text()[:idLength])
		if taken, err := s.taken(id); err != nil {
			return "", err
		} else if taken {
			continue
		}
		dir := s.path(stagingDir, id)
		err := os.Mkdir(dir, 0o700)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		err = os.Mkdir(filepath.Join(dir, fsDir), 0o755) //nolint:gosec // the root of an image, for its users
		if err != nil {
			return "", errors.Join(err, os.Remove(dir))
		}
		return id, nil
	}
}

func (s *Store) taken(id string) (bool, error) {
	for _, dir := range []string{layersDir, parkedDir} {
		if taken, err := exists(s.path(dir, id)); taken || err != nil {
			return taken, err
		}
	}
	return false, nil
}

// Commit makes the layer visible. Its caller has verified everything about it.
//
// implicit names the directories that the layer uses and does not list, as
// unpack.Facts has them. Each gets the mode, owner, extended attributes and
// times that it has in the layers below; where those have a symbolic link to a
// directory in its place, what the layer put there moves to that directory.
//
// The parent must be committed, else the error is errdefs.ErrFailedPrecondition.
// Where the store has the layer already, the staging is discarded and that layer
// returned. After an error the staging is to be discarded.
func (st *Staging) Commit(ctx context.Context, meta LayerMeta, implicit []string) (Layer, error) {
	s := st.store
	layer, err := st.commit(ctx, meta, implicit)
	if err != nil {
		return Layer{}, s.OutOfSpace(fmt.Errorf("commit layer %s: %w", meta.ChainID, err), 0)
	}
	return layer, nil
}

func (st *Staging) commit(ctx context.Context, meta LayerMeta, implicit []string) (Layer, error) {
	s := st.store
	if st.done {
		return Layer{}, errEnded()
	}
	if err := meta.check(); err != nil {
		return Layer{}, err
	}
	below, err := s.pin(meta.Parent)
	if err != nil {
		return Layer{}, err
	}
	defer s.unpin(below)

	if err := st.unpark(); err != nil {
		return Layer{}, err
	}
	if err := inherit(ctx, st.Dir, implicit, s.chain(below)); err != nil {
		return Layer{}, err
	}
	dir := filepath.Dir(st.Dir)
	if err := writeJSON(filepath.Join(dir, metaFile), record{LayerMeta: meta, BootID: s.bootID}); err != nil {
		return Layer{}, err
	}
	layer, published, err := s.publish(st.id, meta)
	if err != nil {
		return Layer{}, err
	}
	if !published {
		return layer, st.Discard()
	}
	st.end()
	return layer, nil
}

// publish makes a staged layer visible, unless the store has it already.
func (s *Store) publish(id string, meta LayerMeta) (layer Layer, published bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return Layer{}, false, errClosed()
	}
	if e, found := s.layers[meta.ChainID]; found {
		e.used = time.Now()
		return s.layer(e), false, nil
	}
	if err := os.Rename(s.path(stagingDir, id), s.path(layersDir, id)); err != nil {
		return Layer{}, false, err
	}
	e := &entry{meta: meta, id: id, dirty: true, used: time.Now()}
	s.layers[meta.ChainID] = e
	s.committed(meta.ChainID)
	return s.layer(e), true, nil
}

// Discard removes the staging. It does nothing once Commit has succeeded, or
// when called again. After Close the next Open removes it, unless it is parked.
func (st *Staging) Discard() error {
	if st.done {
		return nil
	}
	if st.end(); st.store.isClosed() {
		return nil // it may be another process's by now
	}
	if err := st.store.delete(context.Background(), []string{filepath.Dir(st.Dir)}); err != nil {
		return fmt.Errorf("discard layer: %w", err)
	}
	return nil
}

func (st *Staging) end() {
	st.done = true
	s := st.store
	s.mu.Lock()
	defer s.mu.Unlock()
	s.staged--
	s.notify()
}

// pin returns a layer and all below it, nearest first, and keeps them from
// being removed until unpin.
func (s *Store) pin(top digest.Digest) ([]*entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var below []*entry
	for next := top; next != ""; {
		e, found := s.layers[next]
		if !found {
			return nil, fmt.Errorf("layer %s below it is not in the store; commit it first: %w", next, errdefs.ErrFailedPrecondition)
		}
		below = append(below, e)
		next = e.meta.Parent
	}
	for _, e := range below {
		e.pins++
		e.used = time.Now()
	}
	return below, nil
}

func (s *Store) unpin(below []*entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range below {
		e.pins--
	}
}

// chain returns the directories of layers.
func (s *Store) chain(layers []*entry) chain {
	c := make(chain, len(layers))
	for i, e := range layers {
		c[i] = s.path(layersDir, e.id, fsDir)
	}
	return c
}
