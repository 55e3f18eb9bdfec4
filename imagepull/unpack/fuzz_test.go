// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/coffer-cc/coffer/imagepull/unpack"
)

// FuzzApply unpacks any stream: it ends, the facts are right, and nothing
// outside the directory changes.
func FuzzApply(f *testing.F) {
	requireRoot(f)
	f.Add(tarOf(f, dir("a", 0o755), file("a/b", "x"), link(tar.TypeLink, "c", "a/b"), file("a/.wh.b", "")))
	f.Add(tarOf(f, link(tar.TypeSymlink, "l", "../.."), file("l/x", "y"), file(".wh.l", ""), dir("l", 0o700)))
	for _, entries := range hostile() {
		f.Add(tarOf(f, entries...))
	}
	for _, tc := range raw() {
		if len(tc.stream) < 16<<10 {
			f.Add(tc.stream)
		}
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		jail := t.TempDir()
		root := filepath.Join(jail, "root")
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		facts, err := unpack.New(unpack.Options{MaxEntries: 100, MaxBytes: 1 << 20}).Apply(t.Context(), root, bytes.NewReader(stream))
		if names, readErr := os.ReadDir(jail); readErr != nil || len(names) != 1 {
			t.Errorf("beside the directory there is something: %v, error %v", names, readErr)
		}
		if err != nil {
			return
		}
		measured(t, root, facts)
		for _, name := range facts.Implicit {
			if info, err := os.Lstat(filepath.Join(root, name)); err != nil || !info.IsDir() {
				t.Errorf("implicit directory %q: %v", name, err)
			}
		}
	})
}

// FuzzOracle makes entries of the bytes, three for each, of few names, so that
// they meet: the result is containerd's.
func FuzzOracle(f *testing.F) {
	requireRoot(f)
	f.Add([]byte{0, 1, 0, 1, 8, 0, 2, 3, 1, 3, 2, 9})
	f.Add([]byte("a link, a file through it, the link anew, a file through it"))
	f.Fuzz(func(t *testing.T, script []byte) {
		entries := scripted(script)
		c := compete(t.Context(), t, t.TempDir(), tarOf(t, entries...))
		if c.oursErr != nil || c.theirsErr != nil {
			// Where containerd ends for the times of a directory that has gone,
			// coffer does not.
			if c.oursErr != nil && c.theirsErr == nil {
				t.Errorf("%s\ncoffer ends with %v", told(entries), c.oursErr)
			}
			return
		}
		for _, tree := range []map[string]state{c.ours, c.theirs} {
			comparable(tree)
		}
		if diff := cmp.Diff(c.theirs, c.ours); diff != "" {
			t.Errorf("%s\n-containerd +coffer %s", told(entries), diff)
		}
		measured(t, c.dir, c.facts)
	})
}

// comparable removes what the table of differences lists: times of directories,
// and marks on those that replace a file.
func comparable(tree map[string]state) {
	for name, s := range tree {
		delete(s.Xattrs, "trusted.overlay.opaque")
		if len(s.Xattrs) == 0 {
			s.Xattrs = nil
		}
		s.Mtime, s.Atime = unix.Timespec{}, unix.Timespec{}
		tree[name] = s
	}
}

func scripted(script []byte) []entry {
	names := []string{"a", "b", "c", "a/b", "b/a", "a/b/c", "c/../a", "../b", "/c/a", "b/c/a", "a/a", "./b/b"}
	targets := []string{"a", "b", "c", "/", ".", "/a", "/a/b", "a/b", "b/c", "/c"}
	var entries []entry
	for ; len(script) >= 3 && len(entries) < 30; script = script[3:] {
		name, other := names[int(script[1])%len(names)], int(script[2])
		var e entry
		switch script[0] % 6 {
		case 0, 1:
			e = owned(file(name, fmt.Sprint("content ", len(entries))), other%3, other%4, []int64{0o644, 0o4755, 0o2711, 0o600}[other%4])
		case 2:
			e = owned(dir(name, 0), other%3, other%4, []int64{0o755, 0o1777, 0o700}[other%3])
		case 3:
			e = link(tar.TypeSymlink, name, targets[other%len(targets)])
		case 4:
			e = owned(link(tar.TypeLink, name, names[other%len(names)]), other%2, 0, 0o640)
		case 5:
			e = entry{Header: tar.Header{Typeflag: tar.TypeFifo, Name: name, Mode: 0o600}}
		}
		entries = append(entries, e)
	}
	return entries
}

// told writes entries for people.
func told(entries []entry) string {
	var b strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&b, "%c %s %s\n", e.Typeflag, e.Name, e.Linkname)
	}
	return b.String()
}
