// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package clone copies the unpacked files of a layer, so that a layer that is
// wanted a second time is not fetched a second time.
//
// It trusts the tree it reads: that is one that the puller has verified, in a
// directory that only the puller writes to. The package imports nothing of the
// puller.
package clone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Options adjust a copy.
type Options struct {
	// Reset names directories of the tree, by their path in it, that get the
	// owner root, the mode 0755, the time of the copy and none but overlayfs'
	// own extended attributes, instead of what they have.
	Reset map[string]bool
}

// Tree copies all that is in the directory from into the empty directory to,
// and gives that the attributes of from: mode, owner, times, extended
// attributes, hard links within the tree, holes and devices are kept. Where the
// file system can, the copies share their blocks. On an error the caller removes
// what is in to.
func Tree(ctx context.Context, from, to string, opts Options) error {
	c := copier{opts: opts, links: make(map[inode]string)}
	if err := c.dir(ctx, from, to, "."); err != nil {
		return fmt.Errorf("copy layer: %w", err)
	}
	return nil
}

type inode struct{ dev, ino uint64 }

type copier struct {
	opts  Options
	links map[inode]string // copies of the files that have several names
	buf   []byte           // for file systems that cannot copy by themselves
}

// dir copies a directory that the copy has already; name is its path.
func (c *copier) dir(ctx context.Context, from, to, name string) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		err := c.entry(ctx, filepath.Join(from, e.Name()), filepath.Join(to, e.Name()), filepath.Join(name, e.Name()))
		if err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: from, Err: err}
	}
	return attributes(from, to, &st, c.opts.Reset[name])
}

func (c *copier) entry(ctx context.Context, from, to, name string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: from, Err: err}
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		if err := os.Mkdir(to, 0o700); err != nil {
			return err
		}
		return c.dir(ctx, from, to, name)
	}
	if st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first, found := c.links[id]; found {
			return os.Link(first, to)
		}
		c.links[id] = to
	}
	var err error
	switch kind {
	case unix.S_IFREG:
		err = c.file(ctx, from, to)
	case unix.S_IFLNK:
		var target string
		if target, err = os.Readlink(from); err == nil {
			err = os.Symlink(target, to)
		}
	default:
		if err = unix.Mknod(to, kind|0o600, int(st.Rdev)); err != nil {
			err = &os.PathError{Op: "mknod", Path: to, Err: err}
		}
	}
	if err != nil {
		return err
	}
	return attributes(from, to, &st, false)
}

// file copies the content of a file, by reference where that can be done.
func (c *copier) file(ctx context.Context, from, to string) (err error) {
	src, err := os.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }() // it was only read
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return nil
	}
	info, err := src.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		start, end, err := data(src, at, size)
		if err != nil {
			return err
		}
		if err := c.part(dst, src, start, end); err != nil {
			return err
		}
		at = end
	}
	return dst.Truncate(size) // a hole at the end is part of the file
}

// data returns the next part of a file that is not a hole.
func data(f *os.File, at, size int64) (start, end int64, err error) {
	start, err = f.Seek(at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case errors.Is(err, unix.EINVAL):
		return at, size, nil // a file system without holes
	case err != nil:
		return 0, 0, err
	}
	end, err = f.Seek(start, unix.SEEK_HOLE)
	return start, min(end, size), err
}

// part copies the bytes from start to end.
func (c *copier) part(dst, src *os.File, start, end int64) error {
	if c.buf == nil {
		c.buf = make([]byte, 256<<10)
	}
	from := io.NewSectionReader(src, start, end-start)
	to := io.NewOffsetWriter(dst, start)
	n, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, c.buf)
	if err == nil && n != end-start {
		err = &os.PathError{Op: "read", Path: src.Name(), Err: io.ErrUnexpectedEOF}
	}
	return err
}
