// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package inflate_test

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
)

// stream is a DEFLATE stream that no ordinary encoder makes.
type stream struct {
	name  string
	want  verdict
	write func(w *bitWriter)
}

// dynamicStream is a final dynamic block: codes of literals and lengths, of
// distances, and the symbols to write, an extra 100,000 making it a distance.
func dynamicStream(literal, distance []uint8, tail func(w *bitWriter, literal, distance code)) func(w *bitWriter) {
	return func(w *bitWriter) {
		l, d := w.dynamic(1, literal, distance)
		tail(w, l, d)
	}
}

func end(w *bitWriter, literal, _ code) { w.symbol(literal, 256) }

// aaEnd writes two literals, a match of length 3 with distance symbol 0, and the
// end.
func aaEnd(w *bitWriter, literal, distance code) {
	w.symbol(literal, 'a')
	w.symbol(literal, 'a')
	w.symbol(literal, 257)
	w.symbol(distance, 0)
	w.symbol(literal, 256)
}

func raw(final, kind uint64) func(w *bitWriter) {
	return func(w *bitWriter) { w.bits(final|kind<<1, 3) }
}

// fixedStream is a final fixed block that begins with 'a', followed by the
// symbols of a length and a distance, with their extra bits, and the end.
func fixedStream(length int, lengthBits uint64, distance int, distanceBits uint64) func(w *bitWriter) {
	return func(w *bitWriter) {
		raw(1, 1)(w)
		ll, dl := fixedLens()
		l, d := newCode(ll), newCode(dl)
		w.symbol(l, 'a')
		w.symbol(l, length)
		w.bits(lengthBits, lengthExtra(length))
		w.symbol(d, distance)
		if distance < 30 {
			_, n := distanceBase(distance)
			w.bits(distanceBits, n)
		}
		w.symbol(l, 256)
	}
}

// far is a fixed block behind 32 KiB of stored data, with a match of the
// largest distance and length.
func far(have int) func(w *bitWriter) {
	return func(w *bitWriter) {
		w.stored(0, text(have))
		raw(1, 1)(w)
		ll, dl := fixedLens()
		l, d := newCode(ll), newCode(dl)
		for range 1000 {
			w.symbol(l, 285)
			w.symbol(d, 29)
			w.bits(8191, 13)
		}
		w.symbol(l, 256)
	}
}

// lengthCode begins a dynamic block with these lengths of the code length code,
// in the order in which they are sent.
func lengthCode(hlit, hdist uint64, lengths ...uint64) *bitWriter {
	w := new(bitWriter)
	w.bits(1|2<<1, 3)
	w.bits(hlit, 5)
	w.bits(hdist, 5)
	w.bits(uint64(max(len(lengths), 4)-4), 4)
	for _, n := range lengths {
		w.bits(n, 3)
	}
	return w
}

func bitsOf(w *bitWriter, rest ...uint64) func(w *bitWriter) {
	return func(out *bitWriter) {
		*out = *w
		for _, b := range rest {
			out.bits(b, 8)
		}
	}
}

func streams() []stream {
	two := lens(257, map[int]uint8{'a': 1, 256: 1})
	three := lens(258, map[int]uint8{'a': 1, 256: 2, 257: 2})
	return []stream{
		{"stored empty", valid, func(w *bitWriter) { w.stored(1, nil) }},
		{"stored", valid, func(w *bitWriter) { w.stored(0, []byte("abc")); w.stored(0, nil); w.stored(1, text(65535)) }},
		{"stored complement", corrupt, func(w *bitWriter) { w.bits(1, 8); w.bits(0x0000, 16); w.bits(0xfffe, 16) }},
		{"stored dirty padding", valid, func(w *bitWriter) { w.bits(0xf9, 8); w.bits(0, 16); w.bits(0xffff, 16) }},
		{"reserved type", corrupt, raw(1, 3)},
		{"fixed empty", valid, func(w *bitWriter) { raw(0, 1)(w); w.bits(0, 7); raw(1, 1)(w); w.bits(0, 7) }},
		{"fixed match", valid, fixedStream(257, 0, 0, 0)},
		{"fixed longest", valid, fixedStream(285, 0, 0, 0)},
		{"fixed longest otherwise", valid, fixedStream(284, 31, 0, 0)},
		{"fixed before start", corrupt, fixedStream(257, 0, 1, 0)},
		{"fixed length 286", corrupt, fixedStream(286, 0, 0, 0)},
		{"fixed length 287", corrupt, fixedStream(287, 0, 0, 0)},
		{"fixed distance 30", corrupt, fixedStream(257, 0, 30, 0)},
		{"fixed distance 31", corrupt, fixedStream(257, 0, 31, 0)},
		{"far", valid, far(32768)},
		{"too far", corrupt, far(32767)},
		{"dynamic empty", valid, dynamicStream(two, lens(1, nil), end)},
		{"no end of block", truncated, dynamicStream(lens(257, map[int]uint8{'a': 1, 'b': 1}), lens(1, nil), end)},
		{"only end of block", valid, dynamicStream(lens(257, map[int]uint8{256: 1}), lens(1, nil), end)},
		{"only end of block, other bit", corrupt, dynamicStream(lens(257, map[int]uint8{256: 1}), lens(1, nil), func(w *bitWriter, _, _ code) { w.bits(1, 1) })},
		{"only end of block, 2 bits", corrupt, dynamicStream(lens(257, map[int]uint8{256: 2}), lens(1, nil), end)},
		{"no literal code", corrupt, dynamicStream(lens(257, nil), lens(1, nil), end)},
		{"no distance code", valid, dynamicStream(three, lens(1, nil), end)},
		{"no distance code, used", corrupt, dynamicStream(three, lens(1, nil), aaEnd)},
		{"one distance", valid, dynamicStream(three, lens(1, map[int]uint8{0: 1}), aaEnd)},
		{"one distance, other bit", corrupt, dynamicStream(three, lens(1, map[int]uint8{0: 1}), func(w *bitWriter, l, _ code) {
			w.symbol(l, 'a')
			w.symbol(l, 257)
			w.bits(1, 1)
		})},
		{"one distance, 2 bits", corrupt, dynamicStream(three, lens(1, map[int]uint8{0: 2}), aaEnd)},
		{"incomplete literals", corrupt, dynamicStream(lens(258, map[int]uint8{'a': 2, 256: 2, 257: 2}), lens(1, nil), end)},
		{"over-subscribed literals", corrupt, dynamicStream(lens(258, map[int]uint8{'a': 1, 256: 1, 257: 2}), lens(1, nil), end)},
		{"incomplete distances", corrupt, dynamicStream(three, lens(3, map[int]uint8{0: 1, 2: 2}), end)},
		{"over-subscribed distances", corrupt, dynamicStream(three, lens(3, map[int]uint8{0: 1, 1: 1, 2: 1}), end)},
		{"287 literals", corrupt, bitsOf(lengthCode(30, 0, 4, 4, 4, 4), 0, 0, 0, 0)},
		{"31 distances", corrupt, bitsOf(lengthCode(0, 30, 4, 4, 4, 4), 0, 0, 0, 0)},
		{"no code length code", corrupt, bitsOf(lengthCode(0, 0, 0, 0, 0, 0), 0, 0, 0, 0)},
		{"incomplete code length code", corrupt, bitsOf(lengthCode(0, 0, 2, 2, 2, 0), 0, 0, 0, 0)},
		{"repeat of nothing", corrupt, bitsOf(lengthCode(0, 0, 1, 1, 0, 0), 0, 0, 0, 0)},
		{"too many lengths", corrupt, bitsOf(lengthCode(0, 0, 0, 0, 1, 0), 0xfe, 0xff, 0xff, 0xff)},
		{"only symbol 18", corrupt, bitsOf(lengthCode(0, 0, 0, 0, 1, 0), 0xfe, 0x38, 0, 0, 0)},
		{"nothing at all", truncated, func(*bitWriter) {}},
	}
}

func TestStreams(t *testing.T) {
	t.Parallel()
	for _, s := range streams() {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			var w bitWriter
			s.write(&w)
			file := member(w.finish())
			if s.want == truncated {
				file = file[:len(file)-8]
			}
			got := check(t, file, bytes.NewReader(file))
			if got != s.want {
				t.Errorf("%s, want %s", got, s.want)
			}
			check(t, file, newPieces(file, 1, 2))
			for i := range min(len(file), 300) {
				check(t, file[:i], bytes.NewReader(file[:i]))
			}
			// What came before must not be within reach.
			twice := slices.Concat(compress(t, 6, text(40_000)), file)
			if got := check(t, twice, bytes.NewReader(twice)); got != s.want {
				t.Errorf("as second member: %s, want %s", got, s.want)
			}
		})
	}
}

// TestRandomCodes has codes of all shapes, up to 15 bits, and their lengths
// spoilt.
func TestRandomCodes(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(3, 4))
	seen := map[verdict]int{}
	for i := range 1500 {
		var w bitWriter
		have := 0
		if i%3 == 0 {
			w.stored(0, text(40_000))
			have = 40_000
		}
		for range 1 + r.IntN(4) {
			literal := randomLens(r, 257+r.IntN(30), 2+r.IntN(280))
			distance := randomLens(r, 2+r.IntN(29), 2+r.IntN(28))
			if literal[256] == 0 {
				at := slices.IndexFunc(literal, func(n uint8) bool { return n > 0 })
				literal[256], literal[at] = literal[at], 0
			}
			if i%5 == 1 {
				l := literal
				if r.IntN(2) == 0 {
					l = distance
				}
				l[r.IntN(len(l))] = uint8(r.IntN(16))
			}
			lc, dc := w.dynamic(0, literal, distance)
			have = w.random(r, lc, dc, r.IntN(3000), have, i%7 == 0)
			w.symbol(lc, 256)
		}
		w.stored(1, nil)
		file := member(w.finish())
		v := check(t, file, newPieces(file, uint64(i), 1+r.IntN(50_000)))
		seen[v]++
		got, v, _ := written(bytes.NewReader(file))
		checkKlauspost(t, file, got, v)
	}
	if seen[valid] < 300 || seen[corrupt] < 100 {
		t.Errorf("verdicts are %v: the generator is out of order", seen)
	}
}

// small is a file with blocks of every type.
func small(t *testing.T) []byte {
	var w bitWriter
	w.stored(0, []byte("stored"))
	r := rand.New(rand.NewPCG(5, 6))
	ll, dl := fixedLens()
	l, d := newCode(ll), newCode(dl)
	raw(0, 1)(&w)
	have := w.random(r, l[:286], d, 60, 6, false)
	w.symbol(l, 256)
	lc, dc := w.dynamic(1, randomLens(r, 280, 270), randomLens(r, 20, 18))
	w.random(r, lc, dc, 80, have, false)
	w.symbol(lc, 256)
	return slices.Concat(compress(t, 9, text(700)), member(w.finish()))
}

func TestTruncation(t *testing.T) {
	t.Parallel()
	file := small(t)
	for i := range file {
		check(t, file[:i], bytes.NewReader(file[:i]))
		check(t, file[:i], newPieces(file[:i], uint64(i), 9))
	}
	if v := check(t, file, bytes.NewReader(file)); v != valid {
		t.Error(v)
	}
}

// TestFirstSymbol has blocks that begin with the match that takes the most bits,
// at all places relative to the bits that were taken in advance.
func TestFirstSymbol(t *testing.T) {
	t.Parallel()
	deep := counted(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2)
	literal, distance := make([]uint8, 286), make([]uint8, 30)
	copy(literal, deep[:14])
	literal[256], literal[284] = 15, 15
	copy(distance, deep[:15])
	distance[29] = 15
	for ahead := range 128 {
		var w bitWriter
		w.stored(0, text(32768))
		for range ahead {
			w.bits(1<<1, 3)
			w.bits(0x1ff, 9) // the last literal
			w.bits(0, 7)
		}
		// Where the long lengths are tells how far the bits are used up.
		r := rand.New(rand.NewPCG(uint64(ahead), 10))
		r.Shuffle(256, func(i, j int) { literal[i], literal[j] = literal[j], literal[i] })
		l, d := w.dynamicBy([]uint8{1, 4, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5}, 0, literal, distance)
		w.symbol(l, 284)
		w.bits(30, 5)
		w.symbol(d, 29)
		w.bits(8190, 13)
		w.symbol(l, 256)
		w.stored(1, nil)
		file := member(w.finish())
		if v := check(t, file, bytes.NewReader(file)); v != valid {
			t.Errorf("after %d blocks: %s", ahead, v)
		}
	}
}

// TestWindow has long matches about as far back as can be, at all places
// relative to the ends of the buffers, which they overrun several times.
func TestWindow(t *testing.T) {
	t.Parallel()
	ll, dl := fixedLens()
	l, d := newCode(ll), newCode(dl)
	for shift := range 64 {
		r := rand.New(rand.NewPCG(uint64(shift), 9))
		var w bitWriter
		w.stored(0, text(32768+shift*5))
		w.bits(1|1<<1, 3)
		for range 2000 {
			if r.IntN(3) == 0 {
				w.symbol(l, r.IntN(256))
			}
			length := 281 + r.IntN(5)
			n := lengthExtra(length)
			w.symbol(l, length)
			w.bits(r.Uint64N(1<<n), n)
			w.symbol(d, 29)
			w.bits(8191-r.Uint64N(1+r.Uint64N(300)), 13)
		}
		w.symbol(l, 256)
		file := member(w.finish())
		if v := check(t, file, newPieces(file, uint64(shift), 40_000)); v != valid {
			t.Errorf("shifted by %d: %s", shift*5, v)
		}
	}
}

func TestBitFlips(t *testing.T) {
	t.Parallel()
	for _, file := range [][]byte{small(t), compress(t, 6, text(1200)), compress(t, -2, text(300))} {
		for i := range len(file) * 8 {
			flipped := slices.Clone(file)
			flipped[i/8] ^= 1 << (i % 8)
			v := check(t, flipped, bytes.NewReader(flipped))
			if i%8 == 0 {
				got, _, _ := written(bytes.NewReader(flipped))
				checkKlauspost(t, flipped, got, v)
			}
		}
	}
}
