// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package inflate_test

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	kgzip "github.com/klauspost/compress/gzip"

	"github.com/coffer-cc/coffer/imagepull/inflate"
)

// verdict is what came of reading a file.
type verdict string

const (
	valid     verdict = "valid"
	truncated verdict = "truncated"
	corrupt   verdict = "corrupt"
	empty     verdict = "empty"
	other     verdict = "another error"
)

func verdictOf(opened bool, err error) verdict {
	var ours *inflate.CorruptError
	var theirs flate.CorruptInputError
	switch {
	case err == nil:
		return valid
	case err == io.EOF && !opened: //nolint:errorlint // as the interface demands
		return empty
	case err == io.ErrUnexpectedEOF: //nolint:errorlint // both give it bare
		return truncated
	case errors.As(err, &ours), errors.As(err, &theirs), errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum):
		return corrupt
	default:
		return other
	}
}

// standard is the standard library's result.
func standard(file []byte) ([]byte, verdict) {
	z, err := gzip.NewReader(bytes.NewReader(file))
	if err != nil {
		return nil, verdictOf(false, err)
	}
	b, err := io.ReadAll(z)
	return b, verdictOf(true, err)
}

// result reads all through Read.
func result(r io.Reader) ([]byte, verdict, error) {
	z, err := inflate.NewReader(r)
	if err != nil {
		return nil, verdictOf(false, err), err
	}
	b, err := io.ReadAll(z)
	return b, verdictOf(true, err), err
}

// written reads all through WriteTo.
func written(r io.Reader) ([]byte, verdict, error) {
	z, err := inflate.NewReader(r)
	if err != nil {
		return nil, verdictOf(false, err), err
	}
	var b bytes.Buffer
	n, err := z.WriteTo(&b)
	if n != int64(b.Len()) {
		return nil, other, errors.New("WriteTo returned a wrong count")
	}
	return b.Bytes(), verdictOf(true, err), err
}

// check compares with the standard library: the same bytes and the same kind of
// error after them. The one difference: what follows the last member and is too
// short for a header is truncated there, whatever it is, and corrupt here unless
// a header could begin so.
func check(t *testing.T, file []byte, r io.Reader) verdict {
	t.Helper()
	want, wantVerdict := standard(file)
	got, gotVerdict, err := result(r)
	compare(t, file, want, got, wantVerdict, gotVerdict, err)
	return gotVerdict
}

func compare(t *testing.T, file, want, got []byte, wantVerdict, gotVerdict verdict, err error) {
	t.Helper()
	if !bytes.Equal(got, want) {
		at := 0
		for at < min(len(got), len(want)) && got[at] == want[at] {
			at++
		}
		t.Fatalf("%d bytes differ from the standard library's %d from byte %d on (%v)\nfile %x", len(got), len(want), at, err, clip(file))
	}
	if wantVerdict == truncated && gotVerdict == corrupt && strings.Contains(err.Error(), "a gzip header is expected") {
		wantVerdict = corrupt
	}
	if gotVerdict != wantVerdict {
		t.Fatalf("%s (%v), but the standard library says %s\nfile %x", gotVerdict, err, wantVerdict, clip(file))
	}
	var c *inflate.CorruptError
	if errors.As(err, &c) && (c.Offset < 0 || c.Offset > int64(len(file))) {
		t.Fatalf("offset %d is not in the file of %d bytes", c.Offset, len(file))
	}
}

func clip(b []byte) []byte { return b[:min(len(b), 2000)] }

// checkKlauspost compares with the other library: valid or not, and the bytes of
// what is valid. The one difference: it refuses reserved flags in a header.
func checkKlauspost(t *testing.T, file, got []byte, v verdict) {
	t.Helper()
	var want []byte
	z, err := kgzip.NewReader(bytes.NewReader(file))
	if err == nil {
		want, err = io.ReadAll(z)
	}
	if errors.Is(err, kgzip.ErrHeader) && v == valid {
		return
	}
	if (err == nil) != (v == valid) {
		t.Fatalf("%s, but klauspost's error is %v\nfile %x", v, err, clip(file))
	}
	if err == nil && !bytes.Equal(got, want) {
		t.Fatalf("bytes differ from klauspost's\nfile %x", clip(file))
	}
}

// pieces is a reader of small and empty reads, which may end together with
// data.
type pieces struct {
	data []byte
	rand *rand.Rand
	max  int
}

func newPieces(data []byte, seed uint64, limit int) *pieces {
	return &pieces{data: data, rand: rand.New(rand.NewPCG(seed, 7)), max: limit}
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.data) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.data[:min(p.rand.IntN(p.max+1), len(p.data))])
	p.data = p.data[n:]
	if len(p.data) == 0 && p.rand.IntN(2) == 0 {
		return n, io.EOF
	}
	return n, nil
}
