// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// relocate moves what a layer has in an unlisted directory to where that path
// leads in the layers below. A layer with lib/libc.so over one where lib is a
// link to usr/lib means usr/lib/libc.so; left alone it would hide the link.
//
// It returns the unlisted directories as they are then, parents first.
func relocate(ctx context.Context, dir string, implicit []string, below chain) ([]string, error) {
	moves := make(map[string]string)
	var names []string
	for _, name := range implicit {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		name = moved(moves, name)
		hidden, err := hidden(dir, name)
		if err != nil {
			return nil, err
		}
		n, found, err := below.lookup(name)
		if err != nil {
			return nil, err
		}
		if hidden || !found || !n.is(unix.S_IFLNK) {
			names = append(names, name)
			continue
		}
		target, err := below.resolve(name)
		if err != nil {
			return nil, err
		}
		if err := checkTarget(name, target, below); err != nil {
			return nil, err
		}
		made, err := makeDirs(dir, target)
		if err != nil {
			return nil, err
		}
		if err := moveDir(dir, name, target); err != nil {
			return nil, fmt.Errorf("move %s to %s, where a link of the layers below leads: %w", name, target, err)
		}
		moves[name] = target
		names = append(names, made...)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// moved returns where a path is after the moves so far.
func moved(moves map[string]string, name string) string {
	for prefix := name; prefix != "."; prefix = filepath.Dir(prefix) {
		if target, found := moves[prefix]; found {
			return filepath.Join(target, strings.TrimPrefix(name, prefix))
		}
	}
	return name
}

// checkTarget refuses a link to something that cannot hold the files.
func checkTarget(name, target string, below chain) error {
	if target == "" || target == name || strings.HasPrefix(target, name+"/") {
		return fmt.Errorf("%s is a link to %q in the layers below, and a directory in this one: %w", name, "/"+target, errdefs.ErrInvalidArgument)
	}
	n, found, err := below.lookup(target)
	if err == nil && found && !n.is(unix.S_IFDIR) {
		err = fmt.Errorf("%s is a link to %q in the layers below, which is no directory: %w", name, "/"+target, errdefs.ErrInvalidArgument)
	}
	return err
}

// makeDirs makes the directories of a path that the layer does not have, and
// returns them.
func makeDirs(dir, name string) (made []string, err error) {
	path := ""
	for part := range strings.SplitSeq(name, "/") {
		path = filepath.Join(path, part)
		err := keepTimes(filepath.Join(dir, filepath.Dir(path)), func() error {
			return os.Mkdir(filepath.Join(dir, path), 0o755) //nolint:gosec // a directory of the image, for its users
		})
		if errors.Is(err, os.ErrExist) {
			info, err := os.Lstat(filepath.Join(dir, path))
			if err == nil && !info.IsDir() {
				err = fmt.Errorf("%s is no directory in this layer: %w", path, errdefs.ErrInvalidArgument)
			}
			if err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		made = append(made, path)
	}
	return made, nil
}

// moveDir moves all that is in one directory of a layer to another.
func moveDir(dir, from, to string) error {
	return keepTimes(filepath.Join(dir, filepath.Dir(from)), func() error {
		return merge(filepath.Join(dir, from), filepath.Join(dir, to))
	})
}

// merge moves the content of a directory into another and removes the first.
func merge(from, to string) error {
	opaque, err := isOpaque(from)
	if err != nil {
		return err
	}
	if opaque {
		if err := unix.Lsetxattr(to, opaqueXattr, []byte{'y'}, 0); err != nil {
			return &os.PathError{Op: "lsetxattr", Path: to, Err: err}
		}
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	err = keepTimes(to, func() error {
		for _, e := range entries {
			if err := mergeEntry(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return os.Remove(from)
}

// mergeEntry moves one file. Of a file and a whiteout the file stays; two
// directories become one; anything else that meets is a contradiction.
func mergeEntry(from, to string) error {
	src, dst := node{path: from}, node{path: to}
	if err := unix.Lstat(from, &src.st); err != nil {
		return &os.PathError{Op: "lstat", Path: from, Err: err}
	}
	switch err := unix.Lstat(to, &dst.st); {
	case errors.Is(err, unix.ENOENT):
		return os.Rename(from, to)
	case err != nil:
		return &os.PathError{Op: "lstat", Path: to, Err: err}
	case src.whiteout():
		return os.Remove(from)
	case dst.whiteout():
		if err := os.Remove(to); err != nil {
			return err
		}
		return os.Rename(from, to)
	case src.is(unix.S_IFDIR) && dst.is(unix.S_IFDIR):
		return merge(from, to)
	default:
		return fmt.Errorf("the layer has two files for %s: %w", filepath.Base(to), errdefs.ErrInvalidArgument)
	}
}

// keepTimes runs do, and gives dir the times back that it had before.
func keepTimes(dir string, do func() error) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if err := do(); err != nil {
		return err
	}
	return setTimes(dir, st)
}
