// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"container/list"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// touchEvery is how often the use of a blob is noted on disk.
const touchEvery = time.Minute

// blob is a whole blob on disk.
type blob struct {
	digest digest.Digest
	size   int64
	// checked is when its bytes were last compared with the digest, zero for not
	// since the start.
	checked time.Time
	touched time.Time
}

// shelf is the disk: whole blobs, the least recently used of which make room,
// and partial ones.
type shelf struct {
	root    string
	limit   int64 // of used and reserved together
	lock    *os.File
	metrics *metrics
	log     *slog.Logger

	// mu guards what follows, and the names in blobs/: memory and disk agree.
	mu             sync.Mutex
	blobs          map[digest.Digest]*list.Element // of *blob
	order          *list.List                      // the most recently used first
	used, reserved int64
}

// openShelf takes what is in root, which it makes if needed. Files that do not
// have the size of their name, and those it does not know, are removed.
func openShelf(root string, limit int64, m *metrics, log *slog.Logger) (*shelf, error) {
	s := &shelf{root: root, limit: limit, metrics: m, log: log, blobs: make(map[digest.Digest]*list.Element), order: list.New()}
	for _, dir := range []string{root, s.partial(), filepath.Join(root, "blobs", "sha256"), filepath.Join(root, "blobs", "sha512")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("cache: %w", err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(root, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("cache %s: another process uses it: %w: %w", root, err, errdefs.ErrFailedPrecondition), lock.Close())
	}
	s.lock = lock
	if err := s.scan(); err != nil {
		return nil, errors.Join(fmt.Errorf("cache: %w", err), lock.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.makeRoom(0) // the limit may be smaller now
	return s, nil
}

func (s *shelf) close() error { return s.lock.Close() }

func (s *shelf) partial() string { return filepath.Join(s.root, "partial") }

func (s *shelf) path(b *blob) string {
	return filepath.Join(s.root, "blobs", string(b.digest.Algorithm()), b.digest.Encoded()+"."+strconv.FormatInt(b.size, 10))
}

func (s *shelf) scan() error {
	left, err := os.ReadDir(s.partial())
	if err != nil {
		return err
	}
	for _, e := range left {
		if err := os.RemoveAll(filepath.Join(s.partial(), e.Name())); err != nil {
			return err
		}
	}
	var found []*blob
	for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		dir := filepath.Join(s.root, "blobs", string(algorithm))
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			b, ok := known(algorithm, e)
			if !ok {
				s.log.Warn("cache: removed what is not a whole blob", "file", e.Name())
				if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
				continue
			}
			found = append(found, b)
		}
	}
	slices.SortFunc(found, func(a, b *blob) int { return b.touched.Compare(a.touched) })
	for _, b := range found {
		if s.blobs[b.digest] != nil { // of another size: only one can be right
			if err := os.Remove(s.path(b)); err != nil {
				return err
			}
			continue
		}
		s.blobs[b.digest] = s.order.PushBack(b)
		s.used += b.size
	}
	return nil
}

// known reads the name of a file, and compares the size with that on disk.
func known(algorithm digest.Algorithm, e fs.DirEntry) (*blob, bool) {
	encoded, length, _ := strings.Cut(e.Name(), ".")
	b := &blob{digest: digest.NewDigestFromEncoded(algorithm, encoded)}
	size, err := strconv.ParseInt(length, 10, 64)
	info, infoErr := e.Info()
	if err != nil || infoErr != nil || !validDigest(b.digest) || !info.Mode().IsRegular() || info.Size() != size || strconv.FormatInt(size, 10) != length {
		return nil, false
	}
	b.size, b.touched = size, info.ModTime()
	return b, true
}

// use finds a blob and makes it the most recently used.
func (s *shelf) use(d digest.Digest) (blob, bool) {
	s.mu.Lock()
	e := s.blobs[d]
	if e == nil {
		s.mu.Unlock()
		return blob{}, false
	}
	s.order.MoveToFront(e)
	b := e.Value.(*blob)
	now := time.Now()
	stale := now.Sub(b.touched) > touchEvery
	if stale {
		b.touched = now
	}
	found := *b
	s.mu.Unlock()
	if stale {
		_ = os.Chtimes(s.path(&found), now, now) // else it is only older than it seems after a restart
	}
	return found, true
}

// open opens a blob; one that is not what it was is dropped.
func (s *shelf) open(b blob) (*os.File, error) {
	f, err := os.Open(s.path(&b))
	if err == nil {
		var info fs.FileInfo
		if info, err = f.Stat(); err == nil && info.Size() == b.size {
			return f, nil
		}
		_ = f.Close()
		err = errors.Join(err, fmt.Errorf("cache: blob %s has another size than it had: %w", b.digest, errdefs.ErrDataLoss))
	}
	s.drop(b.digest)
	return nil, err
}

// checked notes that a blob's bytes are right.
func (s *shelf) checked(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.blobs[d]; e != nil {
		e.Value.(*blob).checked = time.Now()
	}
}

// drop removes a blob. Who reads it reads on.
func (s *shelf) drop(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.blobs[d]; e != nil {
		s.removeLocked(e)
	}
}

func (s *shelf) removeLocked(e *list.Element) {
	b := e.Value.(*blob)
	if err := os.Remove(s.path(b)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("cache: blob stays on disk until the next start", "digest", b.digest.String(), "err", err)
	}
	s.order.Remove(e)
	delete(s.blobs, b.digest)
	s.used -= b.size
}

// evict removes the least recently used blob. It is false where there is none.
func (s *shelf) evict() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.evictLocked()
}

func (s *shelf) evictLocked() bool {
	e := s.order.Back()
	if e == nil {
		return false
	}
	s.metrics.evicted(e.Value.(*blob).size)
	s.removeLocked(e)
	return true
}

// makeRoom reports whether n bytes more are within the limit, after evictions.
func (s *shelf) makeRoom(n int64) bool {
	if n > s.limit-s.reserved {
		return false
	}
	for s.used+s.reserved+n > s.limit {
		if !s.evictLocked() {
			return false
		}
	}
	return true
}

// reserve makes room for n bytes of a partial blob, or is false.
func (s *shelf) reserve(n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.makeRoom(n) {
		return false
	}
	s.reserved += n
	return true
}

func (s *shelf) release(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserved -= n
}

// commit makes the file at path, for which reserved bytes were reserved, the
// blob d. It was checked.
func (s *shelf) commit(path string, d digest.Digest, size, reserved int64) error {
	now := time.Now()
	b := &blob{digest: d, size: size, checked: now, touched: now}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.blobs[d]; e != nil {
		s.removeLocked(e)
	}
	if err := os.Rename(path, s.path(b)); err != nil {
		return err
	}
	s.reserved -= reserved
	s.used += size
	s.blobs[d] = s.order.PushFront(b)
	return nil
}

// usage is for the metrics.
func (s *shelf) usage() (blobs int, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.blobs), s.used + s.reserved
}
