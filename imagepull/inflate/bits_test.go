// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package inflate_test

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math/bits"
	"math/rand/v2"
	"slices"
)

// bitWriter makes DEFLATE streams, valid or not.
type bitWriter struct {
	buf   []byte
	acc   uint64
	count int
}

func (w *bitWriter) bits(v uint64, n int) {
	w.acc |= v << w.count
	for w.count += n; w.count >= 8; w.count -= 8 {
		w.buf = append(w.buf, byte(w.acc))
		w.acc >>= 8
	}
}

func (w *bitWriter) finish() []byte {
	if w.count > 0 {
		w.bits(0, 8-w.count)
	}
	return w.buf
}

func (w *bitWriter) stored(final uint64, b []byte) {
	w.bits(final, 3)
	if w.count > 0 {
		w.bits(0, 8-w.count)
	}
	w.bits(uint64(len(b)), 16)
	w.bits(uint64(^uint16(len(b))), 16)
	w.buf = append(w.buf, b...)
}

// code is a canonical code: what to write for each symbol.
type code []struct {
	bits uint64
	n    int
}

func newCode(lens []uint8) code {
	c := make(code, len(lens))
	next := uint32(0)
	for n := 1; n <= 15; n++ {
		for i, l := range lens {
			if int(l) == n {
				c[i].bits, c[i].n = uint64(bits.Reverse16(uint16(next))>>(16-n)), n
				next++
			}
		}
		next <<= 1
	}
	return c
}

func (w *bitWriter) symbol(c code, s int) { w.bits(c[s].bits, c[s].n) }

func fixedLens() (literal, distance []uint8) {
	literal = slices.Concat(bytes.Repeat([]byte{8}, 144), bytes.Repeat([]byte{9}, 112),
		bytes.Repeat([]byte{7}, 24), bytes.Repeat([]byte{8}, 8))
	return literal, bytes.Repeat([]byte{5}, 32)
}

// dynamic begins a dynamic block with these code lengths. They are sent by a
// code of 4 bits for each of 0 to 15.
func (w *bitWriter) dynamic(final uint64, literal, distance []uint8) (code, code) {
	return w.dynamicBy(bytes.Repeat([]byte{4}, 16), final, literal, distance)
}

// dynamicBy is dynamic with another code for 0 to 15.
func (w *bitWriter) dynamicBy(lengths []uint8, final uint64, literal, distance []uint8) (code, code) {
	w.bits(final|2<<1, 3)
	w.bits(uint64(len(literal)-257), 5)
	w.bits(uint64(len(distance)-1), 5)
	w.bits(19-4, 4)
	for _, s := range []int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15} {
		if s < 16 {
			w.bits(uint64(lengths[s]), 3)
		} else {
			w.bits(0, 3)
		}
	}
	c := newCode(lengths)
	for _, l := range slices.Concat(literal, distance) {
		w.symbol(c, int(l))
	}
	return newCode(literal), newCode(distance)
}

// lens returns code lengths for n symbols: those given, or zero.
func lens(n int, set map[int]uint8) []uint8 {
	l := make([]uint8, n)
	for s, v := range set {
		l[s] = v
	}
	return l
}

// randomLens returns a complete code of some of n symbols, at most 15 bits long.
func randomLens(r *rand.Rand, n, used int) []uint8 {
	leaves := []uint8{1, 1}
	used = min(used, n)
	for tries := 0; len(leaves) < used && tries < 10000; tries++ {
		// Splitting one of the last leaves makes deep codes.
		i := r.IntN(len(leaves))
		if r.IntN(3) > 0 {
			i = len(leaves) - 1
		}
		if leaves[i] < 15 {
			leaves[i]++
			leaves = append(leaves, leaves[i])
		}
	}
	l := make([]uint8, n)
	for i, s := range r.Perm(n)[:len(leaves)] {
		l[s] = leaves[i]
	}
	return l
}

// random writes symbols of a block, valid but for distances if wild.
func (w *bitWriter) random(r *rand.Rand, literal, distance code, symbols, have int, wild bool) int {
	for range symbols {
		s := r.IntN(len(literal))
		if s < 256 || literal[s].n == 0 {
			s = r.IntN(256)
		}
		if s == 256 || literal[s].n == 0 {
			continue
		}
		if s < 256 {
			w.symbol(literal, s)
			have++
			continue
		}
		d := r.IntN(min(len(distance), 30))
		base, extra := distanceBase(d)
		if distance[d].n == 0 || !wild && base+1<<extra > have {
			continue
		}
		w.symbol(literal, s)
		n := lengthExtra(s)
		w.bits(r.Uint64N(1<<n), n)
		w.symbol(distance, d)
		w.bits(r.Uint64N(1<<extra), extra)
		have += 3
	}
	return have
}

func lengthExtra(symbol int) int {
	if symbol < 265 || symbol >= 285 {
		return 0
	}
	return (symbol - 261) / 4
}

func distanceBase(symbol int) (base, extra int) {
	if symbol < 2 {
		return symbol + 1, 0
	}
	extra = symbol/2 - 1
	return 1 + (2+symbol%2)<<extra, extra
}

// gzipHeader is the shortest there is.
func gzipHeader() []byte { return []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255} }

// member makes a gzip file of a DEFLATE stream. The trailer fits what the
// standard library reads from it, be it corrupt or not.
func member(deflate []byte) []byte {
	plain, _ := io.ReadAll(flate.NewReader(bytes.NewReader(deflate)))
	b := append(gzipHeader(), deflate...)
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(plain))
	return binary.LittleEndian.AppendUint32(b, uint32(len(plain)))
}
