// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math/rand/v2"
	"strconv"
)

// The size of the made-up language.
const (
	words      = 6000
	successors = 14
)

// prose makes text that compresses like the sources, manuals and data files
// of an image: words follow each other by a fixed chain, each file has names
// of its own that come again, and lines have a form.
type prose struct {
	vocabulary [words][]byte
	next       [words][successors]uint16
}

func newProse(seed uint64) *prose {
	r := rand.New(rand.NewPCG(seed, 1))
	syllables := []string{
		"ba", "ce", "di", "fo", "gu", "la", "me", "ni", "pro", "tu", "ver", "con", "re", "sta", "tion", "ing",
		"ex", "sub", "ment", "ar", "el", "or", "int", "un", "str", "key", "ty", "al", "get", "set", "is", "th",
	}
	p := &prose{}
	for i := range p.vocabulary {
		var w []byte
		for range 1 + r.IntN(2+i*3/words) {
			w = append(w, syllables[r.IntN(len(syllables))]...)
		}
		p.vocabulary[i] = w
		for k := range p.next[i] {
			p.next[i][k] = skewed(r, words)
		}
	}
	return p
}

// skewed draws below n, small numbers far more often.
func skewed(r *rand.Rand, n int) uint16 {
	u := r.Float64()
	return uint16(float64(n) * u * u * u)
}

// write appends n bytes of text to b.
func (p *prose) write(b []byte, n int, r *rand.Rand) []byte {
	var names [24][]byte
	for i := range names {
		names[i] = append(append([]byte{}, p.vocabulary[r.IntN(words)]...), p.vocabulary[r.IntN(words)]...)
	}
	marks := []string{" ", " ", " ", ", ", ".", "(", ") ", " = ", "_", ": ", ` "`, `" `, "->", "; "}
	n += len(b)
	depth, word, start := 0, skewed(r, words), len(b)
	for len(b) < n {
		if len(b)-start > 400 && r.IntN(100) < 24 {
			b = again(b, start, 30+r.IntN(170), r)
			continue
		}
		for range depth {
			b = append(b, "    "...)
		}
		for range 2 + r.IntN(11) {
			switch c := r.IntN(100); {
			case c < 16:
				b = append(b, names[skewed(r, len(names))]...)
			case c < 21:
				b = strconv.AppendUint(b, r.Uint64N(1<<(1+r.UintN(24))), 10)
			case c < 24:
				b = strconv.AppendUint(b, r.Uint64(), 16)
			case c < 45:
				word = skewed(r, words)
				b = append(b, p.vocabulary[word]...)
			default:
				word = p.next[word][skewed(r, successors)]
				b = append(b, p.vocabulary[word]...)
			}
			b = append(b, marks[r.IntN(len(marks))]...)
		}
		b = append(b, '\n')
		depth = max(0, min(depth+r.IntN(3)-1, 5))
	}
	return b[:n]
}

// again appends a copy of n bytes that came before, but not before start.
func again(b []byte, start, n int, r *rand.Rand) []byte {
	n = min(n, len(b)-start)
	back := min(len(b)-start, n+int(float64(30<<10)*r.Float64()*r.Float64()))
	from := len(b) - back
	return append(b, b[from:from+n]...)
}
