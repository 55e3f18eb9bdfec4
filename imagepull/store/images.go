// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// maxReferences is how many names of one image are remembered: the host may ask
// for it by any number of them.
const maxReferences = 16

// maxImages is how many images are recorded; beyond it the least recently used
// is forgotten. Images of the same layers take no space that would limit them.
const maxImages = 1000

// ImageMeta is what the store is told of an image.
type ImageMeta struct {
	// Manifest is the digest of the platform's manifest. It names the image.
	Manifest digest.Digest `json:"manifest"`
	// References are the names that the image was recorded under, the latest
	// last; no more than 16 of them.
	References []string `json:"references"`
	// Top is the chain id of the uppermost layer.
	Top digest.Digest `json:"top"`
}

// An Image is a recorded image. All its layers are in the store.
type Image struct {
	ImageMeta
	// Layers are the chain ids of the layers, from the bottom up.
	Layers []digest.Digest
	// Size is the disk space of all layers, in bytes. Exclusive is the part of
	// the layers that no other recorded image has; the rest is shared.
	Size, Exclusive int64
	// LastUsed is when the image was last recorded or released.
	LastUsed time.Time
	// InUse says that the uppermost layer is held or claimed.
	InUse bool
}

// Shared is the disk space of the layers that other images have too, in bytes.
func (i Image) Shared() int64 { return i.Size - i.Exclusive }

// An image is a recorded image. Its file's modification time is lastUsed.
type image struct {
	meta     ImageMeta
	lastUsed time.Time
}

// RecordImage notes that an image is whole in the store and used at this moment.
// top is the chain id of its uppermost layer, reference a name it goes by. Call
// it for each pull, also for one that found all layers: it is what keeps the
// layers until Options.MaxAge or the space of another image ends that.
//
// An image whose layers are not all there is errdefs.ErrFailedPrecondition, one
// that was recorded with other layers errdefs.ErrAlreadyExists.
func (s *Store) RecordImage(reference string, manifest, top digest.Digest) error {
	meta := ImageMeta{Manifest: manifest, References: []string{reference}, Top: top}
	if err := meta.check(); err != nil {
		return fmt.Errorf("record image: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed()
	}
	if !s.whole(top) {
		return fmt.Errorf("record image %s: its layers are not all in the store: pull it again: %w", manifest, errdefs.ErrFailedPrecondition)
	}
	now := time.Now()
	for e := range s.stack(top) {
		e.used = now
	}
	known, found := s.images[manifest]
	switch {
	case !found:
		known = &image{}
	case known.meta.Top != top:
		return fmt.Errorf("record image %s: it has the layers of %s, not of %s: %w", manifest, known.meta.Top, top, errdefs.ErrAlreadyExists)
	case known.meta.References[len(known.meta.References)-1] == reference:
		return s.useImage(known, now)
	default:
		others := slices.DeleteFunc(slices.Clone(known.meta.References), func(r string) bool { return r == reference })
		meta.References = append(others[max(0, len(others)-maxReferences+1):], reference)
	}
	if err := s.replaceJSON(imagesDir, imageFile(manifest), meta); err != nil {
		return s.OutOfSpace(fmt.Errorf("record image %s: %w", manifest, err), 0)
	}
	known.meta = meta
	s.images[manifest] = known
	return errors.Join(s.useImage(known, now), s.limitImages())
}

// limitImages keeps the number of images within bounds. The caller holds mu.
func (s *Store) limitImages() error {
	if len(s.images) <= maxImages {
		return nil
	}
	for _, i := range s.byUse() {
		if !s.inUse(i.meta.Top) {
			return s.forget(i, &Result{})
		}
	}
	return nil
}

// check reports what is wrong with an image's description.
func (m ImageMeta) check() error {
	for _, d := range []digest.Digest{m.Manifest, m.Top} {
		if err := d.Validate(); err != nil {
			return fmt.Errorf("digest %.80q: %w: %w", d, errdefs.ErrInvalidArgument, err)
		}
	}
	if len(m.References) == 0 || slices.Contains(m.References, "") {
		return fmt.Errorf("image %s has no name: %w", m.Manifest, errdefs.ErrInvalidArgument)
	}
	return nil
}

// useImage notes the time of a use. The caller holds mu.
func (s *Store) useImage(i *image, now time.Time) error {
	i.lastUsed = now
	s.changed = true
	s.notify()
	if err := os.Chtimes(s.path(imagesDir, imageFile(i.meta.Manifest)), now, now); err != nil {
		return fmt.Errorf("record image %s: %w", i.meta.Manifest, err)
	}
	return nil
}

// Images returns the recorded images, the least recently used first.
func (s *Store) Images() []Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	owners := make(map[digest.Digest]int)
	for _, i := range s.images {
		for e := range s.stack(i.meta.Top) {
			owners[e.meta.ChainID]++
		}
	}
	all := make([]Image, 0, len(s.images))
	for _, i := range s.byUse() {
		out := Image{ImageMeta: i.meta, LastUsed: i.lastUsed, InUse: s.inUse(i.meta.Top)}
		out.References = slices.Clone(i.meta.References)
		for e := range s.stack(i.meta.Top) {
			out.Layers = append(out.Layers, e.meta.ChainID)
			out.Size += e.meta.Size
			if owners[e.meta.ChainID] == 1 {
				out.Exclusive += e.meta.Size
			}
		}
		slices.Reverse(out.Layers)
		all = append(all, out)
	}
	return all
}

// byUse returns the images, the least recently used first. The caller holds mu.
func (s *Store) byUse() []*image {
	all := make([]*image, 0, len(s.images))
	for _, i := range s.images {
		all = append(all, i)
	}
	slices.SortFunc(all, func(a, b *image) int {
		return cmp.Or(a.lastUsed.Compare(b.lastUsed), cmp.Compare(a.meta.Manifest, b.meta.Manifest))
	})
	return all
}

// inUse reports whether a layer is held or claimed. The caller holds mu.
func (s *Store) inUse(top digest.Digest) bool {
	if e, found := s.layers[top]; found && e.claimed {
		return true
	}
	_, held := s.heldBy(top)
	return held
}

// RemoveImage forgets an image and removes those of its layers that nothing
// else wants: no other recorded image, no claim, no hold, no pull that is under
// way. What is parked of their contents goes too. An image that is not recorded is errdefs.ErrNotFound, one in use
// errdefs.ErrFailedPrecondition.
func (s *Store) RemoveImage(ctx context.Context, manifest digest.Digest) (Result, error) {
	result, trash, err := s.unlinkImage(manifest)
	if err != nil {
		err = fmt.Errorf("remove image: %w", err)
	}
	return result, errors.Join(err, s.delete(ctx, trash))
}

func (s *Store) unlinkImage(manifest digest.Digest) (result Result, trash []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return result, nil, errClosed()
	}
	i, found := s.images[manifest]
	if !found {
		return result, nil, fmt.Errorf("image %s is not in the store: %w", manifest, errdefs.ErrNotFound)
	}
	if s.inUse(i.meta.Top) {
		return result, nil, fmt.Errorf("image %s is in use: remove its containers first: %w", manifest, errdefs.ErrFailedPrecondition)
	}
	top := i.meta.Top
	if err := s.forget(i, &result); err != nil {
		return result, nil, err
	}
	mine, contents := make(map[digest.Digest]struct{}), make(map[Content]struct{})
	for e := range s.stack(top) {
		mine[e.meta.ChainID] = struct{}{}
		contents[Content{e.meta.Blob, e.meta.DiffID}] = struct{}{}
	}
	began := s.protected()
	trash, err = s.unlinkUnless(&result, func(e *entry) bool {
		_, is := mine[e.meta.ChainID]
		return !is || !e.used.Before(began)
	})
	parked := slices.DeleteFunc(s.parkedByAge(), func(c Content) bool { _, is := contents[c]; return !is })
	more, parkedErr := s.unlinkParked(&result, parked, func(Content) bool { return true })
	return result, append(trash, more...), errors.Join(err, parkedErr)
}

// forget drops the record of an image; its layers stay. The caller holds mu.
func (s *Store) forget(i *image, result *Result) error {
	err := os.Remove(s.path(imagesDir, imageFile(i.meta.Manifest)))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	delete(s.images, i.meta.Manifest)
	result.Images = append(result.Images, i.meta.Manifest)
	s.changed = true
	return nil
}

// whole reports whether a layer and all below it are there. The caller holds mu.
func (s *Store) whole(top digest.Digest) bool {
	last := top
	for e := range s.stack(top) {
		last = e.meta.Parent
	}
	return last == ""
}

// forgetBroken drops the records of images that lack a layer. Where a file
// cannot be removed the next Open does it. The caller holds mu.
func (s *Store) forgetBroken() {
	for manifest, i := range s.images {
		if s.whole(i.meta.Top) {
			continue
		}
		if err := s.forget(i, &Result{}); err != nil {
			s.opts.Logger.Warn("the record of an incomplete image stays until the store is next opened", "image", manifest, "err", err)
			delete(s.images, manifest)
		}
	}
}

// earlier guards against a clock that was set back.
func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func imageFile(manifest digest.Digest) string {
	return digest.FromString(manifest.String()).Encoded() + ".json"
}

// loadImages reads the records of images and removes those that are damaged, or
// whose layers are not all there.
func (s *Store) loadImages() error {
	return s.loadFiles(imagesDir, func(name string, b []byte, modified time.Time) bool {
		var meta ImageMeta
		if json.Unmarshal(b, &meta) != nil || meta.check() != nil || imageFile(meta.Manifest) != name || !s.whole(meta.Top) {
			return false
		}
		s.images[meta.Manifest] = &image{meta: meta, lastUsed: earlier(modified, time.Now())}
		return true
	})
}
