// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
)

// A Result says what was removed.
type Result struct {
	// Images are the manifests of the images that are no longer recorded.
	Images []digest.Digest
	// Layers and Parked are the numbers of layers removed that were visible, and
	// parked; Bytes and Inodes are what all of them took.
	Layers, Parked int

	Bytes, Inodes int64
}

// Usage is what the store has, in the whole.
type Usage struct {
	// Parked layers are not among Layers.
	Images, Layers, Parked int
	// Bytes and Inodes are what all of them take; Limit is Options.MaxBytes.
	Bytes, Inodes, Limit int64
	// Free is what the file system has left for the store, in bytes.
	Free int64
}

// Usage returns how much the store has.
func (s *Store) Usage() (Usage, error) {
	st, err := s.statfs()
	if err != nil {
		return Usage{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	u := Usage{Images: len(s.images), Layers: len(s.layers), Parked: len(s.parked), Limit: s.opts.MaxBytes, Free: freeBytes(st)}
	u.Bytes, u.Inodes = s.sizes()
	return u, nil
}

// sizes is what all layers take. The caller holds mu.
func (s *Store) sizes() (bytes, inodes int64) {
	for _, e := range s.layers {
		bytes, inodes = bytes+e.meta.Size, inodes+e.meta.Inodes
	}
	for _, p := range s.parked {
		bytes, inodes = bytes+p.size, inodes+p.inodes
	}
	return bytes, inodes
}

// GC removes, in this order:
//
//   - layers that have been parked for Options.Unclaimed;
//   - images that nobody has used for Options.MaxAge;
//   - layers of no recorded image that nobody has used for Options.Unclaimed;
//   - while there is more than Options.MaxBytes, first parked layers, the oldest
//     first, then all other layers of no image, then images, the least recently
//     used first.
//
// Nothing is removed that is claimed, held, or looked up by a pull since it
// took its Lease, and nothing parked that a pull has reserved for. While a layer is being written without any lease nothing is
// removed but parked layers: that layer may stand on any other. The error joins
// what could not be removed.
func (s *Store) GC(ctx context.Context) (Result, error) {
	result, failed := s.collect(ctx, time.Now())
	if s.opts.MaxBytes > 0 {
		evicted, err := s.evict(ctx, func(used int64, _ Result) bool { return used <= s.opts.MaxBytes })
		result.add(evicted)
		failed = errors.Join(failed, err)
	}
	return result, failed
}

// Sweep is GC without the limit of size.
func (s *Store) Sweep(ctx context.Context) error {
	_, err := s.collect(ctx, time.Now())
	return err
}

// collect removes what is too old.
func (s *Store) collect(ctx context.Context, now time.Time) (Result, error) {
	result, trash, err := s.unlinkUnwanted(now)
	return result, errors.Join(err, s.delete(ctx, trash))
}

// unlinkUnwanted makes the parked layers, images and layers disappear that are too old, all in
// one step, so that none can be claimed in between. It returns where their files
// are now.
func (s *Store) unlinkUnwanted(now time.Time) (result Result, trash []string, failed error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return Result{}, nil, nil
	}
	since := now.Add(-s.opts.Unclaimed)
	parked, failed := s.unlinkParked(&result, s.parkedByAge(), func(c Content) bool { return !s.parked[c].since.After(since) })
	began := s.protected()
	if began.IsZero() {
		return result, parked, failed
	}
	for _, i := range s.byUse() {
		if s.opts.MaxAge <= 0 || now.Sub(i.lastUsed) < s.opts.MaxAge || s.busy(i, began) {
			continue
		}
		if err := s.forget(i, &result); err != nil {
			failed = errors.Join(failed, fmt.Errorf("remove image %s: %w", i.meta.Manifest, err))
		}
	}
	trash, err := s.unlinkUnless(&result, func(e *entry) bool { return e.used.After(since) || !e.used.Before(began) })
	return result, append(parked, trash...), errors.Join(failed, err)
}

// evict removes what it may until enough is satisfied with the bytes that all
// layers still take and with what was removed.
func (s *Store) evict(ctx context.Context, enough func(used int64, freed Result) bool) (Result, error) {
	result, trash, err := s.unlinkUntil(enough)
	return result, errors.Join(err, s.delete(ctx, trash))
}

func (s *Store) unlinkUntil(enough func(used int64, freed Result) bool) (result Result, trash []string, failed error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return Result{}, nil, nil
	}
	used, _ := s.sizes()
	trash, failed = s.unlinkParked(&result, s.parkedByAge(), func(Content) bool { return !enough(used-result.Bytes, result) })
	began := s.protected()
	if began.IsZero() {
		return result, trash, failed
	}
	images := s.byUse()
	for !enough(used-result.Bytes, result) {
		more, err := s.unlinkUnless(&result, func(e *entry) bool { return !e.used.Before(began) })
		trash, failed = append(trash, more...), errors.Join(failed, err)
		if err != nil {
			return result, trash, failed
		}
		if enough(used-result.Bytes, result) {
			break
		}
		for len(images) > 0 && s.busy(images[0], began) {
			images = images[1:]
		}
		if len(images) == 0 {
			break
		}
		if err := s.forget(images[0], &result); err != nil {
			return result, trash, errors.Join(failed, fmt.Errorf("remove image %s: %w", images[0].meta.Manifest, err))
		}
		images = images[1:]
	}
	return result, trash, failed
}

// evictable is what evict could remove at most.
func (s *Store) evictable() (bytes, inodes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, 0
	}
	for _, c := range s.parkedByAge() {
		bytes, inodes = bytes+s.parked[c].size, inodes+s.parked[c].inodes
	}
	began := s.protected()
	if began.IsZero() {
		return bytes, inodes
	}
	wanted := s.wanted(func(e *entry) bool { return !e.used.Before(began) }, func(i *image) bool { return s.busy(i, began) })
	for chainID, e := range s.layers {
		if _, found := wanted[chainID]; !found {
			bytes, inodes = bytes+e.meta.Size, inodes+e.meta.Inodes
		}
	}
	return bytes, inodes
}

// busy reports whether an image is in use, or being pulled by those who took a
// lease at began or later. The caller holds mu.
func (s *Store) busy(i *image, began time.Time) bool {
	if s.inUse(i.meta.Top) {
		return true
	}
	e, found := s.layers[i.meta.Top]
	return found && (e.pins > 0 || !e.used.Before(began))
}

// wanted returns the layers that are held, claimed or kept, or of an image that
// is kept, and those below them. The caller holds mu.
func (s *Store) wanted(keep func(*entry) bool, keepImage func(*image) bool) map[digest.Digest]struct{} {
	wanted := make(map[digest.Digest]struct{})
	want := func(top digest.Digest) {
		for e := range s.stack(top) {
			wanted[e.meta.ChainID] = struct{}{}
		}
	}
	for _, h := range s.holds {
		want(h.ChainID)
	}
	for _, i := range s.images {
		if keepImage(i) {
			want(i.meta.Top)
		}
	}
	for chainID, e := range s.layers {
		if e.claimed || e.pins > 0 || keep(e) {
			want(chainID)
		}
	}
	return wanted
}

// unlinkUnless makes all layers disappear that nothing wants and keep does not
// keep. The caller holds mu.
func (s *Store) unlinkUnless(result *Result, keep func(*entry) bool) (trash []string, failed error) {
	wanted := s.wanted(keep, func(*image) bool { return true })
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
		s.changed = true
		result.Layers++
		result.Bytes += e.meta.Size
		result.Inodes += e.meta.Inodes
		trash = append(trash, dir)
	}
	return trash, failed
}

// delete deletes directories of the staging area that nobody uses any more, and
// those that could not be deleted before. What stays is tried again by the next
// call, and by the next Open.
func (s *Store) delete(ctx context.Context, trash []string) (failed error) {
	s.mu.Lock()
	trash = append(trash, s.trash...)
	s.trash = nil
	s.mu.Unlock()
	var left []string
	for _, dir := range trash {
		err := ctx.Err()
		if err == nil {
			err = removeStaging(dir)
		}
		if err != nil {
			left, failed = append(left, dir), errors.Join(failed, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trash = append(s.trash, left...)
	s.notify()
	return failed
}

func (r *Result) add(other Result) {
	r.Images = append(r.Images, other.Images...)
	r.Layers += other.Layers
	r.Parked += other.Parked
	r.Bytes += other.Bytes
	r.Inodes += other.Inodes
}
