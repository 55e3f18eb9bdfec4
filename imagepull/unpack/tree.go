// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links one path may lead through.
const maxLinks = 255

// A dir is a directory of the layer. The tree of them is at all times what is
// on disk; of other files, only the whiteouts are known.
type dir struct {
	parent *dir // nil for the root
	name   string
	length int // of its path, in bytes
	dirs   map[string]*dir
	hidden map[string]struct{} // names for which there is a whiteout

	listed bool // by the layer, or it has nothing to do with one in the layers below
	opaque bool // it is marked
	timed  bool // times are to be set at the end
	times  [2]unix.Timespec

	fd           int // -1 when closed
	newer, older *dir
}

func (d *dir) add(name string) *dir {
	name = strings.Clone(name) // not a part of a longer path
	child := &dir{parent: d, name: name, length: d.length + 1 + len(name), fd: -1}
	if d.dirs == nil {
		d.dirs = make(map[string]*dir)
	}
	d.dirs[name] = child
	return child
}

func (d *dir) hide(name string) {
	if d.hidden == nil {
		d.hidden = make(map[string]struct{})
	}
	d.hidden[strings.Clone(name)] = struct{}{}
}

// parent returns the directory at path, where symbolic links lead from the
// layer's root and no further, and makes it if it is missing.
func (l *layer) parent(path string) (*dir, error) {
	if l.last != nil && path == l.lastPath {
		return l.last, nil
	}
	d, missing, err := l.resolve(path)
	if err != nil {
		return nil, err
	}
	for _, name := range missing {
		if d, err = l.makeImplicit(d, name); err != nil {
			return nil, err
		}
	}
	l.last, l.lastPath = d, path
	return d, nil
}

// resolve returns the directory where path leads, as far as it is there, and
// the names of what is missing or no directory. It follows symbolic links the
// way the kernel would for a process with the layer as its root, but takes
// "missing/.." for nothing.
func (l *layer) resolve(path string) (d *dir, missing []string, err error) {
	d = l.root
	for links, rest := 0, path; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		switch {
		case name == "" || name == ".":
			continue
		case name == "..":
			if len(missing) > 0 {
				missing = missing[:len(missing)-1]
			} else if d.parent != nil {
				d = d.parent
			}
			continue
		case len(missing) > 0:
			missing = append(missing, name)
			continue
		}
		if child, found := d.dirs[name]; found {
			d = child
			continue
		}
		target, err := l.readlink(d, name)
		if err != nil {
			return nil, nil, err
		}
		if target == "" {
			missing = append(missing, name)
			continue
		}
		if links++; links > maxLinks {
			return nil, nil, invalid("its path leads through more than %d symbolic links", maxLinks)
		}
		if err := l.remember(len(target)); err != nil {
			return nil, nil, err
		}
		if target[0] == '/' {
			d = l.root
		}
		rest = target + "/" + rest
	}
	return d, missing, nil
}

// readlink returns where a symbolic link leads, and "" for anything else.
func (l *layer) readlink(d *dir, name string) (string, error) {
	if _, hidden := d.hidden[name]; hidden {
		return "", nil
	}
	fd, err := l.open.descriptor(d)
	if err != nil {
		return "", err
	}
	n, err := unix.Readlinkat(fd, name, l.buf)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINVAL):
		return "", nil
	case err != nil:
		return "", failed("readlinkat", err)
	}
	return string(l.buf[:n]), nil
}

// makeImplicit makes a directory that the layer needs and has not listed. It
// may stand where this layer has a whiteout, and then hides what that hid.
func (l *layer) makeImplicit(d *dir, name string) (*dir, error) {
	if err := l.room(d, name); err != nil {
		return nil, err
	}
	_, revealed := d.hidden[name]
	if revealed {
		if err := l.removeFile(d, name); err != nil {
			return nil, err
		}
	}
	fd, err := l.open.descriptor(d)
	if err != nil {
		return nil, err
	}
	err = unix.Mkdirat(fd, name, 0o755)
	if errors.Is(err, unix.EEXIST) {
		return nil, invalid("%s, which it is in, is no directory", short(name))
	}
	if err != nil {
		return nil, failed("mkdirat", err)
	}
	child, err := l.newDir(d, name)
	if err != nil {
		return nil, err
	}
	if _, err := l.settle(fd, name, attributes{mode: 0o755}); err != nil {
		return nil, err
	}
	if revealed {
		child.listed = true // what was there below is gone, its attributes too
		return child, l.markOpaque(child)
	}
	return child, nil
}

// newDir notes a directory that was made.
func (l *layer) newDir(d *dir, name string) (*dir, error) {
	child := d.add(name)
	return child, l.remember(dirCost + child.length)
}

// room makes sure that the path of a file in a directory can be opened.
func (l *layer) room(d *dir, name string) error {
	if d.length+len(name) > maxPath {
		return errTooLong()
	}
	return nil
}
