// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack_test

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What real trees are unpacked to is what containerd makes of them, without any
// difference, and takes the space that it is said to take.
func TestOracleTrees(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	for name, tc := range map[string]struct {
		tar     func(testing.TB) string
		grounds []ground
		least   map[string]int // so many of a kind, or the tree shows little
	}{
		"debian":  {debianTar, grounds(), map[string]int{"files": 5_000, "links": 500, "hard links": 1, "set-id": 5, "devices": 5, "attributes": 1}},
		"runtime": {runtimeTar, []ground{{"ext4", freshExt4}}, map[string]int{"files": 20_000, "links": 1}}, // one, for the time it takes
	} {
		t.Run(name, func(t *testing.T) {
			path := tc.tar(t)
			for _, g := range tc.grounds {
				t.Run(g.name, func(t *testing.T) {
					base, done := g.fresh(t)
					defer done()
					start := time.Now()
					c := competeOn(t.Context(), t, base, func() io.Reader { return opened(t, path) })
					if c.oursErr != nil || c.theirsErr != nil {
						t.Fatal(c.oursErr, c.theirsErr)
					}
					if diff := c.diff(); diff != "" {
						t.Errorf("-containerd +coffer %.4000s", diff)
					}
					measured(t, c.dir, c.facts)
					got := kinds(c.ours)
					for kind, n := range tc.least {
						if got[kind] < n {
							t.Errorf("the tree has %d %s, which is too few to show anything", got[kind], kind)
						}
					}
					t.Logf("%v in %v", got, time.Since(start))
				})
			}
		})
	}
}

// kinds counts what is in a tree.
func kinds(tree map[string]state) map[string]int {
	n := make(map[string]int)
	for _, s := range tree {
		n["files"]++
		switch kind := s.Mode & unix.S_IFMT; {
		case kind == unix.S_IFLNK:
			n["links"]++
		case kind == unix.S_IFCHR || kind == unix.S_IFBLK:
			n["devices"]++
		case kind == unix.S_IFREG && s.Links > 1:
			n["hard links"]++
		}
		if s.Mode&0o6000 != 0 {
			n["set-id"]++
		}
		if len(s.Xattrs) > 0 {
			n["attributes"]++
		}
	}
	return n
}

func opened(t testing.TB, path string) io.Reader {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return bufio.NewReaderSize(f, 256<<10)
}

// runtimeTar is a tar of language runtimes, whole: Go's first, which is there
// wherever this test is built, and then more until it is tens of thousands of
// files.
func runtimeTar(t testing.TB) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT", "GOMODCACHE").Output()
	if err != nil {
		skip(t, "go", "there is no Go toolchain: "+err.Error())
	}
	roots := strings.Fields(string(out))
	trees := roots[:1]
	for _, pattern := range []string{"/usr/lib/python3*", "/usr/lib/node_modules", filepath.Join(roots[1], "golang.org"), filepath.Join(roots[1], "github.com")} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		trees = append(trees, found...)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "runtime.tar"))
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriterSize(f, 256<<10)
	n := writeTrees(t, w, trees, treeTar{maxFiles: 25_000, maxBytes: math.MaxInt64, maxSize: math.MaxInt64})
	if err := errors.Join(w.Flush(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if n < 20_000 {
		skip(t, "go", "this machine's runtimes have no tens of thousands of files")
	}
	return f.Name()
}

// debianTar is a tar of a Debian root file system, with device nodes, set-id
// programs and one that has a capability. It is made of packages once, and kept
// in the checkout's cache folder.
func debianTar(t testing.TB) string {
	t.Helper()
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		skip(t, "debian", "there is no mmdebstrap")
	}
	const codename = "bookworm"
	dir := filepath.Join("..", "..", ".cache", "unpack")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil { // another run may be making it
		t.Fatal(err)
	}
	path := filepath.Join(dir, codename+"-"+runtime.GOARCH+".tar")
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return path
	}
	unfinished := filepath.Join(dir, "new.tar")
	if err := os.Remove(unfinished); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a run that was killed
		t.Fatal(err)
	}
	args := append([]string{"--variant=minbase", "--quiet", "--include=ca-certificates,iputils-ping,libcap2-bin", codename, unfinished}, packageSources(codename)...)
	if out, err := exec.CommandContext(t.Context(), "mmdebstrap", args...).CombinedOutput(); err != nil {
		skip(t, "debian", "a Debian cannot be made of packages: "+err.Error()+": "+string(out))
	}
	if err := os.Rename(unfinished, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// packageSources lists the files of this machine's package sources that are
// Debian's own for a release; there may be none, and then mmdebstrap knows one.
func packageSources(codename string) []string {
	var all []string
	for _, pattern := range []string{"/etc/apt/sources.list", "/etc/apt/sources.list.d/*.list", "/etc/apt/sources.list.d/*.sources"} {
		found, _ := filepath.Glob(pattern) // the patterns are right
		all = append(all, found...)
	}
	return slices.DeleteFunc(all, func(path string) bool {
		b, err := os.ReadFile(path)
		if err != nil {
			return true
		}
		for line := range strings.Lines(string(b)) {
			words := strings.Fields(line)
			if len(words) > 1 && (words[0] == "deb" || words[0] == "Suites:") && slices.Contains(words[1:], codename) {
				return false
			}
		}
		return true
	})
}
