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

// inherit gives the directories that a layer uses without listing them what they
// have in the layers below. A layer is unpacked without those, so that all of an
// image unpack side by side.
func inherit(ctx context.Context, dir string, implicit []string, below chain) error {
	if len(below) == 0 {
		return nil
	}
	for _, name := range implicit {
		if !filepath.IsLocal(name) || filepath.Clean(name) != name {
			return fmt.Errorf("implicit directory %q is not a path in the layer: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	names, err := relocate(ctx, dir, slices.Sorted(slices.Values(implicit)), below)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if hidden, err := hidden(dir, name); err != nil {
			return err
		} else if hidden {
			continue
		}
		n, found, err := below.lookup(name)
		if err != nil {
			return err
		}
		if !found || !n.is(unix.S_IFDIR) {
			continue // the layer made it
		}
		if err := copyAttributes(n, filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("directory %s: %w", name, err)
		}
	}
	return nil
}

// hidden reports whether a layer itself hides what the layers below have at a
// path, by an opaque directory above it. Then they have nothing to give.
func hidden(dir, name string) (bool, error) {
	for above := filepath.Dir(name); above != "."; above = filepath.Dir(above) {
		if opaque, err := isOpaque(filepath.Join(dir, above)); err != nil || opaque {
			return opaque, err
		}
	}
	return false, nil
}

// copyAttributes gives a directory the owner, mode, extended attributes and
// times of another.
func copyAttributes(from node, to string) error {
	if err := os.Lchown(to, int(from.st.Uid), int(from.st.Gid)); err != nil {
		return err
	}
	if err := copyXattrs(from.path, to); err != nil {
		return err
	}
	// After the owner, whose change takes the setuid and setgid bits away.
	if err := unix.Chmod(to, from.st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: to, Err: err}
	}
	return setTimes(to, from.st)
}

func setTimes(path string, st unix.Stat_t) error {
	err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return &os.PathError{Op: "utimensat", Path: path, Err: err}
	}
	return nil
}

// copyXattrs copies extended attributes, without those by which overlayfs marks
// a directory of one layer.
func copyXattrs(from, to string) error {
	names, err := listXattrs(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, "trusted.") {
			continue
		}
		value, err := getXattr(from, name)
		if err != nil {
			return err
		}
		if err := unix.Lsetxattr(to, name, value, 0); err != nil {
			return &os.PathError{Op: "lsetxattr " + name, Path: to, Err: err}
		}
	}
	return nil
}

func listXattrs(path string) ([]string, error) {
	b, err := grow(func(b []byte) (int, error) { return unix.Llistxattr(path, b) })
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "llistxattr", Path: path, Err: err}
	}
	return slices.DeleteFunc(strings.Split(string(b), "\x00"), func(name string) bool { return name == "" }), nil
}

func getXattr(path, name string) ([]byte, error) {
	b, err := grow(func(b []byte) (int, error) { return unix.Lgetxattr(path, name, b) })
	if err != nil {
		return nil, &os.PathError{Op: "lgetxattr " + name, Path: path, Err: err}
	}
	return b, nil
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
