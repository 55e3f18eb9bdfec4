// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package clone

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// attributes gives to the owner, mode, extended attributes and times of from.
// With reset it gets those of a new directory, and only overlayfs' marks.
func attributes(from, to string, st *unix.Stat_t, reset bool) error {
	if reset {
		if err := xattrs(from, to, func(name string) bool { return strings.HasPrefix(name, "trusted.overlay.") }); err != nil {
			return err
		}
		return errors.Join(os.Lchown(to, 0, 0), os.Chmod(to, 0o755)) //nolint:gosec // a directory of the image, for its users
	}
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	// After the owner, whose change takes file capabilities and the setuid and
	// setgid bits away.
	if err := xattrs(from, to, func(string) bool { return true }); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
			return &os.PathError{Op: "chmod", Path: to, Err: err}
		}
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "utimensat", Path: to, Err: err}
	}
	return nil
}

// xattrs copies the extended attributes that keep names.
func xattrs(from, to string, keep func(name string) bool) error {
	names, err := grow(func(b []byte) (int, error) { return unix.Llistxattr(from, b) })
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "llistxattr", Path: from, Err: err}
	}
	for name := range strings.SplitSeq(string(names), "\x00") {
		if name == "" || !keep(name) {
			continue
		}
		value, err := grow(func(b []byte) (int, error) { return unix.Lgetxattr(from, name, b) })
		if err == nil {
			err = unix.Lsetxattr(to, name, value, 0)
		}
		if err != nil {
			return &os.PathError{Op: "copy xattr " + name, Path: to, Err: err}
		}
	}
	return nil
}

// maxXattr is the most that the kernel gives for one extended attribute, or for
// the list of their names.
const maxXattr = 64 << 10

// grow calls read with a buffer that is large enough for its answer.
func grow(read func([]byte) (int, error)) ([]byte, error) {
	for size := 256; ; size *= 4 {
		b := make([]byte, size)
		n, err := read(b)
		if errors.Is(err, unix.ERANGE) && size < maxXattr {
			continue
		}
		return b[:max(n, 0)], err
	}
}
