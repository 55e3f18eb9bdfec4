// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package layercrypt

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A layer for both passes: from the seed come key, nonce, ciphertext, and the
// lengths and alignments of the pieces that it arrives in.
type passLayer struct {
	random     *rand.ChaCha8
	pieces     *rand.Rand
	key, nonce []byte
	sealed     []byte
}

func newPassLayer(seed uint64, size int) passLayer {
	var source [32]byte
	for i := range 8 {
		source[i] = byte(seed >> (8 * i))
	}
	l := passLayer{random: rand.NewChaCha8(source), pieces: rand.New(rand.NewPCG(seed, 1))}
	l.key, l.nonce, l.sealed = l.bytes(keySize), l.bytes(aes.BlockSize), l.bytes(size)
	return l
}

func (l passLayer) bytes(n int) []byte {
	b := make([]byte, n)
	_, _ = l.random.Read(b) // never fails
	return b
}

func (l passLayer) pass(t testing.TB, newPass newPassFunc, plain bool) pass {
	t.Helper()
	block, err := aes.NewCipher(l.key)
	if err != nil {
		t.Fatal(err)
	}
	return newPass(cipher.NewCTR(block, l.nonce), l.key, plain)
}

// compare opens the layer with the fastest pass in pieces of at most
// longest bytes, and with the portable one at once.
func (l passLayer) compare(t testing.TB, longest int, plain bool) {
	t.Helper()
	oracle, p := l.pass(t, newPortable, plain), l.pass(t, newPass, plain)
	want := bytes.Clone(l.sealed)
	oracle.open(want)

	var got []byte
	margin := bytes.Repeat([]byte{0xa5}, 64)
	for rest := l.sealed; len(rest) > 0; {
		n := min(1+l.pieces.IntN(longest), len(rest))
		before := margin[:l.pieces.IntN(len(margin))] // shifts the piece in memory
		buf := bytes.Join([][]byte{before, rest[:n], margin}, nil)
		p.open(buf[len(before):][:n])
		if !bytes.Equal(buf[:len(before)], before) || !bytes.Equal(buf[len(before)+n:], margin) {
			t.Fatalf("a piece of %d bytes: bytes around it were written to", n)
		}
		got = append(got, buf[len(before):][:n]...)
		rest = rest[n:]
		if l.pieces.IntN(8) == 0 {
			p.sums() // changes nothing
		}
	}
	if !bytes.Equal(got, want) {
		t.Error("plaintext differs")
	}
	if diff := cmp.Diff(oracle.sums(), p.sums(), cmp.AllowUnexported(sums{})); diff != "" {
		t.Errorf("%d bytes in pieces up to %d, plain %t: sums differ (-portable +fastest):\n%s", len(l.sealed), longest, plain, diff)
	}
}

func TestPassesAgree(t *testing.T) {
	t.Parallel()
	for size := range 300 {
		for _, longest := range []int{1, 63, 64, 65, 300} {
			newPassLayer(uint64(size), size).compare(t, longest, size%3 != 0)
		}
	}
	for i, size := range []int{4<<10 - 1, 4 << 10, 4<<10 + 1, 8<<10 + 64, 100_003, 300_000} {
		for _, longest := range []int{7, 100, 4 << 10, 64 << 10, 1 << 20} {
			for _, plain := range []bool{false, true} {
				newPassLayer(uint64(1000+i), size).compare(t, longest, plain)
			}
		}
	}
}

// TestEveryResidue has all lengths around the sizes that the passes work in, and
// all places in a block where a read can end.
func TestEveryResidue(t *testing.T) {
	t.Parallel()
	for _, around := range []int{4 << 10, 16 << 10, 32 << 10} {
		for size := around - 65; size <= around+65; size++ {
			newPassLayer(uint64(size), size).compare(t, 40_000, true)
			newPassLayer(uint64(size), size).compare(t, 1+size%5000, size%2 == 0)
		}
	}
	for first := range 130 {
		for second := range 66 {
			l := newPassLayer(uint64(first), first+second+70)
			want, got := bytes.Clone(l.sealed), bytes.Clone(l.sealed)
			oracle, p := l.pass(t, newPortable, true), l.pass(t, newPass, true)
			oracle.open(want)
			p.open(got[:first])
			p.open(got[first : first+second])
			p.open(got[first+second:])
			if !bytes.Equal(got, want) || oracle.sums() != p.sums() {
				t.Errorf("reads of %d, %d and 70 bytes: plaintext or sums differ", first, second)
			}
		}
	}
}

// TestCounterWraps has nonces whose counter runs over into the higher bytes.
func TestCounterWraps(t *testing.T) {
	t.Parallel()
	for i := range aes.BlockSize {
		l := newPassLayer(uint64(i), 10_000)
		for k := i; k < aes.BlockSize; k++ {
			l.nonce[k] = 0xff
		}
		l.compare(t, 3000, true)
	}
}

func FuzzPassesAgree(f *testing.F) {
	f.Add(uint64(0), uint32(0), uint16(0), true)
	f.Add(uint64(1), uint32(55), uint16(1), false)
	f.Add(uint64(2), uint32(56), uint16(64), true)
	f.Add(uint64(3), uint32(64), uint16(63), true)
	f.Add(uint64(4), uint32(20_000), uint16(5000), true)
	f.Fuzz(func(t *testing.T, seed uint64, size uint32, longest uint16, plain bool) {
		newPassLayer(seed, int(size%(64<<10))).compare(t, 1+int(longest), plain)
	})
}
