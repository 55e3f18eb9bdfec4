// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// machineTrees are directories of this machine that images have too, those of
// language runtimes with many small files first.
func machineTrees() []string {
	patterns := []string{
		"/usr/lib/python3*", "/usr/lib/node_modules", "/usr/local/lib/node_modules",
		"/usr/lib/git-core", "/etc", "/usr/bin", "/usr/share", "/usr/lib",
	}
	var trees []string
	for _, pattern := range patterns {
		found, _ := filepath.Glob(pattern) // the patterns are right
		trees = append(trees, found...)
	}
	return trees
}

// errEnough ends a walk.
var errEnough = errors.New("enough")

// machineTar is a tar of what this machine has, up to a number of files and of
// bytes, without files above a size.
// A machine with less than a tenth of the files is no use, and skips.
func machineTar(t testing.TB, maxFiles int, maxBytes, maxSize int64) []byte {
	t.Helper()
	var buf bytes.Buffer
	n := writeTrees(t, &buf, machineTrees(), treeTar{maxFiles: maxFiles, maxBytes: maxBytes, maxSize: maxSize})
	if n < maxFiles/10 {
		skip(t, "root", "this machine has no tree of tens of thousands of files")
	}
	t.Logf("a tar of %d files, %d bytes", n, buf.Len())
	return buf.Bytes()
}

// writeTrees writes a tar of directories, up to the limits of b, and returns
// how many files are in it.
func writeTrees(t testing.TB, w io.Writer, trees []string, b treeTar) int {
	t.Helper()
	b.links, b.w = make(map[uint64]string), tar.NewWriter(w)
	seen := []string{}
	for _, tree := range trees {
		err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
			if err != nil || slices.Contains(seen, path) {
				return fs.SkipDir
			}
			return b.add(path, d)
		})
		if errors.Is(err, errEnough) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, tree)
	}
	if err := b.w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.files
}

type treeTar struct {
	w                        *tar.Writer
	links                    map[uint64]string
	files, maxFiles          int
	bytes, maxBytes, maxSize int64
}

func (b *treeTar) add(path string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil || info.Mode()&os.ModeSocket != 0 {
		return nil //nolint:nilerr // it has gone meanwhile
	}
	if info.Mode().IsRegular() && info.Size() > b.maxSize {
		return nil
	}
	if b.files >= b.maxFiles || b.bytes >= b.maxBytes {
		return errEnough
	}
	target := ""
	if info.Mode()&os.ModeSymlink != 0 {
		if target, err = os.Readlink(path); err != nil {
			return nil //nolint:nilerr // it has gone meanwhile
		}
	}
	hdr, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	hdr.Name, hdr.Format = strings.TrimPrefix(path, "/"), tar.FormatPAX
	if d.IsDir() {
		hdr.Name += "/"
	}
	var content []byte
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil //nolint:nilerr // it has gone meanwhile
	}
	switch first, known := b.links[st.Ino]; {
	case !info.Mode().IsRegular():
	case known:
		hdr.Typeflag, hdr.Linkname, hdr.Size = tar.TypeLink, first, 0
	default:
		if content, err = os.ReadFile(path); err != nil {
			return nil //nolint:nilerr // it cannot be read
		}
		hdr.Size = int64(len(content))
		if st.Nlink > 1 {
			b.links[st.Ino] = hdr.Name
		}
	}
	if value, err := getxattr(path, "security.capability"); err == nil && info.Mode().IsRegular() {
		hdr.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": string(value)}
	}
	b.files, b.bytes = b.files+1, b.bytes+int64(len(content))
	if err := b.w.WriteHeader(hdr); err != nil {
		return err
	}
	_, err = io.Copy(b.w, bytes.NewReader(content))
	return err
}

func getxattr(path, name string) ([]byte, error) {
	b := make([]byte, 64<<10)
	n, err := unix.Lgetxattr(path, name, b)
	return b[:max(n, 0)], err
}
