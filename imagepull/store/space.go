// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"math"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A reservation is what an image needs and what there is. Sizes are in bytes.
type reservation struct {
	layers        int
	least, likely int64 // that the image takes
	inodes        int64
	promised      int64 // to other pulls

	free, freeInodes int64 // on the file system
	used, limit      int64 // of the store; limit is 0 for none

	unused, unusedInodes int64 // could be removed to make room
}

// after is the reservation after so much has been removed.
func (r reservation) after(bytes, inodes int64) reservation {
	r.used, r.free, r.freeInodes = r.used-bytes, r.free+bytes, r.freeInodes+inodes
	return r
}

// measure fills in what there is.
func (s *Store) measure(r *reservation) error {
	u, err := s.Usage()
	if err != nil {
		return err
	}
	st, err := s.statfs()
	if err != nil {
		return err
	}
	r.free, r.used, r.limit = u.Free, u.Bytes, u.Limit
	r.freeInodes = math.MaxInt32
	if st.Files > 0 {
		r.freeInodes = int64(st.Ffree)
	}
	r.unused, r.unusedInodes = s.evictable()
	return nil
}

// room is what is free on the file system and not promised.
func (r reservation) room() int64 { return r.free - r.promised }

func (r reservation) fits(size int64) bool {
	return size <= r.room() && r.inodes <= r.freeInodes && (r.limit <= 0 || r.used+r.promised+size <= r.limit)
}

// refuse says why an image does not fit.
func (r reservation) refuse(s *Store) error {
	need := "needs at least " + bytesText(r.least)
	if r.likely > r.least {
		need += ", probably " + bytesText(r.likely)
	}
	others := ""
	if r.promised > 0 {
		others = fmt.Sprintf(", %s promised to other pulls", bytesText(r.promised))
	}
	switch {
	case r.inodes > r.freeInodes:
		return fmt.Errorf("out of inodes in %s: the image's %d layers need at least %d, %d free, %d in images that nothing uses; make a file system with more inodes or set image.work_dir: %w",
			s.root, r.layers, r.inodes, r.freeInodes, r.unusedInodes, errdefs.ErrResourceExhausted)
	case r.least > r.room():
		return fmt.Errorf("out of space in %s: the image %s, %s free%s, %s in images that nothing uses; enlarge it, remove containers or set image.work_dir: %w",
			s.root, need, bytesText(r.free), others, bytesText(r.unused), errdefs.ErrResourceExhausted)
	default:
		return fmt.Errorf("over the size limit of %s: the image %s, the limit is %s and %s are in use, %s of that by images that nothing uses%s; raise the limit or remove containers: %w",
			s.root, need, bytesText(r.limit), bytesText(r.used), bytesText(r.unused), others, errdefs.ErrResourceExhausted)
	}
}

// OutOfSpace gives an error its class where it comes from a full disk or an
// exceeded quota: errdefs.ErrResourceExhausted, with what the layer still needs
// at the least, in bytes (0 if that is unknown), and what is left. Any other
// error, nil included, is returned as it is.
func (s *Store) OutOfSpace(err error, needed int64) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) || errdefs.IsResourceExhausted(err) {
		return err
	}
	st, statErr := s.statfs()
	if statErr != nil {
		return errors.Join(errdefs.ErrResourceExhausted, err, statErr)
	}
	if st.Files > 0 && st.Ffree < layerInodes {
		return fmt.Errorf("out of inodes in %s, %s free; make a file system with more inodes or set image.work_dir: %w: %w",
			s.root, bytesText(freeBytes(st)), errdefs.ErrResourceExhausted, err)
	}
	return s.exhausted(needed, freeBytes(st), err)
}

func (s *Store) exhausted(needed, free int64, cause error) error {
	need := "more than is there"
	if needed > 0 {
		need = "at least " + bytesText(needed) + " more"
	}
	err := fmt.Errorf("out of space in %s: layer needs %s, %s free; enlarge it or set image.work_dir: %w",
		s.root, need, bytesText(free), errdefs.ErrResourceExhausted)
	if cause != nil {
		return fmt.Errorf("%w: %w", err, cause)
	}
	return err
}

func (s *Store) statfs() (unix.Statfs_t, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.root, &st); err != nil {
		return st, &os.PathError{Op: "statfs", Path: s.root, Err: err}
	}
	return st, nil
}

func freeBytes(st unix.Statfs_t) int64 { return int64(st.Bavail) * st.Frsize }

// bytesText writes a number of bytes for people.
func bytesText(n int64) string {
	const kib, mib, gib = 1 << 10, 1 << 20, 1 << 30
	switch {
	case n >= gib:
		return fmt.Sprintf("%.1f GiB", float64(n)/gib)
	case n >= mib:
		return fmt.Sprintf("%.1f MiB", float64(n)/mib)
	case n >= kib:
		return fmt.Sprintf("%.1f KiB", float64(n)/kib)
	default:
		return fmt.Sprintf("%d bytes", n)
	}
}
