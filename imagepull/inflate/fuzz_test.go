// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package inflate_test

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	kgzip "github.com/klauspost/compress/gzip"
)

const seedDir = "testdata/seed"

var update = flag.Bool("update", false, "rewrite the seeds") //nolint:gochecknoglobals // the flag package works this way

// TestSeeds reads the files that encoders made, all of the same content. With
// -update it makes them anew.
func TestSeeds(t *testing.T) {
	t.Parallel()
	plain := text(5000)
	if *update {
		writeSeeds(t, plain)
	}
	names, err := filepath.Glob(filepath.Join(seedDir, "*.gz"))
	if err != nil || len(names) < 24 {
		t.Fatalf("%d seeds, error %v", len(names), err)
	}
	for _, name := range names {
		file, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		got, v, err := result(bytes.NewReader(file))
		if v != valid || !bytes.Equal(got, plain) {
			t.Errorf("%s: %s, error %v", name, v, err)
		}
	}
}

func writeSeeds(t *testing.T, plain []byte) {
	t.Helper()
	for level := kgzip.StatelessCompression; level <= kgzip.BestCompression; level++ {
		var buf bytes.Buffer
		w, err := kgzip.NewWriterLevel(&buf, level)
		if err != nil {
			t.Fatal(err)
		}
		// A flush amidst makes an empty stored block.
		for _, part := range [][]byte{plain[:2000], plain[2000:]} {
			if _, err := w.Write(part); err != nil {
				t.Fatal(err)
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		writeSeed(t, fmt.Sprintf("klauspost%+d.gz", level), buf.Bytes())
		if level >= -2 {
			writeSeed(t, fmt.Sprintf("std%+d.gz", level), compress(t, level, plain))
		}
	}
}

func writeSeed(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(seedDir, name), b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// maxFuzz bounds the input of a fuzz target, and with it the output.
const maxFuzz = 6 << 10

// FuzzReader compares the reading of any file with the other decoders.
func FuzzReader(f *testing.F) {
	names, err := filepath.Glob(filepath.Join(seedDir, "*.gz"))
	if err != nil {
		f.Fatal(err)
	}
	for i, name := range names {
		file, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(file, uint64(i))
	}
	for i, s := range streams() {
		var w bitWriter
		s.write(&w)
		if file := member(w.finish()); len(file) < maxFuzz {
			f.Add(file, uint64(i))
		}
	}
	f.Add(append(header(31, "extra", "name", "comment"), 3, 0, 0, 0, 0, 0, 0, 0, 0, 0), uint64(1))
	f.Fuzz(func(t *testing.T, file []byte, seed uint64) {
		if len(file) > maxFuzz {
			return
		}
		compareAll(t, file, seed)
	})
}

// FuzzDeflate does the same for the data of a member that has the right
// checksum and follows some other data, which the matches may refer to.
func FuzzDeflate(f *testing.F) {
	for i, s := range streams() {
		var w bitWriter
		s.write(&w)
		if b := w.finish(); len(b) < maxFuzz {
			f.Add(b, uint16(i*2000), uint64(i))
		}
	}
	names, err := filepath.Glob(filepath.Join(seedDir, "*.gz"))
	if err != nil {
		f.Fatal(err)
	}
	for i, name := range names {
		file, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(file[10:len(file)-8], uint16(i*1000), uint64(i))
	}
	f.Fuzz(func(t *testing.T, deflate []byte, have uint16, seed uint64) {
		if len(deflate) > maxFuzz {
			return
		}
		var w bitWriter
		w.stored(0, text(int(have)))
		compareAll(t, member(append(w.finish(), deflate...)), seed)
	})
}

// FuzzBlocks does it for blocks with complete codes of any shape, which bytes
// out of a hat hardly ever are, with a few bits flipped.
func FuzzBlocks(f *testing.F) {
	f.Add(uint64(1), uint8(3), uint16(500), uint32(0), uint32(0))
	f.Add(uint64(2), uint8(40), uint16(0), uint32(0), uint32(0))
	f.Add(uint64(3), uint8(2), uint16(60_000), uint32(70), uint32(0))
	f.Add(uint64(4), uint8(5), uint16(2000), uint32(3000), uint32(300_000))
	f.Fuzz(func(t *testing.T, seed uint64, blocks uint8, symbols uint16, flip, flipToo uint32) {
		var w bitWriter
		r := rand.New(rand.NewPCG(seed, 8))
		have := 0
		for range blocks % 64 {
			have = w.anyBlock(r, int(symbols), have)
		}
		w.stored(1, nil)
		deflate := w.finish()
		for _, bit := range []uint32{flip, flipToo} {
			if bit > 0 && int(bit/8) < len(deflate) {
				deflate[bit/8] ^= 1 << (bit % 8)
			}
		}
		compareAll(t, member(deflate), seed)
	})
}

// anyBlock writes a block of any type and returns how many bytes there are then.
func (w *bitWriter) anyBlock(r *rand.Rand, symbols, have int) int {
	switch r.IntN(8) {
	case 0:
		n := r.IntN(1 + symbols)
		w.stored(0, text(n))
		return have + n
	case 1, 2:
		ll, dl := fixedLens()
		l, d := newCode(ll), newCode(dl)
		w.bits(1<<1, 3)
		have = w.random(r, l[:286], d, r.IntN(1+symbols), have, false)
		w.symbol(l, 256)
		return have
	}
	literal := randomLens(r, 257+r.IntN(30), 2+r.IntN(280))
	distance := randomLens(r, 2+r.IntN(29), 2+r.IntN(28))
	if literal[256] == 0 {
		at := slices.IndexFunc(literal, func(n uint8) bool { return n > 0 })
		literal[256], literal[at] = literal[at], 0
	}
	l, d := w.dynamic(0, literal, distance)
	have = w.random(r, l, d, r.IntN(1+symbols), have, r.IntN(50) == 0)
	w.symbol(l, 256)
	return have
}

func compareAll(t *testing.T, file []byte, seed uint64) {
	t.Helper()
	v := check(t, file, newPieces(file, seed, 1+int(seed%40_000)))
	want, wantVerdict := standard(file)
	got, gotVerdict, err := written(bytes.NewReader(file))
	compare(t, file, want, got, wantVerdict, gotVerdict, err)
	checkKlauspost(t, file, got, v)
	if v == valid {
		twice := io.MultiReader(bytes.NewReader(file), bytes.NewReader(file))
		if _, v, err := result(twice); v != valid {
			t.Fatalf("twice in a row: %s, error %v", v, err)
		}
	}
}
