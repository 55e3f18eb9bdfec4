// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/coffer-cc/coffer/imagepull/unpack"
)

func requireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	skip(t, "root", "unpacking layers needs root: owners, devices and trusted attributes")
}

// mtime is when all entries were last modified.
func mtime() time.Time { return time.Date(2024, 2, 3, 4, 5, 6, 789, time.UTC) }

// An entry is one member of a test's tar stream.
type entry struct {
	tar.Header
	body string
}

func dir(name string, mode int64) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}}
}

func file(name, body string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, body: body}
}

func link(kind byte, name, target string) entry {
	return entry{Header: tar.Header{Typeflag: kind, Name: name, Linkname: target, Mode: 0o777}}
}

func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		e.Size = int64(len(e.body))
		if e.ModTime.IsZero() {
			e.ModTime = mtime()
		}
		switch {
		case e.Typeflag == tar.TypeXGlobalHeader:
			e.ModTime = time.Time{}
		case e.Format == tar.FormatUnknown:
			e.Format = tar.FormatPAX
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// apply unpacks entries into a directory inside a jail, so that what escapes
// the directory shows up in the jail.
func apply(t *testing.T, entries ...entry) (root string, facts unpack.Facts, err error) {
	t.Helper()
	requireRoot(t)
	root = filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	facts, err = unpack.New(unpack.Options{}).Apply(t.Context(), root, bytes.NewReader(tarOf(t, entries...)))
	return root, facts, err
}

func mustApply(t *testing.T, entries ...entry) (root string, facts unpack.Facts) {
	t.Helper()
	root, facts, err := apply(t, entries...)
	if err != nil {
		t.Fatal(err)
	}
	return root, facts
}

// list describes all files in a tree.
func list(t *testing.T, root string) []string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		lines = append(lines, name+" "+describe(t, path))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func describe(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if xattr(t, path, "trusted.overlay.opaque") == "y" {
			return "opaque dir"
		}
		return "dir"
	case unix.S_IFREG:
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("file %q", b)
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			t.Fatal(err)
		}
		return "-> " + target
	case unix.S_IFCHR:
		if st.Rdev == 0 {
			return "whiteout"
		}
		return fmt.Sprintf("char %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	case unix.S_IFBLK:
		return fmt.Sprintf("block %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	case unix.S_IFIFO:
		return "fifo"
	default:
		return "other"
	}
}

func xattr(t *testing.T, path, name string) string {
	t.Helper()
	b := make([]byte, 256)
	n, err := unix.Lgetxattr(path, name, b)
	if errors.Is(err, unix.ENODATA) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestTree(t *testing.T) {
	t.Parallel()
	device := entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3}}
	block := entry{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "dev/loop0", Mode: 0o660, Devmajor: 7}}
	fifo := entry{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "dev/fifo", Mode: 0o600}}
	global := entry{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "etc/passwd", PAXRecords: map[string]string{"comment": "x"}}}
	root, facts := mustApply(t,
		dir("./", 0o700), dir("etc/", 0o755), file("etc/passwd", "root"), global,
		dir("dev", 0o755), device, block, fifo,
		link(tar.TypeSymlink, "etc/abs", "/etc/passwd"), link(tar.TypeSymlink, "etc/out", "../../../outside"),
		link(tar.TypeLink, "etc/hard", "etc/passwd"), link(tar.TypeLink, "etc/hard2", "/etc/passwd"),
		link(tar.TypeLink, "etc/hardsym", "etc/out"),
		file("replaced", "old"), file("replaced", "new"),
		file("wasdir/x", "x"), file("wasdir", "now a file"),
	)
	want := []string{
		"dev dir", "dev/fifo fifo", "dev/loop0 block 7:0", "dev/null char 1:3",
		"etc dir", "etc/abs -> /etc/passwd", `etc/hard file "root"`, `etc/hard2 file "root"`,
		"etc/hardsym -> ../../../outside", "etc/out -> ../../../outside", `etc/passwd file "root"`,
		`replaced file "new"`, `wasdir file "now a file"`,
	}
	if diff := cmp.Diff(want, list(t, root)); diff != "" {
		t.Error(diff)
	}
	// 13 names and the root, less two hard links to a file and one to a symlink.
	if facts.Inodes != 11 || facts.Implicit != nil {
		t.Errorf("facts are %+v", facts)
	}
	if info, err := os.Stat(root); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the root is %v, error %v", info.Mode(), err)
	}
}

func TestAttributes(t *testing.T) {
	t.Parallel()
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	suid := file("bin/suid", "x")
	suid.Mode, suid.Uid, suid.Gid = 0o6755, 100_000, 4_000_000
	suid.AccessTime = mtime().Add(time.Hour)
	suid.PAXRecords = map[string]string{
		"SCHILY.xattr.user.note":              "hello",
		"SCHILY.xattr.security.capability":    capability,
		"SCHILY.xattr.trusted.overlay.opaque": "y",
	}
	sticky := dir("bin", 0o3777)
	sticky.Uid = 7
	root, _ := mustApply(t, sticky, suid, file("bin/later", "changes the times of bin"))

	var st unix.Stat_t
	path := filepath.Join(root, "bin/suid")
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Mode&0o7777 != 0o6755 || st.Uid != 100_000 || st.Gid != 4_000_000 {
		t.Errorf("mode %o, owner %d:%d", st.Mode, st.Uid, st.Gid)
	}
	if got := time.Unix(st.Mtim.Unix()); !got.Equal(mtime()) {
		t.Errorf("modified %v, want %v", got, mtime())
	}
	if got := time.Unix(st.Atim.Unix()); !got.Equal(suid.AccessTime) {
		t.Errorf("accessed %v, want %v", got, suid.AccessTime)
	}
	if got := xattr(t, path, "user.note"); got != "hello" {
		t.Errorf("user.note is %q", got)
	}
	if got := xattr(t, path, "security.capability"); got != capability {
		t.Errorf("capability is %q", got)
	}
	if got := xattr(t, path, "trusted.overlay.opaque"); got != "" {
		t.Errorf("a layer has set an attribute of overlayfs to %q", got)
	}
	if err := unix.Lstat(filepath.Join(root, "bin"), &st); err != nil {
		t.Fatal(err)
	}
	if got := time.Unix(st.Mtim.Unix()); st.Mode&0o7777 != 0o3777 || st.Uid != 7 || !got.Equal(mtime()) {
		t.Errorf("directory has mode %o, owner %d, modified %v", st.Mode, st.Uid, got)
	}
}

func TestWhiteouts(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		entries []entry
		want    []string
	}{
		"file":              {[]entry{dir("a", 0o755), file("a/.wh.x", "")}, []string{"a dir", "a/x whiteout"}},
		"at root":           {[]entry{file(".wh.x", "")}, []string{"x whiteout"}},
		"opaque":            {[]entry{dir("a", 0o755), file("a/.wh..wh..opq", ""), file("a/x", "")}, []string{"a opaque dir", `a/x file ""`}},
		"opaque first":      {[]entry{file("a/.wh..wh..opq", ""), dir("a", 0o755)}, []string{"a opaque dir"}},
		"before file":       {[]entry{file(".wh.x", ""), file("x", "1")}, []string{`x file "1"`}},
		"after file":        {[]entry{file("x", "1"), file(".wh.x", "")}, []string{`x file "1"`}},
		"before dir":        {[]entry{file(".wh.x", ""), dir("x", 0o755)}, []string{"x opaque dir"}},
		"after dir":         {[]entry{dir("x", 0o755), file("x/y", ""), file(".wh.x", "")}, []string{"x opaque dir", `x/y file ""`}},
		"before silent dir": {[]entry{file(".wh.x", ""), file("x/y/z", "")}, []string{"x opaque dir", "x/y dir", `x/y/z file ""`}},
		"twice":             {[]entry{file(".wh.x", ""), file(".wh.x", "")}, []string{"x whiteout"}},
		"dir, then file":    {[]entry{file(".wh.x", ""), dir("x", 0o755), file("x", "1")}, []string{`x file "1"`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root, _ := mustApply(t, tc.entries...)
			if diff := cmp.Diff(tc.want, list(t, root)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestImplicit(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		entries []entry
		want    []string
	}{
		"none":             {[]entry{dir("a", 0o755), file("a/b", "")}, nil},
		"all":              {[]entry{file("a/b/c/d", "")}, []string{"a", "a/b", "a/b/c"}},
		"some":             {[]entry{dir("a/b", 0o755), file("a/b/c/d", ""), file("./e/f", "")}, []string{"a", "a/b/c", "e"}},
		"listed late":      {[]entry{file("a/b/c", ""), dir("a/b/", 0o700)}, []string{"a"}},
		"for a whiteout":   {[]entry{file("a/.wh.b", ""), file("c/.wh..wh..opq", "")}, []string{"a", "c"}},
		"for a hard link":  {[]entry{file("a", ""), link(tar.TypeLink, "b/c", "a")}, []string{"b"}},
		"through a link":   {[]entry{link(tar.TypeSymlink, "lib", "usr/lib"), file("lib/x", "")}, []string{"usr", "usr/lib"}},
		"replaced":         {[]entry{file("a/b", ""), file("a", "")}, nil},
		"over a whiteout":  {[]entry{file(".wh.a", ""), file("a/b/c", "")}, []string{"a/b"}},
		"then a whiteout":  {[]entry{file("a/b/c", ""), file(".wh.a", "")}, []string{"a/b"}},
		"below a new link": {[]entry{file("a/b/c", ""), link(tar.TypeSymlink, "a", "d"), dir("d/b", 0o755)}, []string{"d"}},
		"upwards":          {[]entry{file("../a/../b/c", "")}, []string{"b"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, facts := mustApply(t, tc.entries...)
			if diff := cmp.Diff(tc.want, facts.Implicit); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestSize(t *testing.T) {
	t.Parallel()
	small, _ := mustApply(t, file("a", "x"))
	_, facts := mustApply(t, file("a", strings.Repeat("x", 1<<20)), link(tar.TypeLink, "b", "a"))
	if facts.Size < 1<<20 || facts.Size > 1<<20+64<<10 || facts.Inodes != 2 {
		t.Errorf("facts of 1 MiB are %+v", facts)
	}
	if info, err := os.Stat(filepath.Join(small, "a")); err != nil || info.Size() != 1 {
		t.Error(err)
	}
}

// hostile are layers that try to leave their directory.
func hostile() map[string][]entry {
	return map[string][]entry{
		"dot dot":                 {file("../../escaped", "x")},
		"absolute":                {file("/escaped", "x")},
		"dir dot dot":             {dir("../escaped", 0o777)},
		"through symlink":         {link(tar.TypeSymlink, "l", ".."), file("l/escaped", "x")},
		"through absolute link":   {link(tar.TypeSymlink, "l", "/"), file("l/escaped", "x")},
		"symlink chain":           {link(tar.TypeSymlink, "a", "b/.."), link(tar.TypeSymlink, "b", "../.."), file("a/escaped", "x")},
		"symlink loop":            {link(tar.TypeSymlink, "a", "b"), link(tar.TypeSymlink, "b", "a"), file("a/escaped", "x")},
		"overwrite via symlink":   {link(tar.TypeSymlink, "l", "../secret"), file("l", "x")},
		"dir over symlink":        {link(tar.TypeSymlink, "l", ".."), dir("l", 0o777), file("l/escaped", "x")},
		"hard link outside":       {link(tar.TypeLink, "h", "../secret"), file("h", "x")},
		"hard link via symlink":   {link(tar.TypeSymlink, "l", ".."), link(tar.TypeLink, "h", "l/secret"), file("h", "x")},
		"hard link to symlink":    {link(tar.TypeSymlink, "l", "../secret"), link(tar.TypeLink, "h", "l")},
		"hard link to root":       {link(tar.TypeLink, "h", ".")},
		"hard link to dot dot":    {link(tar.TypeLink, "h", "..")},
		"whiteout dot dot":        {file(".wh...", "x")},
		"whiteout of parent":      {file(".wh..", "x")},
		"whiteout of nothing":     {file(".wh.", "x")},
		"whiteout via symlink":    {link(tar.TypeSymlink, "l", ".."), file("l/.wh.secret", "x")},
		"opaque via symlink":      {link(tar.TypeSymlink, "l", ".."), file("l/.wh..wh..opq", "x")},
		"replace root":            {file(".", "x"), file("a/..", "x"), link(tar.TypeSymlink, ".", ".."), file("escaped/x", "x")},
		"symlink over used dir":   {dir("d", 0o755), link(tar.TypeSymlink, "d", ".."), file("d/escaped", "x")},
		"whiteout, link, through": {file(".wh.d", ""), link(tar.TypeSymlink, "d", ".."), file("d/escaped", "x")},
		// What was noted about a directory must not be done to where a link in
		// its place leads.
		"whiteout, then link above":  {file("a/.wh.secret", ""), link(tar.TypeSymlink, "a", ".."), file("a/secret/x", "x")},
		"opaque, then link above":    {file("a/.wh.outside", ""), file("a/outside/x", ""), link(tar.TypeSymlink, "a", "..")},
		"whiteout of dir, then link": {file("a/outside/x", ""), file("a/.wh.outside", ""), link(tar.TypeSymlink, "a", "..")},
		"implicit, then link above":  {file("a/outside/x", ""), link(tar.TypeSymlink, "a", "..")},
	}
}

// Whatever a tar says, nothing outside the directory changes.
func TestHostile(t *testing.T) {
	t.Parallel()
	for name, entries := range hostile() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			requireRoot(t)
			jail := t.TempDir()
			root := filepath.Join(jail, "root")
			if err := os.Mkdir(root, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(jail, "secret"), []byte("secret"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(filepath.Join(jail, "outside"), 0o700); err != nil {
				t.Fatal(err)
			}
			facts, err := unpack.New(unpack.Options{}).Apply(t.Context(), root, bytes.NewReader(tarOf(t, entries...)))
			if err != nil && !errdefs.IsInvalidArgument(err) {
				t.Errorf("error is %v", err)
			}
			for _, name := range facts.Implicit {
				if real, err := filepath.EvalSymlinks(filepath.Join(root, name)); err != nil || real != filepath.Join(root, name) {
					t.Errorf("implicit directory %s is at %s, error %v", name, real, err)
				}
			}
			if err := os.RemoveAll(root); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{"outside dir", `secret file "secret"`}, list(t, jail)); diff != "" {
				t.Error(diff)
			}
			if info, err := os.Stat(filepath.Join(jail, "secret")); err != nil || info.Mode() != 0o600 {
				t.Errorf("secret is %v", info.Mode())
			}
			if got := xattr(t, jail, "trusted.overlay.opaque"); got != "" {
				t.Error("the directory above became opaque")
			}
		})
	}
}

func TestInvalid(t *testing.T) {
	t.Parallel()
	good := tarOf(t, file("a", strings.Repeat("x", 10_000)))
	long := strings.Repeat("d/", 3000) + "x"
	for name, stream := range map[string][]byte{
		"no tar":             []byte(strings.Repeat("this is no tar. ", 100)),
		"cut in header":      good[:100],
		"cut in content":     good[:5000],
		"unknown type":       tarOf(t, entry{Header: tar.Header{Typeflag: 'V', Name: "x"}}),
		"long name":          tarOf(t, file(long, "")),
		"long component":     tarOf(t, file(strings.Repeat("x", 300), "")),
		"long link":          tarOf(t, link(tar.TypeLink, "x", long)),
		"no link target":     tarOf(t, link(tar.TypeLink, "x", "missing")),
		"link to itself":     tarOf(t, file("x", ""), link(tar.TypeLink, "x", "x")),
		"dir below file":     tarOf(t, file("x", ""), file("x/y", "")),
		"name with no bytes": tarOf(t, link(tar.TypeSymlink, "x", "")),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			requireRoot(t)
			_, err := unpack.New(unpack.Options{}).Apply(t.Context(), t.TempDir(), bytes.NewReader(stream))
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("error is %v", err)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	three := tarOf(t, file("a", "1234"), file("b", "1234"), file("c", "1234"))
	for name, tc := range map[string]struct {
		opts   unpack.Options
		stream io.Reader
		want   string
	}{
		"enough":        {unpack.Options{MaxEntries: 3, MaxBytes: int64(len(three))}, bytes.NewReader(three), ""},
		"entries":       {unpack.Options{MaxEntries: 2}, bytes.NewReader(three), "image.limits.max_entries"},
		"file size":     {unpack.Options{MaxBytes: 1 << 20}, bytes.NewReader(tarOf(t, file("a", strings.Repeat("x", 1<<20+1)))), "image.limits.max_bytes"},
		"trailing":      {unpack.Options{MaxBytes: 1 << 20}, io.MultiReader(bytes.NewReader(three), zeros{}), "image.limits.max_bytes"},
		"sparse":        {unpack.Options{MaxBytes: 1 << 20}, bytes.NewReader(sparse(t, 1<<40)), "image.limits.max_bytes"},
		"sum of sizes":  {unpack.Options{MaxBytes: 4096}, bytes.NewReader(tarOf(t, file("a", strings.Repeat("x", 3000)), file("b", strings.Repeat("x", 3000)))), "image.limits.max_bytes"},
		"names":         {unpack.Options{MaxMetadata: 500}, bytes.NewReader(tarOf(t, dir(strings.Repeat("d/", 100), 0o755), dir(strings.Repeat("e/", 200), 0o755))), "image.limits.max_metadata"},
		"attributes":    {unpack.Options{MaxMetadata: 500}, bytes.NewReader(tarOf(t, entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "d", PAXRecords: map[string]string{"SCHILY.xattr.user.x": strings.Repeat("x", 500)}}})), "image.limits.max_metadata"},
		"directories":   {unpack.Options{MaxMetadata: 5000}, bytes.NewReader(tarOf(t, file(strings.Repeat("d/", 20)+"x", ""))), "image.limits.max_metadata"},
		"whiteouts":     {unpack.Options{MaxMetadata: 1000}, bytes.NewReader(tarOf(t, whiteouts(20)...)), "image.limits.max_metadata"},
		"ratio":         {unpack.Options{}, bytes.NewReader(sparse(t, 10<<30)), "image.limits.max_ratio"},
		"below a GiB":   {unpack.Options{}, bytes.NewReader(sparse(t, 1<<30)), ""},
		"huge declared": {unpack.Options{}, bytes.NewReader(sparse(t, 1<<62)), "image.limits.max_bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := unpack.New(tc.opts).Apply(t.Context(), t.TempDir(), tc.stream)
			if tc.want == "" && err == nil {
				return
			}
			if tc.want == "" || !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want one about %q", err, tc.want)
			}
		})
	}
}

func whiteouts(n int) []entry {
	var all []entry
	for i := range n {
		all = append(all, file(fmt.Sprintf(".wh.%d", i), ""))
	}
	return all
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestSourceErrors(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	stream, gone := tarOf(t, file("a", strings.Repeat("x", 10_000))), fmt.Errorf("registry: %w", errdefs.ErrUnavailable)
	for _, n := range []int{0, 100, 5000, len(stream)} {
		r := io.MultiReader(bytes.NewReader(stream[:n]), iotest.ErrReader(gone))
		_, err := unpack.New(unpack.Options{}).Apply(t.Context(), t.TempDir(), r)
		if !errors.Is(err, gone) || errdefs.IsInvalidArgument(err) {
			t.Errorf("cut after %d bytes: %v", n, err)
		}
	}
}

// Bytes behind the end of the archive belong to the layer's digest.
func TestDrains(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	r := bytes.NewReader(append(tarOf(t, file("a", "x")), strings.Repeat("trailing", 50_000)...))
	if _, err := unpack.New(unpack.Options{}).Apply(t.Context(), t.TempDir(), r); err != nil {
		t.Fatal(err)
	}
	if r.Len() > 0 {
		t.Errorf("%d bytes are left", r.Len())
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("nobody waits any more")
	stream := tarOf(t, file("a", strings.Repeat("x", 1<<20)))
	r := io.MultiReader(bytes.NewReader(stream[:2000]), readerFunc(func(p []byte) (int, error) {
		cancel(stop)
		return len(p), nil
	}))
	_, err := unpack.New(unpack.Options{}).Apply(ctx, t.TempDir(), r)
	if !errors.Is(err, stop) {
		t.Errorf("error is %v", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestPreconditions(t *testing.T) {
	t.Parallel()
	stream, dir := tarOf(t, file("a", "x")), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	u := unpack.New(unpack.Options{})
	if _, err := u.Apply(t.Context(), dir, bytes.NewReader(stream)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("into a full directory: %v", err)
	}
	if _, err := u.Apply(t.Context(), filepath.Join(dir, "none"), bytes.NewReader(stream)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("into no directory: %v", err)
	}
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	_, err := unpack.New(unpack.Options{}).Apply(t.Context(), dir, bytes.NewReader(tarOf(t, file("a", strings.Repeat("x", 1<<20)))))
	if !errors.Is(err, unix.ENOSPC) || errdefs.IsInvalidArgument(err) {
		t.Errorf("error is %v", err)
	}
}

// mustStream unpacks a stream.
func mustStream(t *testing.T, root string, stream []byte) unpack.Facts {
	t.Helper()
	facts, err := unpack.New(unpack.Options{}).Apply(t.Context(), root, bytes.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	return facts
}
