// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-cc/coffer/imagepull/unpack"
)

// A block is a header as archive/tar would not write it.
type block struct {
	name, prefix  string
	kind          byte
	size          int64
	sizeField     []byte // instead
	uidField      []byte
	linkname      string
	gnu, badCheck bool
}

// with returns the header with content behind it, padded.
func (b block) with(content string) []byte {
	h := make([]byte, 512, 1024+len(content))
	copy(h, b.name)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[108:], b.uidField)
	copy(h[124:], fmt.Sprintf("%011o\x00%011o\x00", max(b.size, int64(len(content))), 1_700_000_000))
	copy(h[124:], b.sizeField)
	h[156] = b.kind
	copy(h[157:257], b.linkname)
	copy(h[257:], "ustar\x0000")
	if b.gnu {
		copy(h[257:], "ustar  \x00")
	}
	copy(h[345:500], b.prefix)
	copy(h[148:], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	if b.badCheck {
		sum++
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	h = append(h, content...)
	return append(h, make([]byte, (512-len(h)%512)%512)...)
}

// record is one of a PAX header.
func record(key, value string) string {
	n := len(key) + len(value) + 3
	for len(fmt.Sprint(n))+len(key)+len(value)+3 != n {
		n = len(fmt.Sprint(n)) + len(key) + len(value) + 3
	}
	return fmt.Sprintf("%d %s=%s\n", n, key, value)
}

// pax is an entry with records in front of it.
func pax(b block, content string, records ...string) []byte {
	return append(block{name: "pax", kind: tar.TypeXHeader}.with(strings.Join(records, "")), b.with(content)...)
}

func reg(name string) block { return block{name: name, kind: tar.TypeReg} }

// sparse is a tar with a file that has a size and no content (PAX format 0.1,
// which archive/tar reads and does not write).
func sparse(_ testing.TB, size int64) []byte {
	n := fmt.Sprint(size)
	return append(pax(reg("s"), "", record("GNU.sparse.size", n), record("GNU.sparse.numblocks", "1"), record("GNU.sparse.map", n+",0")), make([]byte, 1024)...)
}

// sparse1 is a file in PAX format 1.0, whose map is in front of its content.
func sparse1(size, places string) []byte {
	places += strings.Repeat("\x00", 512-len(places)%512)
	return pax(reg("s"), places+"data", record("GNU.sparse.major", "1"), record("GNU.sparse.minor", "0"),
		record("GNU.sparse.name", "s"), record("GNU.sparse.realsize", size))
}

// raw are streams of bytes that try to break who reads them, and what the error
// says, "" where there is none.
func raw() map[string]struct {
	stream []byte
	want   string
} {
	base256 := func(b ...byte) []byte { return append(b, make([]byte, 12-len(b))...) }
	const mib = 1 << 20
	long := strings.Repeat("n", 2*mib)
	deep := strings.Repeat("d/", 100_000) + "x"
	return map[string]struct {
		stream []byte
		want   string
	}{
		"header of 100 MB":       {block{name: "p", kind: tar.TypeXHeader, size: 100 * mib}.with(long)[:2*mib], "1 MiB"},
		"long name of 100 MB":    {block{name: "L", kind: tar.TypeGNULongName, size: 100 * mib, gnu: true}.with(long)[:2*mib], "1 MiB"},
		"long link of 100 MB":    {block{name: "K", kind: tar.TypeGNULongLink, size: 100 * mib, gnu: true}.with(long)[:2*mib], "1 MiB"},
		"headers without end":    {bytes.Repeat(block{name: "p", kind: tar.TypeXHeader}.with(record("path", "x")), 1000), ""},
		"long names without end": {bytes.Repeat(block{name: "L", kind: tar.TypeGNULongName, gnu: true}.with(deep), 20), ""},
		"global headers":         {bytes.Repeat(block{name: "g", kind: tar.TypeXGlobalHeader}.with(record("path", "x")), 500), ""},
		"global path":            {append(block{name: "g", kind: tar.TypeXGlobalHeader}.with(record("path", "../escaped")+record("size", "5")), reg("a").with("")...), ""},
		"100,000 levels":         {pax(reg("short"), "", record("path", deep)), "4095"},
		"100,000 levels, GNU":    {append(block{name: "L", kind: tar.TypeGNULongName, gnu: true}.with(deep+"\x00"), reg("a").with("")...), "4095"},
		"prefix upwards":         {block{name: "escaped", prefix: "../../..", kind: tar.TypeReg}.with("x"), ""},
		"no name":                {slices.Concat(reg("").with("x"), block{kind: tar.TypeDir}.with(""), block{kind: tar.TypeSymlink, linkname: ".."}.with("")), ""},
		"path of no bytes":       {pax(reg("a"), "x", record("path", "")), ""},
		"path twice":             {pax(reg("a"), "x", record("path", "b"), record("path", "../c")), ""},
		"NUL in path":            {pax(reg("a"), "x", record("path", "b\x00c")), "invalid tar header"},
		"NUL in link":            {pax(block{name: "a", kind: tar.TypeSymlink}, "", record("linkpath", "b\x00c")), "invalid tar header"},
		"NUL in attribute":       {pax(reg("a"), "x", record("SCHILY.xattr.user.a\x00b", "1")), "invalid tar header"},
		"NUL in long name":       {append(block{name: "L", kind: tar.TypeGNULongName, gnu: true}.with("b\x00/../../c"), reg("a").with("x")...), ""},
		"file with a slash":      {slices.Concat(reg("a/").with("x"), reg("b/c/").with("y")), ""},
		"old file with a slash":  {slices.Concat(block{name: "a/", kind: 0}.with(""), reg("a/b").with("y")), ""},
		"size below zero":        {block{name: "a", kind: tar.TypeReg, sizeField: base256(0xff, 0xff)}.with(""), "invalid tar header"},
		"size above 63 bits":     {block{name: "a", kind: tar.TypeReg, sizeField: base256(0x80, 0, 0, 0xff)}.with(""), "invalid tar header"},
		"size of 62 bits":        {block{name: "a", kind: tar.TypeReg, sizeField: []byte{0x80, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0}}.with("x"), "image.limits.max_bytes"},
		"size elsewhere":         {pax(reg("a"), strings.Repeat("x", 512), record("size", "5")), ""},
		"size below zero, PAX":   {pax(reg("a"), "x", record("size", "-1")), "invalid tar header"},
		"size of a link":         {slices.Concat(block{name: "l", kind: tar.TypeSymlink, linkname: "a", size: 512}.with(""), reg("a").with("x")), ""},
		"owner below zero":       {block{name: "a", kind: tar.TypeReg, uidField: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfb}}.with("x"), "no owner"},
		"owner of 33 bits":       {pax(reg("a"), "x", record("uid", fmt.Sprint(1<<33))), "no owner"},
		"time out of range":      {pax(reg("a"), "x", record("mtime", "99999999999999999999")), "invalid tar header"},
		"time far off":           {pax(reg("a"), "x", record("mtime", fmt.Sprint(int64(math.MaxInt64))), record("atime", "-9223372036854775808.5")), ""},
		"wrong checksum":         {block{name: "a", kind: tar.TypeReg, badCheck: true}.with("x"), "at byte 512"},
		"record's length lies":   {append(block{name: "p", kind: tar.TypeXHeader}.with("999 path=x\n"), reg("a").with("")...), "invalid tar header"},

		"map without end":      {sparse1("4", strings.Repeat("9", 600)), "unexpected EOF"},
		"map of many places":   {sparse1("4", "99999999\n0\n1\n"), "unexpected EOF"},
		"map below zero":       {sparse1("4", "1\n-1\n1\n"), "invalid tar header"},
		"map behind the end":   {sparse1("4", "1\n3\n9\n"), "invalid tar header"},
		"map overlaps":         {sparse1("9", "2\n0\n5\n3\n5\n"), "invalid tar header"},
		"map wraps around":     {sparse1("9", fmt.Sprintf("1\n%d\n%d\n", math.MaxInt64, 5)), "invalid tar header"},
		"map of too much data": {sparse1("9000", "1\n0\n9000\n"), "non-existent data"},
		"map of too little":    {sparse1("9", "1\n0\n1\n"), "unreferenced data"},
		"map holds":            {sparse1("9", "1\n2\n4\n"), ""},
	}
}

// Streams that lie about themselves end in an error that says why, in little
// memory, or do no more than containerd has them do.
func TestRaw(t *testing.T) { //nolint:paralleltest // it counts what the process allocates
	requireRoot(t)
	for name, tc := range raw() {
		t.Run(name, func(t *testing.T) {
			stream := append(tc.stream, make([]byte, 1024)...)
			if strings.HasSuffix(tc.want, "MiB") || strings.Contains(name, "without end") {
				stream = tc.stream
			}
			known := differences(t)["raw: "+name]
			judge(t, stream, known)
			var before, after runtime.MemStats
			dir := t.TempDir()
			runtime.ReadMemStats(&before)
			_, err := unpack.New(unpack.Options{}).Apply(t.Context(), dir, bytes.NewReader(stream))
			runtime.ReadMemStats(&after)
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<20 {
				t.Errorf("%d bytes were allocated for a stream of %d", grown, len(stream))
			}
			if tc.want == "" && err == nil {
				return
			}
			if tc.want == "" || !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want one about %q", err, tc.want)
			}
		})
	}
}

// Entries that leave nothing behind count as well.
func TestGlobalHeadersCount(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	stream := bytes.Repeat(block{name: "g", kind: tar.TypeXGlobalHeader}.with(record("comment", "x")), 50)
	_, err := unpack.New(unpack.Options{MaxEntries: 10}).Apply(t.Context(), t.TempDir(), bytes.NewReader(stream))
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "image.limits.max_entries") {
		t.Errorf("error is %v", err)
	}
}

// A hole of a TiB, for which nothing is read, ends with the context.
func TestCancelInHole(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	base, done := freshTmpfs(t)
	defer done()
	ctx, cancel := context.WithCancel(t.Context())
	stream := sparse(t, 1<<40)
	r := &cancelling{Reader: bytes.NewReader(stream), cancel: cancel, at: len(stream) - 1024}
	_, err := unpack.New(unpack.Options{MaxBytes: 1 << 41, MaxRatio: math.MaxInt64}).Apply(ctx, base, r)
	if !errdefs.IsCanceled(err) && !strings.Contains(fmt.Sprint(err), context.Canceled.Error()) {
		t.Errorf("error is %v", err)
	}
}

// What another file system could hold is no fault of the layer.
func TestFileSystemLimits(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	base, done := freshExt4(t)
	defer done()
	var links bytes.Buffer
	w := tar.NewWriter(&links)
	for i := range 65_001 { // the most that ext4 has is 65,000
		hdr := link(tar.TypeLink, fmt.Sprint(i), "0").Header
		if i == 0 {
			hdr = file("0", "").Header
		}
		if err := w.WriteHeader(&hdr); err != nil {
			t.Fatal(err)
		}
	}
	for name, stream := range map[string]io.Reader{
		"more hard links": &links,
		"files of that":   bytes.NewReader(sparse(t, 1<<50)),
	} {
		dir := filepath.Join(base, strings.ReplaceAll(name, " ", "-"))
		if err := unix.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_, err := unpack.New(unpack.Options{MaxBytes: 1 << 60}).Apply(t.Context(), dir, stream)
		if !errdefs.IsFailedPrecondition(err) || errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}
