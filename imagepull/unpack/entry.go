// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"archive/tar"
	"errors"
	"io"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// bufferSize is how much of a file is written at a time.
const bufferSize = 128 << 10

// A layer is one that is being unpacked.
type layer struct {
	budget
	root  *dir
	open  handles
	buf   []byte
	facts Facts // but for the directories, which finish counts

	last     *dir // the directory that lastPath led to
	lastPath string

	ignored      int // extended attributes left out
	firstIgnored string
}

func newLayer(root int, src *source, opts Options) *layer {
	return &layer{
		budget: budget{opts: opts, src: src},
		root:   &dir{fd: root},
		buf:    make([]byte, bufferSize),
	}
}

// entry makes what one entry of the tar stream asks for; content is what
// follows it in the stream.
func (l *layer) entry(hdr *tar.Header, content io.Reader) error {
	if err := l.budget.entry(hdr); err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	above, name := path.Split(path.Clean(hdr.Name))
	if name == "" || name == "." || name == ".." {
		return nil // the root is the image's, not this layer's
	}
	d, err := l.parent(above)
	if err != nil {
		return err
	}
	if strings.HasPrefix(name, whiteoutPrefix) {
		return l.whiteout(d, name, hdr)
	}
	if err := l.room(d, name); err != nil {
		return err
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		return l.directory(d, name, hdr)
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return l.file(d, name, hdr, content)
	case tar.TypeLink:
		return l.hardLink(d, name, hdr)
	case tar.TypeSymlink:
		return l.symlink(d, name, hdr)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return l.node(d, name, hdr)
	default:
		return invalid("its type %q is none that a layer may have", hdr.Typeflag)
	}
}

// fresh has make put something under a name of a directory, and removes what
// is there already. Most names are new, so it looks only if make says EEXIST.
func (l *layer) fresh(d *dir, name, call string, make func(fd int) error) error {
	fd, err := l.open.descriptor(d)
	if err != nil {
		return err
	}
	err = make(fd)
	if errors.Is(err, unix.EEXIST) {
		if err := l.remove(d, name); err != nil {
			return err
		}
		if fd, err = l.open.descriptor(d); err != nil {
			return err
		}
		err = make(fd)
	}
	return failed(call, err)
}

// directory makes a directory, or gives one that is there its attributes.
func (l *layer) directory(d *dir, name string, hdr *tar.Header) error {
	want, err := wanted(hdr)
	if err != nil {
		return err
	}
	child, found := d.dirs[name]
	if !found {
		replaced := false
		err := l.fresh(d, name, "mkdirat", func(fd int) error {
			err := unix.Mkdirat(fd, name, want.mode&0o1777)
			replaced = replaced || err != nil
			return err
		})
		if err != nil {
			return err
		}
		if child, err = l.newDir(d, name); err != nil {
			return err
		}
		if replaced {
			// A whiteout or a file, which hid what is below.
			if err := l.markOpaque(child); err != nil {
				return err
			}
		}
	}
	child.listed, child.timed, child.times = true, true, want.times
	fd, err := l.open.descriptor(d)
	if err != nil {
		return err
	}
	if _, err := l.settle(fd, name, want); err != nil {
		return err
	}
	set, err := l.eachXattr(hdr, func(key, value string) error {
		if fd, err = l.open.descriptor(child); err != nil {
			return err
		}
		return unix.Fsetxattr(fd, key, []byte(value), 0)
	})
	if set.mode {
		return failed("fchmod", unix.Fchmod(fd, want.mode))
	}
	return err
}
