// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package inflate_test

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
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
