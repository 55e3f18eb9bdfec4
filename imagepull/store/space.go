// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// CheckSpace returns errdefs.ErrResourceExhausted, with both numbers, where the
// store has fewer than needed bytes left.
func (s *Store) CheckSpace(needed int64) error {
	st, err := s.statfs()
	if err != nil {
		return err
	}
	if free := freeBytes(st); free < needed {
		return s.exhausted(needed, free, nil)
	}
	return nil
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
	if st.Files > 0 && st.Ffree == 0 {
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
