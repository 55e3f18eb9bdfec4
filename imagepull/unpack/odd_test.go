// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack_test

import (
	"archive/tar"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// with changes an entry.
func with(e entry, change func(*tar.Header)) entry {
	change(&e.Header)
	return e
}

// owned gives an entry an owner and a mode.
func owned(e entry, uid, gid int, mode int64) entry {
	e.Uid, e.Gid, e.Mode = uid, gid, mode
	return e
}

// attr gives an entry an extended attribute.
func attr(e entry, key, value string) entry {
	e.PAXRecords = maps.Clone(e.PAXRecords)
	if e.PAXRecords == nil {
		e.PAXRecords = make(map[string]string)
	}
	e.PAXRecords["SCHILY.xattr."+key] = value
	return e
}

const (
	capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	accessList = "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x05\x00\x07\x00\x00\x00\x04\x00\x05\x00\xff\xff\xff\xff\x10\x00\x05\x00\xff\xff\xff\xff\x20\x00\x01\x00\xff\xff\xff\xff"
)

// odd are layers as no usual tool writes them.
func odd() map[string][]entry {
	device := func(name string, kind byte, major, minor int64) entry {
		return entry{Header: tar.Header{Typeflag: kind, Name: name, Mode: 0o640, Devmajor: major, Devminor: minor}}
	}
	at := func(e entry, t time.Time) entry { return with(e, func(h *tar.Header) { h.ModTime = t }) }
	typed := func(e entry, kind byte) entry { return with(e, func(h *tar.Header) { h.Typeflag = kind }) }
	gnu := func(e entry) entry {
		return with(e, func(h *tar.Header) { h.Format, h.ModTime = tar.FormatGNU, mtime().Truncate(time.Second) })
	}
	early := time.Unix(7, 7)
	deep := strings.TrimSuffix(strings.Repeat("d/", 200), "/")
	return map[string][]entry{
		// Names.
		"newline":               {file("a\nb\n", "x"), dir("\n", 0o700), link(tar.TypeSymlink, "l\n", "a\nb\n")},
		"255 bytes":             {file(strings.Repeat("é", 127)+"x", "x"), dir(strings.Repeat("d", 255), 0o711)},
		"not UTF-8":             {file("\xff\xfe/\x80", "x"), link(tar.TypeSymlink, "l", "\xff")},
		"blanks and backslash":  {file(" ", "1"), file("a\\b", "2"), file("*", "3"), file("-rf", "4")},
		"slashes and dots":      {file("a//b/./c/../d", "x"), dir("./e/", 0o755), dir("f///", 0o700), dir("/g/", 0o711), file("..", "x"), dir("/", 0o700)},
		"dots at root":          {dir(".", 0o700), dir("..", 0o700), dir("a/..", 0o700), file("../../up", "x")},
		"dotted names":          {file("...", "1"), file("..a", "2"), file(".wh", "3"), file("a.wh.b", "4")},
		"deep":                  {file(deep+"/x", "x")},
		"deep, back and forth":  {file(deep+"/x", "x"), file("y", "y"), file(deep+"/z", "z"), link(tar.TypeLink, "h", deep+"/x")},
		"4096 bytes":            {file(strings.Repeat("d/", 2047)+"xy", "x")},
		"256 bytes":             {file(strings.Repeat("d", 256), "x")},
		"only root":             {dir("./", 0o700)},
		"name with no bytes":    {with(file("x", ""), func(h *tar.Header) { h.PAXRecords = map[string]string{"comment": ""} })},
		"case differs":          {file("A", "1"), file("a", "2")},
		"composed and not":      {file("\u00e9", "1"), file("e\u0301", "2")},
		"link of 4095 bytes":    {link(tar.TypeSymlink, "l", strings.Repeat("x/", 2047)+"y")},
		"implicit below setgid": {owned(dir("s", 0), 3, 4, 0o2775), file("s/new/x", "x")},

		// Owners, modes, times.
		"large ids":          {owned(file("a", "x"), 3_000_000_000, math.MaxUint32-1, 0o644), owned(dir("d", 0), 1<<31, 1<<21, 0o755)},
		"ids too large":      {owned(file("a", "x"), 1<<32+5, 0, 0o644)},
		"id that means none": {owned(file("a", "x"), math.MaxUint32, 0, 0o644)},
		"modes":              {owned(file("a", "x"), 0, 0, 0), owned(file("b", "x"), 0, 0, 0o777), owned(dir("c", 0), 0, 0, 0o1777), owned(dir("e", 0), 5, 0, 0), owned(file("e/f", "x"), 0, 0, 0o4711), owned(file("g", "x"), 0, 9, 0o2755), owned(file("h", "x"), 0, 0, 0o100644)},
		"setgid directory":   {owned(dir("s", 0), 3, 4, 0o2775), file("s/f", "x"), dir("s/d", 0o755), link(tar.TypeSymlink, "s/l", "f"), device("s/n", tar.TypeChar, 1, 3), device("s/p", tar.TypeFifo, 0, 0), link(tar.TypeLink, "s/h", "s/f"), owned(file("s/g", "x"), 1, 2, 0o6755)},
		"owned links":        {owned(link(tar.TypeSymlink, "l", "/nowhere"), 7, 8, 0o777), owned(device("p", tar.TypeFifo, 0, 0), 7, 8, 0o4600)},
		"old and new":        {at(file("a", "x"), time.Unix(-5, 0)), at(file("b", "x"), time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC)), at(file("c", "x"), time.Unix(0, 1)), at(dir("d", 0o755), time.Unix(1<<33, 999_999_999))},
		"access times":       {with(file("a", "x"), func(h *tar.Header) { h.AccessTime = mtime().Add(time.Hour) }), with(file("b", "x"), func(h *tar.Header) { h.AccessTime = mtime().Add(-time.Hour) }), with(link(tar.TypeSymlink, "l", "a"), func(h *tar.Header) { h.AccessTime = mtime().Add(time.Hour) })},
		"times of parents":   {dir("a", 0o755), dir("a/b", 0o755), file("a/b/c", "x"), file("a/b/c", "y"), file("a/x", ""), at(dir("a", 0o711), early)},

		// Extended attributes.
		"attributes":             {attr(attr(file("a", "x"), "user.a", "1"), "user.empty", ""), attr(dir("d", 0o755), "user.d", strings.Repeat("v", 1000)), attr(owned(file("c", "x"), 5, 5, 0o755), "security.capability", capability), attr(device("p", tar.TypeFifo, 0, 0), "security.x", "1"), attr(link(tar.TypeSymlink, "l", "a"), "security.x", "2"), attr(link(tar.TypeLink, "h", "a"), "user.h", "1")},
		"access lists":           {attr(owned(dir("d", 0), 0, 0, 0o750), "system.posix_acl_default", accessList), file("d/f", "x"), dir("d/e", 0o700), attr(file("g", "x"), "system.posix_acl_access", accessList)},
		"trusted attributes":     {attr(dir("d", 0o755), "trusted.overlay.opaque", "y"), attr(file("f", "x"), "trusted.overlay.metacopy", ""), attr(file("g", "x"), "trusted.mine", "1")},
		"other systems":          {attr(file("f", "x"), "com.apple.provenance", "1"), attr(file("g", "x"), "nonsense", "1")},
		"attributes of links":    {attr(link(tar.TypeSymlink, "l", "f"), "user.x", "1"), attr(device("n", tar.TypeChar, 1, 3), "user.x", "1")},
		"attribute of 60 kB":     {attr(dir("d", 0o755), "user.x", strings.Repeat("x", 60_000))},
		"attributes of 2 kB":     {attr(dir("d", 0o755), "user.x", strings.Repeat("x", 2_000)), attr(file("f", "x"), "user.y", strings.Repeat("y", 2_000)), attr(link(tar.TypeSymlink, "l", "f"), "security.z", strings.Repeat("z", 1_500)), attr(link(tar.TypeLink, "h", "f"), "user.z", strings.Repeat("z", 1_000))},
		"attribute of 65 kB":     {attr(file("f", "x"), "user.x", strings.Repeat("x", 65_537))},
		"attribute, no name":     {attr(file("f", "x"), "user.", "1")},
		"attribute replaced":     {attr(file("f", "x"), "user.x", strings.Repeat("x", 2_000)), attr(link(tar.TypeLink, "h", "f"), "user.x", "1")},
		"capability, new owner":  {attr(owned(file("f", "x"), 5, 6, 0o6755), "security.capability", capability), attr(owned(link(tar.TypeLink, "h", "f"), 7, 8, 0o6711), "security.capability", capability)},
		"attribute too long":     {attr(file("f", "x"), "user."+strings.Repeat("x", 300), "1")},
		"twice":                  {attr(owned(dir("d", 0), 1, 1, 0o700), "user.a", "1"), file("d/x", ""), attr(owned(dir("d", 0), 2, 2, 0o711), "user.b", "2")},
		"capability, then links": {attr(file("a", "x"), "security.capability", capability), link(tar.TypeLink, "b", "a")},

		// Kinds.
		"devices":           {device("c", tar.TypeChar, 4095, 1<<20-1), device("b", tar.TypeBlock, 259, 70_000), device("zero", tar.TypeChar, 0, 0)},
		"device too large":  {device("c", tar.TypeChar, 4096, 0)},
		"device below zero": {gnu(device("c", tar.TypeChar, -1, 0))},
		"device of 33 bits": {gnu(device("c", tar.TypeChar, 1<<33, 0))},
		"contiguous":        {typed(file("a", "x"), tar.TypeCont)},
		"volume":            {typed(file("a", ""), 'V')},
		"global header":     {{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "g", PAXRecords: map[string]string{"mtime": "5"}}}, file("a", "x")},

		// Hard links.
		"hard links":             {file("a", "x"), link(tar.TypeLink, "b", "a"), link(tar.TypeLink, "c/d", "/b"), link(tar.TypeLink, "e", "./c/../a"), owned(link(tar.TypeLink, "f", "../a"), 5, 6, 0o4755)},
		"hard link to symlink":   {link(tar.TypeSymlink, "l", "a"), link(tar.TypeLink, "h", "l"), file("a", "x")},
		"hard link via symlink":  {dir("d", 0o755), file("d/a", "x"), link(tar.TypeSymlink, "l", "/d"), link(tar.TypeLink, "h", "l/a")},
		"hard link, slash":       {file("a", "x"), link(tar.TypeLink, "h", "a/")},
		"hard link, link, slash": {file("a", "x"), link(tar.TypeSymlink, "l", "a"), link(tar.TypeLink, "h", "l/")},
		"hard link, target gone": {file("a", "1"), link(tar.TypeLink, "b", "a"), file("a", "2"), link(tar.TypeLink, "b", "a")},
		"hard link over target":  {file("a/b", "1"), link(tar.TypeLink, "a", "a/b")},
		"hard link to itself":    {file("a", "1"), link(tar.TypeLink, "a", "a")},
		"hard link again":        {file("a", "1"), link(tar.TypeLink, "b", "a"), link(tar.TypeLink, "b", "a")},
		"hard link to directory": {dir("a", 0o755), link(tar.TypeLink, "b", "a")},
		"hard link to nothing":   {link(tar.TypeLink, "b", "a")},
		"hard link before":       {link(tar.TypeLink, "b", "a"), file("a", "x")},
		"hard link to device":    {device("n", tar.TypeChar, 1, 3), link(tar.TypeLink, "b", "n")},
		"hard link changes mode": {owned(file("a", "x"), 1, 1, 0o4755), owned(link(tar.TypeLink, "b", "a"), 2, 2, 0o600)},
		"hard link of whiteout":  {file(".wh.a", ""), link(tar.TypeLink, "b", "a")},

		// Replacing.
		"file over file":      {owned(file("a", "long content"), 5, 5, 0o4755), file("a", "short")},
		"file over directory": {file("a/b/c", "x"), dir("a/d", 0o755), file("a", "x"), file("b", "x")},
		"file over listed":    {at(dir("a", 0o755), early), file("a", "x")},
		"directory over file": {file("a", "x"), dir("a", 0o711), file("a/b", "x")},
		"directory over link": {dir("d", 0o755), link(tar.TypeSymlink, "a", "d"), dir("a", 0o711), file("a/b", "x")},
		"link over directory": {file("a/b/c", "x"), dir("d", 0o755), link(tar.TypeSymlink, "a", "d"), file("a/x", "y"), file("a/b/z", "z")},
		"link over link":      {file("a/x", "x"), link(tar.TypeSymlink, "l", "a"), file("l/1", "1"), link(tar.TypeSymlink, "l", "b"), file("l/1", "2")},
		"device over all":     {at(dir("a", 0o755), early), file("b", "x"), link(tar.TypeSymlink, "c", "b"), device("a", tar.TypeChar, 1, 3), device("b", tar.TypeFifo, 0, 0), device("c", tar.TypeBlock, 7, 0)},
		"and back":            {file("a/b", "1"), file("a", "2"), file("c", "3"), file("a", "4")},
		"file in the way":     {file("a", "x"), file("a/b", "y")},
		"device in the way":   {device("a", tar.TypeChar, 1, 3), file("a/b", "y")},
		"listed, then gone":   {dir("a", 0o755), dir("a/b", 0o755), file("a", "x")},
		"many in one":         slices.Concat(files("a", 200), []entry{file("a", "x")}, files("b", 200)),

		"swapped after many":  slices.Concat(files("a", 300), []entry{link(tar.TypeSymlink, "a/d5", "../a/d6"), link(tar.TypeSymlink, "a/d88", "/"), file("a/d7", "x")}, files("b", 100), []entry{file("a/d5/x", "x"), file("a/d88/x", "y")}),
		"hard link, far away": slices.Concat(chainAcross(150), []entry{file("d0/l/x", "x"), file("z/y", ""), link(tar.TypeLink, "z/h", "d150/l/x"), link(tar.TypeLink, "z/y", "d150/l/x")}),

		// Links in paths.
		"link to missing":      {link(tar.TypeSymlink, "l", "a/b/c"), file("l/x", "x")},
		"link up":              {dir("a/b", 0o755), link(tar.TypeSymlink, "a/b/up", "../../../c"), file("a/b/up/x", "x")},
		"link to link":         {link(tar.TypeSymlink, "l", "/m"), link(tar.TypeSymlink, "m", "n/./o"), link(tar.TypeSymlink, "n", "real"), file("l/x", "x")},
		"link to root":         {link(tar.TypeSymlink, "l", "/"), file("l/x", "x"), link(tar.TypeSymlink, "m", "."), file("m/m/m/y", "y")},
		"missing, then up":     {link(tar.TypeSymlink, "l", "missing/../a"), file("l/x", "x")},
		"file, then up":        {file("f", ""), link(tar.TypeSymlink, "l", "f/../a"), file("l/x", "x")},
		"chain with dots":      {dir("x/y", 0o755), link(tar.TypeSymlink, "a", "b/.."), link(tar.TypeSymlink, "b", "c"), link(tar.TypeSymlink, "c", "x/y"), file("a/f", "f")},
		"255 links":            slices.Concat(chainOf(254), []entry{file("l254/x", "x")}),
		"256 links":            slices.Concat(chainOf(256), []entry{file("l256/x", "x")}),
		"link to file":         {file("f", ""), link(tar.TypeSymlink, "l", "f"), file("l/x", "x")},
		"link to device":       {device("n", tar.TypeChar, 1, 3), link(tar.TypeSymlink, "l", "n"), file("l/x", "x")},
		"swapped for link":     {file("a/x", "1"), file("b/x", "2"), link(tar.TypeSymlink, "a", "b"), file("a/x", "3")},
		"swapped and back":     {file("b/y", "1"), link(tar.TypeSymlink, "a", "b"), file("a/x", "1"), dir("a", 0o755), file("a/x", "2")},
		"above swapped":        {file("a/b/c/x", "1"), file("z/b/c/x", "2"), link(tar.TypeSymlink, "a", "z"), file("a/b/c/x", "3")},
		"target swapped":       {dir("d", 0o755), link(tar.TypeSymlink, "l", "d"), file("l/1", "1"), link(tar.TypeSymlink, "d", "e"), file("l/2", "2")},
		"removed and made new": {file("a/b/c", "1"), file("a", ""), file("x", ""), dir("a", 0o700), file("a/b/c", "2")},

		// Whiteouts.
		"whiteout":             {dir("a", 0o755), owned(file("a/.wh.x", ""), 5, 6, 0), file(".wh.y", "")},
		"whiteout of whiteout": {file(".wh..wh.a", ""), file(".wh..wh..wh.plnk", ""), file(".wh..wh.aufs", "")},
		"opaque":               {dir("a", 0o711), file("a/.wh..wh..opq", ""), file("a/x", "x"), file(".wh..wh..opq", "")},
		"opaque, implicit":     {file("a/.wh..wh..opq", "content"), file("a/x", "x")},
		"opaque, a directory":  {dir("a/.wh..wh..opq", 0o755)},
		"whiteout, then file":  {file(".wh.x", ""), file("x", "1")},
		"file, then whiteout":  {file("x", "1"), file(".wh.x", "")},
		"whiteout, then dir":   {file(".wh.x", ""), dir("x", 0o755)},
		"dir, then whiteout":   {dir("x", 0o755), file("x/y", ""), file(".wh.x", "")},
		"whiteout, then in":    {file(".wh.x", ""), file("x/y/z", "")},
		"whiteout twice":       {file(".wh.x", ""), file(".wh.x", "")},
		"whiteout of nothing":  {file(".wh.", "")},
		"below a whiteout":     {file(".wh.x/y", "1"), file("a/.wh.x/y/.wh.z", "")},
		"aufs":                 {dir(".wh..wh.plnk/", 0o700), file(".wh..wh.plnk/1.2", "x"), link(tar.TypeLink, "a", ".wh..wh.plnk/1.2")},
		"whiteouts of kinds":   {dir(".wh.a", 0o755), link(tar.TypeSymlink, ".wh.b", "/"), link(tar.TypeLink, ".wh.c", "none"), device(".wh.d", tar.TypeChar, 5, 6), file(".wh.e", "content")},
		"device 0:0":           {device("a", tar.TypeChar, 0, 0), file("b", "x"), device("b", tar.TypeChar, 0, 0), device("c", tar.TypeBlock, 0, 0)},
		"device 0:0, then in":  {device("a", tar.TypeChar, 0, 0), file("a/b", "x")},
		"opaque on file":       {file("a", ""), file("a/.wh..wh..opq", "")},
	}
}

// chainOf is a chain of links from l0, a directory.
func chainOf(n int) []entry {
	chain := []entry{dir("l0", 0o755)}
	for i := range n {
		chain = append(chain, link(tar.TypeSymlink, fmt.Sprint("l", i+1), fmt.Sprint("l", i)))
	}
	return chain
}

// chainAcross is a chain of links, each in a directory of its own, from d0/l.
func chainAcross(n int) []entry {
	chain := []entry{dir("d0/l", 0o755)}
	for i := range n {
		chain = append(chain, link(tar.TypeSymlink, fmt.Sprintf("d%d/l", i+1), fmt.Sprintf("../d%d/l", i)))
	}
	return chain
}

func files(in string, n int) []entry {
	var all []entry
	for i := range n {
		all = append(all, file(fmt.Sprintf("%s/d%d/f%d", in, i%90, i), "x"))
	}
	return all
}

// What layers of all kinds are unpacked to is what containerd makes of them,
// the listed differences excepted.
func TestOracleOdd(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	cases := odd()
	for name, entries := range hostile() {
		cases["hostile: "+name] = entries
	}
	for name := range differences(t) {
		if _, found := cases[name]; !found && !strings.HasPrefix(name, "GNU tar: ") && !strings.HasPrefix(name, "raw: ") {
			t.Errorf("difference %q is of no case", name)
		}
	}
	for name, entries := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			judge(t, tarOf(t, entries...), differences(t)[name])
		})
	}
}

// judge compares the results of a stream; known says how they differ.
func judge(t *testing.T, stream []byte, known string) {
	t.Helper()
	c := compete(t.Context(), t, t.TempDir(), stream)
	if got := c.outcome(); got != known {
		t.Errorf("the difference is %q, and testdata/differences.md has %q\n-containerd +coffer %.4000s", got, known, c.diff())
	}
	if c.oursErr == nil {
		measured(t, c.dir, c.facts)
	}
}

// outcome says in the words of testdata/differences.md how two results differ,
// and "" if they do not.
func (c contest) outcome() string {
	switch {
	case c.oursErr != nil && c.theirsErr == nil:
		return "coffer refuses"
	case c.oursErr == nil && c.theirsErr != nil:
		return "containerd refuses"
	case c.diff() != "":
		return "the trees differ"
	default:
		return ""
	}
}

// differences are all cases in which the result is another than containerd's,
// and how it differs: the lines "- `case`: outcome" of testdata/differences.md,
// which says why.
func differences(t testing.TB) map[string]string {
	t.Helper()
	b, err := os.ReadFile("testdata/differences.md")
	if err != nil {
		t.Fatal(err)
	}
	known := make(map[string]string)
	for line := range strings.Lines(string(b)) {
		if rest, found := strings.CutPrefix(line, "- `"); found {
			name, outcome, found := strings.Cut(strings.TrimSpace(rest), "`: ")
			if _, twice := known[name]; !found || twice {
				t.Fatalf("differences.md has a case twice, or without an outcome: %s", line)
			}
			known[name] = outcome
		}
	}
	return known
}

// GNU tar's own formats: long names and sparse files.
func TestOracleGNU(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	if _, err := exec.LookPath("tar"); err != nil {
		skip(t, "root", "there is no tar")
	}
	from := t.TempDir()
	for name, size := range map[string]int64{"holes": 5 << 20, "end": 3<<20 + 123, "start": 1 << 20, "all": 2 << 20} {
		f, err := os.Create(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		offsets := map[string][]int64{"holes": {4096, 1 << 20, 3<<20 + 5}, "end": {size - 10}, "start": {0}}[name]
		for _, offset := range offsets {
			if _, err := f.WriteAt([]byte(strings.Repeat("data", 2000)), offset); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	long := filepath.Join(from, strings.Repeat("long/", 60))
	if err := os.MkdirAll(long, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(strings.Repeat("../x/", 50), filepath.Join(long, strings.Repeat("n", 200))); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"gnu": {"--format=gnu"}, "oldgnu": {"--format=oldgnu"}, "v7": {"--format=v7", "--exclude=long"}, "ustar": {"--format=ustar", "--exclude=long"},
		"gnu sparse": {"--format=gnu", "-S"}, "pax 0.0": {"--format=posix", "-S", "--sparse-version=0.0"},
		"pax 0.1": {"--format=posix", "-S", "--sparse-version=0.1"}, "pax 1.0": {"--format=posix", "-S", "--sparse-version=1.0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stream, err := exec.Command("tar", append(args, "-C", from, "-cf", "-", ".")...).Output()
			if err != nil {
				t.Fatal(err)
			}
			judge(t, stream, differences(t)["GNU tar: "+name])
			if !strings.Contains(name, "sparse") && !strings.Contains(name, "pax") {
				return
			}
			root := t.TempDir()
			facts := mustStream(t, root, stream)
			if facts.Size > 2<<20 {
				t.Errorf("the files have holes, and take %d bytes", facts.Size)
			}
			for file := range states(t, root) {
				want, wantErr := os.ReadFile(filepath.Join(from, file))
				got, err := os.ReadFile(filepath.Join(root, file))
				if wantErr == nil && (err != nil || string(got) != string(want)) {
					t.Errorf("%s has other content, error %v", file, err)
				}
			}
		})
	}
}
