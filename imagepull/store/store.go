// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package store keeps unpacked layers on disk, each under its chain id, for
// overlayfs to use as lower directories.
//
// A layer is written in a staging directory that nobody else sees and becomes
// visible, whole, by one rename. What a killed process leaves behind is removed
// when the store is next opened.
//
// # Durability
//
// The data of a layer is not flushed when it is committed: that would cost as
// much again as unpacking it. A layer counts until the machine next boots, and
// from then on only if [Store.Sync] had flushed it, which [Store.Run] does as
// soon as no layer is being written, and [Store.Close] does last. So a killed
// process loses nothing, and a power cut can lose layers, never truncate them.
//
// # Trust
//
// The store believes what it finds under its root, so the root must be on
// storage that only the TEE can write and, for encrypted images, only the TEE
// can read: memory, or a disk encrypted with integrity under a key of the TEE.
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// DefaultUnclaimed is how long an unclaimed layer is kept where Options says
// nothing else.
const DefaultUnclaimed = time.Hour

const (
	lockFile   = "lock"
	layersDir  = "layers"
	stagingDir = "staging"
	holdsDir   = "holds"
	fsDir      = "fs" // of a layer: what it unpacked to

	bootIDFile = "/proc/sys/kernel/random/boot_id"
)

// Options adjust a Store. The zero value is the default.
type Options struct {
	// Unclaimed is how long a layer is kept that nobody claims or holds, since
	// it was last used; 0 is DefaultUnclaimed.
	Unclaimed time.Duration
	// Logger gets a line for each layer that is dropped on opening, and for
	// errors of Run; nil discards them.
	Logger *slog.Logger
}

// A Store is the layers under one root directory. It is safe for concurrent
// use, by one process at a time.
type Store struct {
	root   string
	opts   Options
	bootID string   // of the running kernel; empty if it gives none
	lock   *os.File // holds the flock
	idle   chan struct{}

	// mu guards what follows and, with it, the few system calls that make a
	// layer appear, disappear or be claimed: memory and disk must not differ.
	mu     sync.Mutex
	closed bool
	layers map[digest.Digest]*entry
	holds  map[string]hold
	staged int // stagings that are neither committed nor discarded
}

// An entry is a committed layer.
type entry struct {
	meta    LayerMeta
	id      string // name of its directory
	claimed bool
	dirty   bool      // has something that a power cut would lose
	pins    int       // commits that read it at the moment
	used    time.Time // when it was last committed, looked up or released
}

// A Layer is a committed layer.
type Layer struct {
	LayerMeta
	// Path is the directory that the layer unpacked to. It stays the same for
	// the life of the layer and must not be written to.
	Path string
}

// Open opens the store under root, and makes it if need be. It removes what
// killed processes left unfinished, layers that a power cut may have damaged,
// and holds from before the last boot. Where another process has the store open,
// the error is errdefs.ErrFailedPrecondition. The caller closes the store.
func Open(root string, opts Options) (*Store, error) {
	bootID, err := os.ReadFile(bootIDFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open layer store %s: %w", root, err)
	}
	return openBooted(root, opts, strings.TrimSpace(string(bootID)))
}

func openBooted(root string, opts Options, bootID string) (*Store, error) {
	if opts.Unclaimed <= 0 {
		opts.Unclaimed = DefaultUnclaimed
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("open layer store: %w", err)
	}
	s := &Store{
		root:   root,
		opts:   opts,
		bootID: bootID,
		idle:   make(chan struct{}, 1),
		layers: make(map[digest.Digest]*entry),
		holds:  make(map[string]hold),
	}
	for _, dir := range []string{root, s.path(layersDir), s.path(stagingDir), s.path(holdsDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open layer store: %w", err)
		}
	}
	if s.lock, err = acquire(s.path(lockFile)); err != nil {
		return nil, fmt.Errorf("open layer store %s: %w", root, err)
	}
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("open layer store %s: %w", root, err), s.lock.Close())
	}
	return s, nil
}

// acquire takes the lock that keeps other processes out. It ends with the
// process, however that ends.
func acquire(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("another process uses it; stop that one or set another image.work_dir: %w", errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Close flushes the store and lets other processes open it. Stagings that are
// still open become useless; layers in use stay where they are.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	return errors.Join(s.flush(), s.lock.Close())
}

// Layer returns a committed layer, and false if there is none of this chain id.
// Looking a layer up counts as a use of it.
func (s *Store) Layer(chainID digest.Digest) (Layer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, found := s.layers[chainID]
	if !found {
		return Layer{}, false
	}
	e.used = time.Now()
	return s.layer(e), true
}

// Claim is as Layer, and keeps the layer until Remove is called for it, across
// restarts too. An absent layer gives errdefs.ErrNotFound.
func (s *Store) Claim(chainID digest.Digest) (Layer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.find(chainID)
	if err != nil {
		return Layer{}, fmt.Errorf("claim layer: %w", err)
	}
	if !e.claimed {
		if err := touch(s.path(layersDir, e.id, claimedFile)); err != nil {
			return Layer{}, s.OutOfSpace(fmt.Errorf("claim layer %s: %w", chainID, err), 0)
		}
		e.claimed, e.dirty = true, true
		s.notify()
	}
	return s.layer(e), nil
}

// Remove removes a layer, claimed or not. Layers above it stay. An absent layer
// gives errdefs.ErrNotFound; one that is held, or that a commit is reading,
// errdefs.ErrFailedPrecondition.
func (s *Store) Remove(chainID digest.Digest) error {
	trash, err := s.unlink(chainID)
	if err != nil {
		return fmt.Errorf("remove layer: %w", err)
	}
	if err := os.RemoveAll(trash); err != nil {
		return fmt.Errorf("remove layer %s: %w", chainID, err)
	}
	return nil
}

// unlink makes a layer disappear and returns where its files are now.
func (s *Store) unlink(chainID digest.Digest) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.find(chainID)
	if err != nil {
		return "", err
	}
	if holder, held := s.heldBy(chainID); held {
		return "", fmt.Errorf("layer %s is held by %s; release that first: %w", chainID, holder, errdefs.ErrFailedPrecondition)
	}
	if e.pins > 0 {
		return "", fmt.Errorf("layer %s is being read by a layer above it; try again: %w", chainID, errdefs.ErrFailedPrecondition)
	}
	trash, err := s.discard(e.id)
	if err != nil {
		return "", err
	}
	delete(s.layers, chainID)
	return trash, nil
}

// discard moves a layer's directory to the staging area, where a crash leaves
// nothing that the next Open would not remove.
func (s *Store) discard(id string) (string, error) {
	trash := s.path(stagingDir, "removed-"+id)
	return trash, os.Rename(s.path(layersDir, id), trash)
}

// find returns a layer of an open store. The caller holds mu.
func (s *Store) find(chainID digest.Digest) (*entry, error) {
	if s.closed {
		return nil, errClosed()
	}
	e, found := s.layers[chainID]
	if !found {
		return nil, fmt.Errorf("layer %s is not in the store: %w", chainID, errdefs.ErrNotFound)
	}
	e.used = time.Now()
	return e, nil
}

func (s *Store) layer(e *entry) Layer {
	return Layer{LayerMeta: e.meta, Path: s.path(layersDir, e.id, fsDir)}
}

// notify wakes Run once nobody writes a layer any more. The caller holds mu.
func (s *Store) notify() {
	if s.staged > 0 {
		return
	}
	select {
	case s.idle <- struct{}{}:
	default: // it has been told already
	}
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}

func errClosed() error {
	return fmt.Errorf("the layer store is closed: %w", errdefs.ErrFailedPrecondition)
}

// Run flushes the store whenever it has come to rest, and removes layers that
// nobody wants, until ctx ends. Errors are logged and do not end it.
func (s *Store) Run(ctx context.Context) {
	ticker := time.NewTicker(s.opts.Unclaimed / 4)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.idle:
			if err := s.Sync(); err != nil {
				s.opts.Logger.ErrorContext(ctx, "layers are not flushed; a power cut would lose them", "err", err)
			}
		case <-ticker.C:
			if err := s.Sweep(ctx); err != nil {
				s.opts.Logger.ErrorContext(ctx, "unclaimed layers are not removed", "err", err)
			}
		}
	}
}
