// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"io"

	"golang.org/x/sys/unix"
)

// remove removes what a later entry replaces: a file, or a directory with all
// that is in it. Paths that led through it lead elsewhere from now on.
func (l *layer) remove(d *dir, name string) error {
	l.last = nil
	if child, found := d.dirs[name]; found {
		return l.removeDir(child)
	}
	return l.removeFile(d, name)
}

// removeFile removes a file that is no directory.
func (l *layer) removeFile(d *dir, name string) error {
	fd, err := l.open.descriptor(d)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return failed("fstatat", err)
	}
	if err := unix.Unlinkat(fd, name, 0); err != nil {
		return failed("unlinkat", err)
	}
	if st.Nlink == 1 {
		l.count(&st, -1)
	}
	delete(d.hidden, name)
	return nil
}

// removeDir removes a directory, those in it first.
func (l *layer) removeDir(d *dir) error {
	for _, child := range d.dirs {
		if err := l.removeDir(child); err != nil {
			return err
		}
	}
	if err := l.removeFiles(d); err != nil {
		return err
	}
	l.open.forget(d)
	fd, err := l.open.descriptor(d.parent)
	if err != nil {
		return err
	}
	if err := unix.Unlinkat(fd, d.name, unix.AT_REMOVEDIR); err != nil {
		return failed("unlinkat", err)
	}
	delete(d.parent.dirs, d.name)
	return nil
}

// removeFiles removes the files in a directory that has no others.
func (l *layer) removeFiles(d *dir) error {
	for {
		removed, err := l.sweepFiles(d)
		if err != nil || removed == 0 {
			return err
		}
	}
}

// sweepFiles goes through a directory once and removes the files that it comes
// by. There may be more, as removing files may move those that are left.
func (l *layer) sweepFiles(d *dir) (removed int, err error) {
	fd, err := l.open.descriptor(d)
	if err != nil {
		return 0, err
	}
	if _, err := unix.Seek(fd, 0, io.SeekStart); err != nil {
		return 0, failed("lseek", err)
	}
	for {
		if err := l.src.ctx.Err(); err != nil {
			return removed, err
		}
		var n int
		err := again(func() (err error) {
			n, err = unix.ReadDirent(fd, l.buf)
			return err
		})
		if err != nil {
			return removed, failed("getdents64", err)
		}
		if n == 0 {
			return removed, nil
		}
		// No names is not the end: a signal cuts what is read short, and may
		// leave "." and ".." alone.
		_, _, names := unix.ParseDirent(l.buf[:n], -1, nil)
		for _, name := range names {
			if err := l.removeFile(d, name); err != nil {
				return removed, err
			}
			removed++
		}
	}
}
