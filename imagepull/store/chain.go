// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	opaqueXattr = "trusted.overlay.opaque"

	// maxLinks is how many symbolic links one path may lead through.
	maxLinks = 255
)

// A chain is a stack of layers as overlayfs would merge them: their
// directories, the uppermost first. Paths in it are relative, and no lookup
// follows a symbolic link, so none leads outside.
type chain []string

// A node is a file of a chain.
type node struct {
	path string // in the layer that provides it
	st   unix.Stat_t
}

func (n node) is(fileType uint32) bool { return n.st.Mode&unix.S_IFMT == fileType }

// whiteout reports whether the node only hides a file of the layers below.
func (n node) whiteout() bool { return n.is(unix.S_IFCHR) && n.st.Rdev == 0 }

// lookup returns what the chain has at a path, and false for nothing.
func (c chain) lookup(name string) (node, bool, error) {
	for _, root := range c {
		n, verdict, err := lookupIn(root, name)
		if err != nil || verdict != passes {
			return n, verdict == provides, err
		}
	}
	return node{}, false, nil
}

// A verdict is what one layer says about a path.
type verdict int

const (
	passes   verdict = iota // nothing: ask the layer below
	provides                // it has the file
	hides                   // there is no such file, whatever is below
)

func lookupIn(root, name string) (node, verdict, error) {
	absent := passes
	n := node{path: root}
	for part := range strings.SplitSeq(name, "/") {
		if opaque, err := isOpaque(n.path); err != nil {
			return node{}, hides, err
		} else if opaque {
			absent = hides
		}
		n.path = filepath.Join(n.path, part)
		err := unix.Lstat(n.path, &n.st)
		switch {
		case errors.Is(err, unix.ENOENT):
			return node{}, absent, nil
		case errors.Is(err, unix.ENOTDIR) || err == nil && n.whiteout():
			return node{}, hides, nil
		case err != nil:
			return node{}, hides, &os.PathError{Op: "lstat", Path: n.path, Err: err}
		case n.is(unix.S_IFLNK) && len(n.path)-len(root)-1 < len(name):
			return node{}, hides, nil // what is behind the link is another path
		}
	}
	return n, provides, nil
}

// isOpaque reports whether a directory hides what the layers below have in it.
func isOpaque(dir string) (bool, error) {
	var value [1]byte
	n, err := unix.Lgetxattr(dir, opaqueXattr, value[:])
	switch {
	case err == nil:
		return n == 1 && value[0] == 'y', nil
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.ERANGE):
		return false, nil
	default:
		return false, &os.PathError{Op: "lgetxattr", Path: dir, Err: err}
	}
}

// resolve follows the symbolic links in a path, as a process would whose root
// directory is the merged chain. What is not there is taken as it is written.
func (c chain) resolve(name string) (string, error) {
	done, rest := "", name
	for links := 0; rest != ""; {
		part, after, _ := strings.Cut(rest, "/")
		rest = after
		switch part {
		case "", ".":
			continue
		case "..":
			done = strings.TrimPrefix(filepath.Dir("/"+done), "/")
			continue
		}
		next := filepath.Join(done, part)
		n, found, err := c.lookup(next)
		if err != nil {
			return "", err
		}
		if !found || !n.is(unix.S_IFLNK) {
			done = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("%s leads through more than %d symbolic links: %w", name, maxLinks, errdefs.ErrInvalidArgument)
		}
		target, err := os.Readlink(n.path)
		if err != nil {
			return "", err
		}
		if strings.HasPrefix(target, "/") {
			done = ""
		}
		rest = target + "/" + rest
	}
	return done, nil
}
