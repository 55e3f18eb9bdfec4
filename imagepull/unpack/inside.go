// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// inside opens files below one directory without following any symbolic link.
// A pass remembers paths of entries that it has seen; a later entry may have put
// a link to anywhere in place of a directory on such a path.
type inside struct {
	root string
	dir  *os.File
}

func newInside(root string) (*inside, error) {
	dir, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &inside{root: root, dir: dir}, nil
}

func (i *inside) close() { _ = i.dir.Close() }

// directory opens the directory at path, and returns nil if there is none.
func (i *inside) directory(path string) (*os.File, error) {
	name := "."
	if path != i.root {
		name = strings.TrimPrefix(path, i.root+"/")
	}
	fd, err := unix.Openat2(int(i.dir.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return nil, nil
	case err != nil:
		return nil, &os.PathError{Op: "openat2", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// isDirectory reports whether there is a directory at path.
func (i *inside) isDirectory(path string) (bool, error) {
	f, err := i.directory(path)
	if f == nil {
		return false, err
	}
	return true, f.Close()
}

// removeWhiteout removes the whiteout at path, and reports whether there was one.
func (i *inside) removeWhiteout(path string) (bool, error) {
	parent, err := i.directory(filepath.Dir(path))
	if parent == nil {
		return false, err
	}
	defer parent.Close()
	var st unix.Stat_t
	name := filepath.Base(path)
	err = unix.Fstatat(int(parent.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || err == nil && (st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0) {
		return false, nil
	}
	if err == nil {
		err = unix.Unlinkat(int(parent.Fd()), name, 0)
	}
	if err != nil {
		return false, &os.PathError{Op: "remove whiteout", Path: path, Err: err}
	}
	return true, nil
}

// setOpaque makes overlayfs hide what the layers below have in the directory at
// path, if there is one.
func (i *inside) setOpaque(path string) error {
	f, err := i.directory(path)
	if f == nil {
		return err
	}
	defer f.Close()
	return markOpaque(f)
}
