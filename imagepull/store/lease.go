// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
)

// A Lease keeps the layers of a pull that is under way: until its end GC and
// RemoveImage remove no layer that was committed or looked up, by anybody, since
// the lease began. Take it before the first lookup, end it after the layers are
// claimed or held.
type Lease struct {
	store *Store
	began time.Time
	// need is how many bytes each layer will take at the least that has been
	// reserved and is not committed; guarded by Store.mu.
	need map[digest.Digest]int64
	// wants are the contents of what has been reserved that were parked then, and
	// stay; guarded by Store.mu.
	wants map[Content]struct{}
}

// Lease starts a lease. It does not fail and does not wait; the caller ends it.
func (s *Store) Lease() *Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &Lease{store: s, began: time.Now()}
	s.leases[l] = struct{}{}
	return l
}

// End ends the lease and what it reserved. A second call does nothing.
func (l *Lease) End() {
	l.store.mu.Lock()
	defer l.store.mu.Unlock()
	delete(l.store.leases, l)
}

// protected is the time since when layers are kept for those who use them at the
// moment: the beginning of the oldest lease, else now; never where a layer is
// being written without a lease, which is the zero time. The caller holds mu.
func (s *Store) protected() time.Time {
	if len(s.leases) == 0 {
		if s.staged > 0 {
			return time.Time{}
		}
		return time.Now().Add(1) // all uses so far were before it
	}
	var began time.Time
	for l := range s.leases {
		if began.IsZero() || l.began.Before(began) {
			began = l.began
		}
	}
	return began
}

// A Demand is a layer that a pull is about to write.
type Demand struct {
	ChainID digest.Digest
	// Content is what the layer is made of.
	Content Content
	// Blob is the size of the blob. What it unpacks to is taken to be no less.
	Blob int64
	// Compressed says that what it unpacks to is likely to be more.
	Compressed bool
	// Spooled says that the whole blob is kept until the layer is unpacked.
	Spooled bool
}

const (
	// Layers of images usually unpack to about two and a half times their size.
	usualRatio = 2.5
	// layerInodes is what a layer takes at the least: two directories, a file.
	layerInodes = 3
)

// Reserve makes sure that there is room for an image: under the limits of the
// store, on its file system, and beside what other leases have reserved. It
// removes unused images, the least recently used first, where there is less than
// the image is likely to need; none where that would not help. Layers that are in
// the store need nothing, and neither do those that are parked there, which stay
// until the lease ends; other parked ones are the first to go.
//
// Where even the least that the image can take does not fit, the error is
// errdefs.ErrResourceExhausted and says what is needed and what is there. Where
// only the likely size does not, the pull may still fit, and there is no error.
func (l *Lease) Reserve(ctx context.Context, layers []Demand) error {
	s := l.store
	r := l.reserve(layers)
	if r.least == 0 {
		return nil
	}
	for _, last := range []bool{false, true} {
		if err := s.measure(&r); err != nil {
			return err
		}
		if r.fits(r.likely) || last && r.fits(r.least) {
			return nil
		}
		if last || !r.after(r.unused, r.unusedInodes).fits(r.least) {
			break
		}
		_, err := s.evict(ctx, func(used int64, freed Result) bool {
			after := r.after(freed.Bytes, freed.Inodes)
			after.used = used
			return after.fits(r.likely)
		})
		if err != nil {
			return s.OutOfSpace(fmt.Errorf("make room for an image: %w", err), r.least)
		}
	}
	s.mu.Lock()
	l.need, l.wants = nil, nil
	s.mu.Unlock()
	return r.refuse(s)
}

// reserve notes what the lease needs and reports it.
func (l *Lease) reserve(layers []Demand) reservation {
	s := l.store
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	l.need = make(map[digest.Digest]int64, len(layers))
	l.wants = make(map[Content]struct{})
	var r reservation
	var spool int64
	for _, d := range layers {
		if e, found := s.layers[d.ChainID]; found {
			e.used = now
			continue
		}
		if _, twice := l.need[d.ChainID]; twice || s.takes(l, d.Content) {
			continue
		}
		blob := max(d.Blob, 1)
		l.need[d.ChainID] = blob
		r.layers++
		r.least += blob
		if d.Compressed {
			blob = int64(float64(blob) * usualRatio)
		}
		r.likely += blob
		if d.Spooled {
			spool = max(spool, d.Blob)
		}
	}
	r.likely += spool
	r.inodes = int64(r.layers) * layerInodes
	promised := make(map[digest.Digest]int64)
	for other := range s.leases {
		if other == l {
			continue
		}
		for chainID, n := range other.need {
			if _, mine := l.need[chainID]; !mine {
				promised[chainID] = n // one of us will write it
			}
		}
	}
	for _, n := range promised {
		r.promised += n
	}
	return r
}

// takes reports whether a layer needs no space, since a lease finds it parked, and
// notes that it is wanted. The second layer of the content needs its space. The
// caller holds mu.
func (s *Store) takes(l *Lease, c Content) bool {
	_, found := s.parked[c]
	_, twice := l.wants[c]
	if found {
		l.wants[c] = struct{}{}
	}
	return found && !twice
}

// committed takes a layer off what is needed. The caller holds mu.
func (s *Store) committed(chainID digest.Digest) {
	for l := range s.leases {
		delete(l.need, chainID)
	}
}
