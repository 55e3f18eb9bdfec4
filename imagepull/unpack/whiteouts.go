// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"archive/tar"
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// whiteout hides a name in the layers below, or with the opaque one all that
// they have in the directory. Whatever the order of the entries, a whiteout
// hides nothing of its own layer: where that has a file of the name, the file
// hides what is below, and a directory does so once it is opaque.
func (l *layer) whiteout(d *dir, base string, hdr *tar.Header) error {
	if base == whiteoutOpaque {
		return l.markOpaque(d)
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if name == "" || name == "." || name == ".." {
		return invalid("it is a whiteout of no file")
	}
	if child, found := d.dirs[name]; found {
		child.listed = true // it has nothing of what it hides
		return l.markOpaque(child)
	}
	want, err := wanted(hdr)
	if err != nil {
		return err
	}
	if err := l.room(d, name); err != nil {
		return err
	}
	fd, err := l.open.descriptor(d)
	if err != nil {
		return err
	}
	err = unix.Mknodat(fd, name, unix.S_IFCHR, 0)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return failed("mknodat", err)
	}
	d.hide(name)
	if err := l.remember(nameCost); err != nil {
		return err
	}
	st, err := l.settle(fd, name, attributes{uid: want.uid, gid: want.gid})
	l.count(&st, 1)
	return err
}

// markOpaque makes overlayfs hide what the layers below have in a directory.
func (l *layer) markOpaque(d *dir) error {
	if d.opaque {
		return nil
	}
	fd, err := l.open.descriptor(d)
	if err != nil {
		return err
	}
	err = unix.Fsetxattr(fd, opaqueXattr, []byte{'y'}, 0)
	if errors.Is(err, unix.ENOTSUP) {
		return unable("set %s: the file system has no trusted extended attributes; use ext4, xfs, btrfs or tmpfs for the image store", opaqueXattr)
	}
	if err != nil {
		return failed("fsetxattr "+opaqueXattr, err)
	}
	d.opaque = true
	return nil
}
