// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package inflate_test

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
)

// hostileFile is a valid gzip file that makes a decoder work as long as it can
// for the bytes that it takes.
type hostileFile struct {
	name string
	make func(size int) []byte
}

// hostileFiles are files of about size bytes, each of one thing that costs much.
func hostileFiles() []hostileFile {
	return []hostileFile{
		{"empty fixed blocks", blocks(func(w *bitWriter, _ int) { w.fixedEmpty() })},
		{"empty stored blocks", blocks(func(w *bitWriter, _ int) { w.stored(0, nil) })},
		{"stored blocks of a byte", blocks(func(w *bitWriter, _ int) { w.stored(0, []byte{7}) })},
		{"smallest dynamic blocks", blocks(func(w *bitWriter, _ int) { w.smallest() })},
		{"smallest dynamic and fixed blocks in turn", blocks(func(w *bitWriter, _ int) { w.smallest(); w.fixedEmpty() })},
		{"all symbols, no repeats", blocks(func(w *bitWriter, i int) { w.largest(i, 0) })},
		{"all symbols, repeats", blocks(func(w *bitWriter, _ int) { w.repeated() })},
		{"deep codes", blocks(func(w *bitWriter, _ int) { w.deep(0) })},
		{"deep codes and fixed blocks in turn", blocks(func(w *bitWriter, _ int) { w.deep(0); w.fixedEmpty() })},
		{"deep codes, a few symbols", blocks(func(w *bitWriter, _ int) { w.deep(40) })},
		{"largest tables, some symbols", blocks(func(w *bitWriter, i int) { w.largest(i, 200) })},
		{"largest tables, many symbols", blocks(func(w *bitWriter, i int) { w.largest(i, 20_000) })},
		{"shortest matches", blocks(func(w *bitWriter, i int) { w.shortMatches(i, 5000) })},
		{"longest matches", func(size int) []byte { return blocksAfter([]byte{'x'}, longestMatches)(size / 20) }},
		{"empty members", members(gzipHeader())},
		{"members with a name", members(header(8, "", string(bytes.Repeat([]byte("n"), 511)), ""))},
		{"members with a checked name and comment", members(header(26, "", string(bytes.Repeat([]byte("n"), 511)), string(bytes.Repeat([]byte("c"), 511))))},
		{"members with extra data", members(header(6, string(bytes.Repeat([]byte("x"), 65535)), "", ""))},
		{"members with little extra data", members(header(6, "x", "", ""))},
	}
}

// blocks is one member of many blocks, after a window to refer to.
func blocks(block func(w *bitWriter, i int)) func(size int) []byte {
	return blocksAfter(text(32768), block)
}

func blocksAfter(prefix []byte, block func(w *bitWriter, i int)) func(size int) []byte {
	return func(size int) []byte {
		var w bitWriter
		w.stored(0, prefix)
		for i := 0; len(w.buf) < size; i++ {
			block(&w, i)
		}
		w.stored(1, nil)
		return member(w.finish())
	}
}

// members is many empty members with this header.
func members(header []byte) func(size int) []byte {
	var w bitWriter
	w.bits(1|1<<1, 3)
	w.bits(0, 7)
	one := append(slices.Concat(header, w.finish()), make([]byte, 8)...)
	return func(size int) []byte { return bytes.Repeat(one, size/len(one)+1) }
}

func (w *bitWriter) fixedEmpty() {
	w.bits(1<<1, 3)
	w.bits(0, 7)
}

// lengthHeader begins a dynamic block. The code length code has the symbols
// that are given, each of bits bits, and must be complete.
func (w *bitWriter) lengthHeader(literals, distances int, bits uint8, symbols ...int) code {
	w.bits(2<<1, 3)
	w.bits(uint64(literals-257), 5)
	w.bits(uint64(distances-1), 5)
	l := make([]uint8, 19)
	for _, s := range symbols {
		l[s] = bits
	}
	order := []int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
	last := len(order)
	for last > 4 && l[order[last-1]] == 0 {
		last--
	}
	w.bits(uint64(last-4), 4)
	for _, s := range order[:last] {
		w.bits(uint64(l[s]), 3)
	}
	return newCode(l)
}

// smallest is a dynamic block that ends at once, 90 bits long.
func (w *bitWriter) smallest() {
	c := w.lengthHeader(257, 1, 1, 1, 18)
	for _, zeros := range []uint64{138, 118} {
		w.symbol(c, 18)
		w.bits(zeros-11, 7)
	}
	w.symbol(c, 1)
	w.symbol(c, 1)
	w.bits(0, 1)
}

// repeated is a block whose code has all symbols, in few bits: runs of the same
// length are sent as repeats.
func (w *bitWriter) repeated() {
	c := w.lengthHeader(286, 16, 2, 16, 9, 8, 4)
	run := func(length, n int) {
		w.symbol(c, length)
		for n--; n > 0; {
			k := min(n, 6)
			if n-k > 0 && n-k < 3 {
				k = n - 3
			}
			w.symbol(c, 16)
			w.bits(uint64(k-3), 2)
			n -= k
		}
	}
	run(8, 226)
	run(9, 60)
	run(4, 16)
	w.symbol(newCode(slices.Concat(bytes.Repeat([]byte{8}, 226), bytes.Repeat([]byte{9}, 60))), 256)
}

// deep is a block with codes of 1 to 15 bits, and that many of the rarest
// literals.
func (w *bitWriter) deep(symbols int) {
	distance := counted(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2)
	literal := append(slices.Clone(distance[:15]), make([]uint8, 242)...)
	literal[256] = 15
	l, _ := w.dynamic(0, literal, distance)
	for range symbols {
		w.symbol(l, 14)
	}
	w.symbol(l, 256)
}

// largest is a block with codes of all symbols that need the largest tables
// there can be: an exhaustive search over the counts of each length found none
// with more entries.
func (w *bitWriter) largest(seed, symbols int) {
	r := rand.New(rand.NewPCG(uint64(seed), 1))
	literal := counted(1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 229, 49, 1, 2)
	distance := counted(1, 1, 1, 1, 1, 1, 0, 0, 1, 9, 9, 1, 1, 1, 2)
	r.Shuffle(len(literal), func(i, j int) { literal[i], literal[j] = literal[j], literal[i] })
	r.Shuffle(len(distance), func(i, j int) { distance[i], distance[j] = distance[j], distance[i] })
	l, d := w.dynamic(0, literal, distance)
	w.random(r, l, d, symbols, 32768, false)
	w.symbol(l, 256)
}

// counted gives as many codes of 1, 2, 3 and so on bits as it is told.
func counted(counts ...int) []uint8 {
	var l []uint8
	for i, n := range counts {
		l = append(l, bytes.Repeat([]byte{uint8(i + 1)}, n)...)
	}
	return l
}

// shortMatches is a fixed block of matches of three bytes, near and far.
func (w *bitWriter) shortMatches(seed, n int) {
	r := rand.New(rand.NewPCG(uint64(seed), 2))
	ll, dl := fixedLens()
	l, d := newCode(ll), newCode(dl)
	w.bits(1<<1, 3)
	for range n {
		w.symbol(l, 257)
		s := r.IntN(28)
		_, extra := distanceBase(s)
		w.symbol(d, s)
		w.bits(r.Uint64N(1<<extra), extra)
	}
	w.symbol(l, 256)
}

// longestMatches is a block of matches of 258 bytes in two bits each.
func longestMatches(w *bitWriter, _ int) {
	l, d := w.dynamic(0, lens(286, map[int]uint8{256: 1, 285: 1}), lens(1, map[int]uint8{0: 1}))
	for range 2000 {
		w.symbol(l, 285)
		w.symbol(d, 0)
	}
	w.symbol(l, 256)
}

func TestHostileFiles(t *testing.T) {
	t.Parallel()
	for _, f := range hostileFiles() {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			file := f.make(150_000)
			if v := check(t, file, newPieces(file, 1, 70_000)); v != valid {
				t.Errorf("%s", v)
			}
			got, v, _ := written(bytes.NewReader(file))
			checkKlauspost(t, file, got, v)
			cut := file[:len(file)-len(file)/3]
			check(t, cut, bytes.NewReader(cut))
		})
	}
}
