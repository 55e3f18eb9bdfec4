// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package inflate

import "math/bits"

// build makes the table of the canonical code with these code lengths, each up
// to 15. It returns the length of the shortest code, and whether the code is
// one that may occur: it must be complete, or have no symbol at all, or have a
// single one of length 1.
func build[E uint32 | uint64](table []E, root int, lens []uint8, entries []E) (shortest uint64, ok bool) {
	var counts [maxCodeBits + 1]int
	for _, n := range lens {
		counts[n&maxCodeBits]++
	}
	counts[0] = 0
	low, high, code := 0, 0, 0
	for n := 1; n <= maxCodeBits; n++ {
		if counts[n] == 0 {
			continue
		}
		if low == 0 {
			low = n
		}
		high = n
		code += counts[n] << (maxCodeBits - n)
	}
	switch {
	case high == 0 || high == 1 && counts[1] == 1:
		// What fillRoot does not set, and doubles.
		table[0], table[1] = entrySpecial, entrySpecial
	case code != 1<<maxCodeBits:
		return 0, false
	}

	b := builder[E]{table: table, root: root, entries: entries, counts: counts, low: low, high: high}
	b.sort(lens)
	b.fillRoot()
	if high > root {
		b.fillSecond()
	}
	return uint64(low), true
}

type builder[E uint32 | uint64] struct {
	table     []E
	root      int
	entries   []E
	counts    [maxCodeBits + 1]int // of the codes of each length
	low, high int                  // shortest and longest length

	sorted [literalSymbols + 2]uint16 // symbols in the order of their codes
	done   int                        // how many symbols have their entries
	code   uint16                     // the next one, of the length at hand
}

// sort orders the symbols by the length of their codes.
func (b *builder[E]) sort(lens []uint8) {
	var next [maxCodeBits + 1]int
	sum := 0
	for n := b.low; n <= b.high; n++ {
		next[n] = sum
		sum += b.counts[n]
	}
	for symbol, n := range lens {
		if n != 0 {
			b.sorted[next[n&maxCodeBits]] = uint16(symbol)
			next[n&maxCodeBits]++
		}
	}
}

// take returns the entry of the next symbol, whose code has n bits, and the
// code in the order in which its bits are read.
func (b *builder[E]) take(n int) (entry E, code int) {
	entry = b.entries[b.sorted[b.done]] + E(n)<<entryCode + E(n)
	code = int(bits.Reverse16(b.code) >> (16 - n))
	b.done++
	b.code++
	return entry, code
}

// fillRoot makes the entries of all codes that fit the root. For every length,
// it doubles the table that serves the codes up to that length.
func (b *builder[E]) fillRoot() {
	size := 1 << b.low
	for n := b.low; n <= b.root; n++ {
		if n > b.low {
			copy(b.table[size:2*size], b.table[:size])
			size *= 2
		}
		for range b.counts[n] {
			entry, code := b.take(n)
			b.table[code] = entry
		}
		b.code <<= 1
	}
}

// fillSecond makes the second tables.
func (b *builder[E]) fillSecond() {
	free := 1 << b.root
	n := b.root + 1
	for n <= b.high {
		if b.counts[n] == 0 {
			n++
			b.code <<= 1
			continue
		}
		// All codes that begin as this one share a table. It is as wide as the
		// longest of them needs, which is where the codes fill it.
		width := n - b.root
		for left := 1<<width - b.counts[n]; left > 0 && width+b.root < b.high; {
			width++
			left = left*2 - b.counts[width+b.root]
		}
		prefix := b.code >> (n - b.root)
		second := b.table[free : free+1<<width]
		first := int(bits.Reverse16(prefix) >> (16 - b.root))
		b.table[first] = E(free)<<entryValue | entryLink | entrySpecial | E(width)<<entryCode
		free += 1 << width
		n = b.fillOne(second, n, prefix)
	}
}

// fillOne makes the entries of the codes that begin with prefix, the first of
// which has n bits, and returns the length of the next code.
func (b *builder[E]) fillOne(second []E, n int, prefix uint16) int {
	for n <= b.high {
		if b.counts[n] == 0 {
			n++
			b.code <<= 1
			continue
		}
		if b.code>>(n-b.root) != prefix {
			break
		}
		b.counts[n]--
		entry, code := b.take(n)
		for i := code >> b.root; i < len(second); i += 1 << (n - b.root) {
			second[i] = entry
		}
	}
	return n
}
