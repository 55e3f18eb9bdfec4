// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package store keeps unpacked layers on disk, each under its chain id, for
// overlayfs to use as lower directories.
//
// A layer is written in a staging directory that nobody else sees and becomes
// visible, whole, by one rename. What a killed process leaves behind is removed
// when the store is next opened, all but parked layers.
//
// A parked layer is complete and verified, and waits for the layers below it. It
// is nobody's to use: where its pull or its process ends first, the next pull that
// wants it takes it as a staging of its own.
//
// # Durability
//
// The data of a layer is not flushed when it is committed: that would cost as
// much again as unpacking it. A layer counts until the machine next boots, and
// from then on only if [Store.Sync] had flushed it, which [Store.Run] does as
// soon as no layer is being written, and [Store.Close] does last. So a killed
// process loses nothing, and a power cut can lose layers, never truncate them. It
// can bring removed layers back, whole, where the file system takes changes of
// names to the disk in their order, as ext4 with a journal, xfs and btrfs do.
//
// Parked layers are not flushed, and none outlives the boot of the machine that
// it was parked under.
//
// # What stays
//
// A layer stays as long as it is claimed (a snapshotter asked for it), held (a
// bundle is mounted from it), of a recorded image, looked up by a pull that has a
// [Lease], or below such a layer; any other for Options.Unclaimed after its last
// use, and a parked one for as long. Recorded images that are not in use go when they are too old or when their
// space is needed, the least recently used first: see [Store.GC] and
// [Lease.Reserve].
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
	parkedDir  = "parked"
	holdsDir   = "holds"
	imagesDir  = "images"
	fsDir      = "fs" // of a layer: what it unpacked to

	bootIDFile = "/proc/sys/kernel/random/boot_id"
)

// Options adjust a Store. The zero value is the default.
type Options struct {
	// Unclaimed is how long a layer is kept that nobody claims or holds, since
	// it was last used, or parked; 0 is DefaultUnclaimed.
	Unclaimed time.Duration
	// MaxAge is how long a recorded image is kept that no one uses; 0 is for
	// ever, or until its space is needed.
	MaxAge time.Duration
	// MaxBytes is how much disk space all layers may take together, parked ones
	// included; 0 is what the file system has. Writable layers of containers do not count.
	MaxBytes int64
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
	mu      sync.Mutex
	closed  bool
	layers  map[digest.Digest]*entry
	parked  map[Content]parked
	images  map[digest.Digest]*image // by manifest
	holds   map[string]hold
	leases  map[*Lease]struct{}
	staged  int      // stagings that are neither committed nor discarded
	changed bool     // something other than a layer is to be flushed
	trash   []string // directories that could not be deleted so far
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
		parked: make(map[Content]parked),
		images: make(map[digest.Digest]*image),
		holds:  make(map[string]hold),
		leases: make(map[*Lease]struct{}),
	}
	for _, dir := range []string{root, s.path(layersDir), s.path(stagingDir), s.path(parkedDir), s.path(holdsDir), s.path(imagesDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open layer store: %w", err)
		}
	}
	if s.lock, err = acquire(s.path(lockFile)); err != nil {
		return nil, fmt.Errorf("open layer store %s: %w", root, err)
	}
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("open layer store %s: %w", root, err), release(s.lock))
	}
	return s, nil
}

// acquire takes the lock that keeps other processes out. It ends with the
// process, however that ends.
func acquire(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o600)
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

// release gives the lock back. Closing the file is not enough: a program that
// another goroutine starts at this moment has it too, until its exec.
func release(lock *os.File) error {
	return errors.Join(unix.Flock(int(lock.Fd()), unix.LOCK_UN), lock.Close())
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
	return errors.Join(s.flush(), release(s.lock))
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
	e.used = time.Now()
	if !e.claimed {
		if err := touch(s.path(layersDir, e.id, claimedFile)); err != nil {
			return Layer{}, s.OutOfSpace(fmt.Errorf("claim layer %s: %w", chainID, err), 0)
		}
		e.claimed, e.dirty = true, true
		s.notify()
	}
	return s.layer(e), nil
}

// Remove removes a layer, claimed or not. Layers above it stay; images that have
// it are no longer recorded. A layer that a pull has looked at since it took its
// Lease only loses its claim, and goes when GC finds that nothing uses it. An
// absent layer gives errdefs.ErrNotFound; one that is held, or that a commit is
// reading, errdefs.ErrFailedPrecondition.
func (s *Store) Remove(chainID digest.Digest) error {
	trash, err := s.unlink(chainID)
	if err != nil {
		return fmt.Errorf("remove layer: %w", err)
	}
	if trash == "" {
		return nil
	}
	if err := s.delete(context.Background(), []string{trash}); err != nil {
		return fmt.Errorf("remove layer %s: %w", chainID, err)
	}
	return nil
}

// unlink makes a layer disappear and returns where its files are now; nowhere if
// it stays for those who are pulling it.
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
	s.changed = true
	if len(s.leases) > 0 && !e.used.Before(s.protected()) {
		return "", s.unclaim(e)
	}
	trash, err := s.discard(e.id)
	if err != nil {
		return "", err
	}
	delete(s.layers, chainID)
	s.forgetBroken()
	return trash, nil
}

// unclaim takes the claim of a layer away. The caller holds mu.
func (s *Store) unclaim(e *entry) error {
	if err := os.Remove(s.path(layersDir, e.id, claimedFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	e.claimed = false
	return nil
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

func (s *Store) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func errEnded() error {
	return fmt.Errorf("the staging has ended: %w", errdefs.ErrFailedPrecondition)
}

func errClosed() error {
	return fmt.Errorf("the layer store is closed: %w", errdefs.ErrFailedPrecondition)
}

// Run flushes the store whenever it has come to rest, and calls GC from time to
// time, until ctx ends. Errors are logged and do not end it.
func (s *Store) Run(ctx context.Context) {
	age := s.opts.Unclaimed
	if s.opts.MaxAge > 0 {
		age = min(age, s.opts.MaxAge)
	}
	ticker := time.NewTicker(max(age/4, 1))
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
			result, err := s.GC(ctx)
			if err != nil {
				s.opts.Logger.ErrorContext(ctx, "unused images and layers are not removed", "err", err)
			}
			if result.Layers > 0 || result.Parked > 0 || len(result.Images) > 0 {
				s.opts.Logger.InfoContext(ctx, "removed what nobody uses",
					"images", len(result.Images), "layers", result.Layers, "parked", result.Parked, "bytes", result.Bytes)
			}
		}
	}
}
