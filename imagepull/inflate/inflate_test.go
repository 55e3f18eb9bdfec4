// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package inflate_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/coffer-cc/coffer/imagepull/inflate"
)

// text is data with matches near and far, runs, and noise.
func text(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 0, n+300)
	for len(b) < n {
		switch r.IntN(8) {
		case 0:
			b = append(b, bytes.Repeat([]byte{byte(r.IntN(256))}, r.IntN(300))...)
		case 1:
			for range r.IntN(40) {
				b = append(b, byte(r.IntN(256)))
			}
		case 2, 3, 4:
			if len(b) > 0 {
				from := len(b) - 1 - r.IntN(min(len(b), 32768))
				for i := range 3 + r.IntN(60) {
					b = append(b, b[from+i])
				}
			}
		default:
			for range r.IntN(60) {
				b = append(b, "etaoin shrdlu\ncmfwyp"[min(r.IntN(20), r.IntN(20))])
			}
		}
	}
	return b[:n]
}

func compress(t testing.TB, level int, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, 100, 32768, 131056, 131072, 131073, 500_000} {
		plain := text(size)
		for level := gzip.HuffmanOnly; level <= gzip.BestCompression; level++ {
			file := compress(t, level, plain)
			for i, r := range []io.Reader{
				bytes.NewReader(file),
				iotest.DataErrReader(bytes.NewReader(file)),
				iotest.HalfReader(bytes.NewReader(file)),
				newPieces(file, uint64(size), 10_000),
				newPieces(file, uint64(size), 3),
			} {
				got, v, err := result(r)
				if v != valid || !bytes.Equal(got, plain) {
					t.Errorf("%d bytes, level %d, reader %d: %s, error %v", size, level, i, v, err)
				}
			}
			if got, v, err := written(bytes.NewReader(file)); v != valid || !bytes.Equal(got, plain) {
				t.Errorf("%d bytes, level %d: WriteTo: %s, error %v", size, level, v, err)
			}
		}
	}
}

func TestReader(t *testing.T) {
	t.Parallel()
	plain := text(200_000)
	z, err := inflate.NewReader(iotest.OneByteReader(bytes.NewReader(compress(t, 6, plain))))
	if err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(z, plain); err != nil {
		t.Error(err)
	}
}

func TestMembers(t *testing.T) {
	t.Parallel()
	plain := text(300_000)
	var file []byte
	for i := 0; i < len(plain); i += 30_000 {
		file = append(file, compress(t, i/30_000%10, plain[i:i+30_000])...)
		file = append(file, compress(t, 6, nil)...)
	}
	for _, r := range []io.Reader{bytes.NewReader(file), newPieces(file, 1, 20)} {
		got, v, err := result(r)
		if v != valid || !bytes.Equal(got, plain) {
			t.Errorf("%s, error %v", v, err)
		}
	}
}

// header makes a header with these flags, 0x80 standing for a wrong checksum.
func header(flags byte, extra, name, comment string) []byte {
	b := gzipHeader()
	b[3] = flags & 0x7f
	if flags&4 != 0 {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(extra)))
		b = append(b, extra...)
	}
	if flags&8 != 0 {
		b = append(b, name+"\x00"...)
	}
	if flags&16 != 0 {
		b = append(b, comment+"\x00"...)
	}
	if flags&2 != 0 {
		b = binary.LittleEndian.AppendUint16(b, uint16(crc32.ChecksumIEEE(b))^uint16(flags>>7))
	}
	return b
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	rest := compress(t, 6, []byte("content"))[10:]
	for name, tc := range map[string]struct {
		header []byte
		want   verdict
	}{
		"plain":            {header(0, "", "", ""), valid},
		"all":              {header(31, "extra", "name", "comment"), valid},
		"header checksum":  {header(2, "", "", ""), valid},
		"long extra":       {header(6, strings.Repeat("x", 65535), "", ""), valid},
		"long name":        {header(10, "", strings.Repeat("x", 511), ""), valid},
		"reserved flags":   {header(0x60, "", "", ""), valid},
		"wrong checksum":   {header(0x80|31, "extra", "name", "comment"), corrupt},
		"all at most":      {header(31, strings.Repeat("x", 65535), strings.Repeat("x", 511), strings.Repeat("x", 511)), valid},
		"empty fields":     {header(31, "", "", ""), valid},
		"name too long":    {header(10, "", strings.Repeat("x", 512), ""), corrupt},
		"comment too long": {header(16, "", "", strings.Repeat("x", 5000)), corrupt},
		"magic":            {append([]byte{0x1f, 0x8c}, header(0, "", "", "")[2:]...), corrupt},
		"method":           {append([]byte{0x1f, 0x8b, 7}, header(0, "", "", "")[3:]...), corrupt},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := slices.Concat(tc.header, rest)
			if got := check(t, file, newPieces(file, 1, 600)); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
			check(t, file, newPieces(file, 2, 1))
			// As the second member it comes out of what was read ahead.
			twice := slices.Concat(compress(t, 6, text(33_000)), file)
			if got := check(t, twice, bytes.NewReader(twice)); got != tc.want {
				t.Errorf("as second member: %s, want %s", got, tc.want)
			}
			for i := 0; i < len(tc.header); i += 1 + i/100*50 {
				check(t, file[:i], bytes.NewReader(file[:i]))
			}
		})
	}
}

func TestTrailing(t *testing.T) {
	t.Parallel()
	file := compress(t, 6, text(1000))
	for _, tail := range []string{"\x00", "x", "\x1f\x8b\x09", "0123456789", strings.Repeat("\x00", 512)} {
		b := append(slices.Clone(file), tail...)
		_, v, err := result(bytes.NewReader(b))
		if v != corrupt {
			t.Errorf("%q behind the last member: %s, error %v", tail, v, err)
		}
		check(t, b, bytes.NewReader(b))
	}
	b := append(slices.Clone(file), "\x1f\x8b\x08\x00"...)
	if v := check(t, b, bytes.NewReader(b)); v != truncated {
		t.Errorf("part of a header behind the last member: %s", v)
	}
}

func TestTrailerMismatch(t *testing.T) {
	t.Parallel()
	plain := text(200_000)
	for i := 1; i <= 8; i++ {
		file := compress(t, 6, plain)
		file[len(file)-i] ^= 1
		if v := check(t, file, bytes.NewReader(file)); v != corrupt {
			t.Errorf("byte %d from the end flipped: %s", i, v)
		}
	}
}

func TestEmptyInput(t *testing.T) {
	t.Parallel()
	if _, err := inflate.NewReader(strings.NewReader("")); err != io.EOF { //nolint:errorlint // documented
		t.Errorf("error %v", err)
	}
}

// An error of the underlying reader comes as it is, after what came before it.
func TestSourceError(t *testing.T) {
	t.Parallel()
	file, gone := compress(t, 6, text(100_000)), errors.New("connection reset")
	for n := 0; n < len(file); n += 97 {
		want, _ := standard(file[:n])
		r := io.MultiReader(bytes.NewReader(file[:n]), iotest.ErrReader(gone))
		got, _, err := result(r)
		if !errors.Is(err, gone) || !bytes.Equal(got, want) {
			t.Errorf("cut after %d bytes: error %v after %d bytes, want %d", n, err, len(got), len(want))
		}
	}
}

// badReader breaks the contract of io.Reader.
type badReader struct{ n int }

func (r badReader) Read(b []byte) (int, error) { return min(r.n, len(b)+1), nil }

func TestBadReaders(t *testing.T) {
	t.Parallel()
	if _, err := inflate.NewReader(badReader{0}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("reader of nothing: error %v", err)
	}
	for _, n := range []int{-1, 1 << 30} {
		if _, err := inflate.NewReader(badReader{n}); err == nil {
			t.Errorf("reader that returns %d: no error", n)
		}
	}
}

func TestSticky(t *testing.T) {
	t.Parallel()
	file := compress(t, 6, text(1000))
	for _, b := range [][]byte{file, file[:len(file)-1], file[:len(file)/2]} {
		z, err := inflate.NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		_, want := z.WriteTo(io.Discard)
		if want == nil {
			want = io.EOF
		}
		for range 2 {
			if n, err := z.Read(make([]byte, 10)); n != 0 || err != want { //nolint:errorlint // the very same
				t.Errorf("%d bytes, error %v, want %v", n, err, want)
			}
		}
	}
}

type failingWriter struct{ room int }

func (w *failingWriter) Write(b []byte) (int, error) {
	n := min(len(b), w.room)
	w.room -= n
	if n < len(b) {
		return n, io.ErrClosedPipe
	}
	return n, nil
}

// After an error of the writer, the reader goes on where the writer stopped.
func TestWriterError(t *testing.T) {
	t.Parallel()
	plain := text(400_000)
	z, err := inflate.NewReader(bytes.NewReader(compress(t, 6, plain)))
	if err != nil {
		t.Fatal(err)
	}
	n, err := z.WriteTo(&failingWriter{room: 250_001})
	if n != 250_001 || !errors.Is(err, io.ErrClosedPipe) {
		t.Fatalf("%d bytes, error %v", n, err)
	}
	got, err := io.ReadAll(z)
	if err != nil || !bytes.Equal(got, plain[n:]) {
		t.Errorf("rest differs, error %v", err)
	}
}

// lyingWriter returns what it was told to add to a count.
type lyingWriter int

func (w lyingWriter) Write(b []byte) (int, error) { return len(b) + int(w), nil }

func TestLyingWriters(t *testing.T) {
	t.Parallel()
	file := compress(t, 6, text(1000))
	for _, tc := range []struct {
		add  int
		want int64
	}{{-1, 999}, {-1000, 0}, {1, 0}, {-1001, 0}} {
		z, err := inflate.NewReader(bytes.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		n, err := z.WriteTo(lyingWriter(tc.add))
		if n != tc.want || err == nil || (err == io.ErrShortWrite) != (tc.add >= -1000 && tc.add < 0) { //nolint:errorlint // documented
			t.Errorf("%+d: %d bytes, error %v", tc.add, n, err)
		}
	}
}

func TestReadThenWriteTo(t *testing.T) {
	t.Parallel()
	plain := text(300_000)
	z, err := inflate.NewReader(bytes.NewReader(compress(t, 6, plain)))
	if err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 131_000)
	if _, err := io.ReadFull(z, head); err != nil {
		t.Fatal(err)
	}
	if n, err := z.Read(nil); n != 0 || err != nil {
		t.Errorf("Read of nothing: %d, %v", n, err)
	}
	rest := bytes.NewBuffer(head)
	if _, err := z.WriteTo(rest); err != nil || !bytes.Equal(rest.Bytes(), plain) {
		t.Errorf("content differs, error %v", err)
	}
}

func TestResetDoesNotAllocate(t *testing.T) { //nolint:paralleltest // AllocsPerRun counts what others allocate too
	file, src := compress(t, 6, text(2_000_000)), new(bytes.Reader)
	src.Reset(file)
	z, err := inflate.NewReader(src)
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(5, func() {
		src.Reset(file)
		if err := z.Reset(src); err != nil {
			t.Fatal(err)
		}
		if n, err := z.WriteTo(io.Discard); n != 2_000_000 || err != nil {
			t.Fatal(n, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Who ignores the error of Reset gets it again, whatever was read before.
func TestReadAfterFailedReset(t *testing.T) {
	t.Parallel()
	file := compress(t, 6, text(300_000))
	for _, bad := range []string{"", "no gzip", "\x1f\x8b\x08", string(file[:10]) + "\x07"} {
		for _, before := range []int64{0, 1, 200_000, 400_000} {
			var z inflate.Reader
			if err := z.Reset(bytes.NewReader(file)); err != nil {
				t.Fatal(err)
			}
			_, _ = io.CopyN(io.Discard, &z, before)
			err := z.Reset(strings.NewReader(bad))
			n, got := z.Read(make([]byte, 10))
			if n != 0 || got == nil || err != nil && got != err { //nolint:errorlint // the very same
				t.Errorf("%q after %d bytes: Reset %v, Read %d, %v", bad, before, err, n, got)
			}
			if n, _ := z.WriteTo(io.Discard); n != 0 {
				t.Errorf("%q after %d bytes: WriteTo %d bytes", bad, before, n)
			}
		}
	}
}

func TestResetAfterError(t *testing.T) {
	t.Parallel()
	plain := text(300_000)
	file := compress(t, 6, plain)
	var z inflate.Reader
	for n := 0; n < len(file); n += 5003 {
		if err := z.Reset(bytes.NewReader(file[:n])); err == nil {
			_, _ = io.CopyN(io.Discard, &z, 200_000)
		}
		if err := z.Reset(bytes.NewReader(file)); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(&z)
		if err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("after %d bytes of another file: error %v", n, err)
		}
	}
}
