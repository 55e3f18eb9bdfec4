// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-cc/coffer/imagepull/unpack"
)

// A path of the length that Linux can open is made, and a longer one refused,
// also where a link makes it longer than the name in the tar.
func TestLongPaths(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	base, done := freshTmpfs(t)
	defer done()
	longest, root := strings.Repeat("d/", 2047)+"x", filepath.Join(base, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	facts := mustStream(t, root, tarOf(t, file(longest, "x"), file("y", ""), link(tar.TypeLink, longest[:4094]+"h", "y")))
	if len(longest) != 4095 || len(facts.Implicit) != 2047 || facts.Inodes != 2050 {
		t.Errorf("%d directories, %d inodes", len(facts.Implicit), facts.Inodes)
	}
	opened, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	var st unix.Stat_t
	if err := unix.Fstatat(int(opened.Fd()), longest, &st, 0); err != nil || st.Size != 1 {
		t.Error(err)
	}
	for name, e := range map[string]entry{
		"file":      file("l/xy", ""),
		"directory": file("l/d/y", ""),
		"whiteout":  file("l/.wh.xy", ""),
	} {
		root := filepath.Join(base, name)
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		stream := tarOf(t, dir(longest[:4093], 0o755), link(tar.TypeSymlink, "l", longest[:4093]), e)
		_, err := unpack.New(unpack.Options{}).Apply(t.Context(), root, bytes.NewReader(stream))
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "4095") {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}

// A link that leads to long paths over and over costs no more than its length.
func TestLinksCost(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	entries := []entry{link(tar.TypeSymlink, "l", strings.Repeat("./", 2000))}
	for i := range 100 {
		entries = append(entries, file(fmt.Sprintf("l/f%d", i), ""), file(fmt.Sprintf("f%d", i), ""))
	}
	_, err := unpack.New(unpack.Options{MaxMetadata: 100_000}).Apply(t.Context(), t.TempDir(), bytes.NewReader(tarOf(t, entries...)))
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "max_metadata") {
		t.Errorf("error is %v", err)
	}
}

// A directory with more files than the kernel lists at once, replaced.
func TestRemoveMany(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	base, done := freshTmpfs(t)
	defer done()
	var entries []entry
	for i := range 10_000 {
		entries = append(entries, file(fmt.Sprintf("d/a file with a name that is not short, number %d", i), "x"))
	}
	entries = append(entries, file("d", "x"), file("e", "y"))
	root := filepath.Join(base, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	facts := mustStream(t, root, tarOf(t, entries...))
	measured(t, root, facts)
	if facts.Inodes != 3 {
		t.Errorf("%d inodes are left", facts.Inodes)
	}
}

// Descriptors are given back, after errors too.
func TestDescriptors(t *testing.T) { //nolint:paralleltest // it counts those of the process
	requireRoot(t)
	count := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	before := count()
	for _, stream := range [][]byte{
		tarOf(t, files("a", 300)...),
		tarOf(t, append(files("a", 300), file("a", "x"), dir("a", 0o755), file("a/x", "x"))...),
		tarOf(t, append(files("a", 300), file("a/d1/f1/x", "x"))...),
		tarOf(t, files("a", 300)...)[:200<<10],
		tarOf(t, file("a/b", strings.Repeat("x", 1<<20)))[:100<<10],
	} {
		_, err := unpack.New(unpack.Options{}).Apply(t.Context(), t.TempDir(), bytes.NewReader(stream))
		if now := count(); now != before {
			t.Errorf("%d descriptors, were %d; error %v", now, before, err)
		}
	}
}

// Too many open files are no fault of the layer.
func TestNoDescriptors(t *testing.T) { //nolint:paralleltest // it changes a limit of the process
	requireRoot(t)
	stream, root := tarOf(t, files("a", 300)...), t.TempDir()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 30, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	_, err := unpack.New(unpack.Options{}).Apply(t.Context(), root, bytes.NewReader(stream))
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, unix.EMFILE) || errdefs.IsInvalidArgument(err) || errdefs.IsFailedPrecondition(err) {
		t.Errorf("error is %v", err)
	}
}

// Modes do not depend on the umask of the process.
func TestUmask(t *testing.T) { //nolint:paralleltest // the umask is the process's
	requireRoot(t)
	defer unix.Umask(unix.Umask(0o077))
	for _, name := range []string{"modes", "setgid directory", "access lists", "devices", "owned links", "deep"} {
		judge(t, tarOf(t, odd()[name]...), "")
	}
	for _, umask := range []int{0, 0o777} {
		unix.Umask(umask)
		judge(t, tarOf(t, odd()["modes"]...), "")
	}
}

// What the file system cannot hold is an error that names the entry.
func TestUnable(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	ramfs := func(t testing.TB) (string, func()) {
		dir := t.TempDir()
		if err := unix.Mount("ramfs", dir, "ramfs", 0, ""); err != nil {
			skip(t, "root", "there is no ramfs, which has no extended attributes")
		}
		return dir, func() {
			if err := unmount(dir); err != nil {
				t.Error(err)
			}
		}
	}
	big := strings.Repeat("x", 10_000)
	for name, tc := range map[string]struct {
		fresh func(testing.TB) (string, func())
		entry entry
	}{
		"user":        {ramfs, attr(file("name", "x"), "user.x", "1")},
		"user, dir":   {ramfs, attr(dir("name", 0o755), "user.x", "1")},
		"capability":  {ramfs, attr(file("name", "x"), "security.capability", capability)},
		"access list": {ramfs, attr(file("name", "x"), "system.posix_acl_access", accessList)},
		"opaque":      {ramfs, file("name/.wh..wh..opq", "")},
		"unknown":     {freshTmpfs, attr(file("name", "x"), "system.nfs4_acl", "1")},
		"too big":     {freshExt4, attr(file("name", "x"), "user.x", big)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base, done := tc.fresh(t)
			defer done()
			root := filepath.Join(base, "root")
			if err := os.Mkdir(root, 0o755); err != nil {
				t.Fatal(err)
			}
			_, err := unpack.New(unpack.Options{}).Apply(t.Context(), root, bytes.NewReader(tarOf(t, tc.entry)))
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), `"name`) || errors.Is(err, unix.ENOSPC) {
				t.Errorf("error is %v", err)
			}
		})
	}
}

// Attributes that are left out are told, once for a layer.
func TestIgnored(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	var log bytes.Buffer
	opts := unpack.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}
	stream := tarOf(t, attr(file("f", ""), "trusted.x", "1"), attr(file("g", ""), "com.apple.x", "1"), attr(link(tar.TypeSymlink, "l", "f"), "user.x", "1"))
	if _, err := unpack.New(opts).Apply(t.Context(), t.TempDir(), bytes.NewReader(stream)); err != nil {
		t.Fatal(err)
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "count=3") || !strings.Contains(got, "trusted.x") {
		t.Errorf("log is %q", got)
	}
}

// Errors say which entry it was.
func TestErrorsNameEntry(t *testing.T) {
	t.Parallel()
	for _, e := range []entry{
		file("first/culprit", ""), link(tar.TypeLink, "culprit", "none"), link(tar.TypeLink, "culprit", "."),
		owned(file("culprit", ""), 1<<40, 0, 0), file(".wh.", "culprit"),
		{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "culprit", Devmajor: 5000}},
	} {
		_, _, err := apply(t, file("first", ""), e)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), e.Name) {
			t.Errorf("error is %v", err)
		}
	}
}

// No inodes left is a full disk.
func TestNoInodes(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "nr_inodes=50"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unmount(dir); err != nil {
			t.Error(err)
		}
	}()
	_, err := unpack.New(unpack.Options{}).Apply(t.Context(), dir, bytes.NewReader(tarOf(t, files("a", 300)...)))
	if !errors.Is(err, unix.ENOSPC) || errdefs.IsInvalidArgument(err) || errdefs.IsFailedPrecondition(err) {
		t.Errorf("error is %v", err)
	}
}

// Removing a large directory ends with the context.
func TestCancelRemoval(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	ctx, cancel := context.WithCancel(t.Context())
	stream := tarOf(t, append(files("a", 500), file("a", ""))...)
	r := &cancelling{Reader: bytes.NewReader(stream), cancel: cancel, at: len(stream) - 2048}
	if _, err := unpack.New(unpack.Options{}).Apply(ctx, t.TempDir(), r); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

// cancelling cancels once it has been read to a place.
type cancelling struct {
	*bytes.Reader
	cancel func()
	at     int
}

func (c *cancelling) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if int(c.Size())-c.Len() >= c.at {
		c.cancel()
	}
	return n, err
}
