// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

//go:build !purego

package layercrypt

import (
	"bytes"
	"crypto/cipher"
	"crypto/fips140"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
)

// sealedBlock is how many bytes the fused pass takes at a time, and what it
// keeps of the ciphertext while their plaintext is in the caller's buffer.
const sealedBlock = 4 << 10

// A state of SHA-256, in the order of the kernel's registers: f e b a h g d c.
type state [8]uint32

func initialState() state {
	return state{
		0x9b05688c, 0x510e527f, 0xbb67ae85, 0x6a09e667,
		0x5be0cd19, 0x1f83d9ab, 0xa54ff53a, 0x3c6ef372,
	}
}

// advance2 takes both states over the whole blocks of msg, in the time of one.
//
//go:noescape
func advance2(a, b *state, msg []byte)

// advance3 takes a and b over the whole blocks of msg, and c over as many of
// other; it ends with the shorter of the two.
//
//go:noescape
func advance3(a, b, c *state, msg, other []byte)

// cpuid asks the processor about itself; subleaf 0.
func cpuid(leaf uint32) (eax, ebx, ecx uint32)

// hasKernel reports whether the processor has the instructions of the kernel.
// None of them needs the consent of the operating system, as AVX would. The
// answer is not kept: to ask once per layer costs nothing, even in a TEE, where
// the instruction traps.
func hasKernel() bool {
	const (
		features, extended = 1, 7    // leaves
		ssse3              = 1 << 9  // ECX of features
		sha                = 1 << 29 // EBX of extended
	)
	if last, _, _ := cpuid(0); last < extended {
		return false
	}
	_, _, ecx := cpuid(features)
	_, ebx, _ := cpuid(extended)
	return ecx&ssse3 != 0 && ebx&sha != 0
}

// newPass returns the fastest pass that the processor can run, and the portable
// one where the program is to use Go's FIPS 140-3 module alone.
func newPass(stream cipher.Stream, layerKey []byte, plain bool) pass {
	if fips140.Enabled() || !hasKernel() {
		return newPortable(stream, layerKey, plain)
	}
	return newFused(stream, layerKey, plain)
}

// fused is the pass that advances all sums together. The MAC's first block is
// the padded key, so its message is aligned to blocks as the digest's is: both
// read the same blocks with one message schedule. The plaintext digest goes
// beside them, over the same places of the plaintext.
type fused struct {
	stream      cipher.Stream
	digest, mac state // of the ciphertext; mac is the inner hash
	plain       state // of the plaintext
	outer       state // of the MAC, after the padded key
	withPlain   bool
	size        uint64

	// The last size % 64 bytes, which do not fill a block, in both forms.
	sealedTail, plainTail [sha256.BlockSize]byte

	sealed [sealedBlock]byte
}

func newFused(stream cipher.Stream, layerKey []byte, plain bool) *fused {
	return &fused{
		stream:    stream,
		digest:    initialState(),
		mac:       keyedState(layerKey, 0x36),
		plain:     initialState(),
		outer:     keyedState(layerKey, 0x5c),
		withPlain: plain,
	}
}

// keyedState is where one of HMAC's two hashes is after the padded key.
func keyedState(layerKey []byte, pad byte) state {
	padded := bytes.Repeat([]byte{pad}, sha256.BlockSize)
	subtle.XORBytes(padded, padded, layerKey)
	s, idle := initialState(), state{}
	advance2(&s, &idle, padded)
	clear(padded)
	return s
}

func (f *fused) open(p []byte) {
	held := int(f.size % sha256.BlockSize)
	f.size += uint64(len(p))
	if held > 0 {
		head := p[:min(sha256.BlockSize-held, len(p))]
		f.hold(held, head)
		if held+len(head) < sha256.BlockSize {
			return
		}
		advance3(&f.digest, &f.mac, &f.plain, f.sealedTail[:], f.plainTail[:])
		p = p[len(head):]
	}
	whole := len(p) &^ (sha256.BlockSize - 1)
	f.openBlocks(p[:whole])
	f.hold(0, p[whole:])
}

// hold decrypts p, which is part of a block, and keeps it in both forms.
func (f *fused) hold(at int, p []byte) {
	copy(f.sealedTail[at:], p)
	f.stream.XORKeyStream(p, p)
	copy(f.plainTail[at:], p)
}

// openBlocks decrypts whole blocks.
func (f *fused) openBlocks(p []byte) {
	if !f.withPlain {
		for ; len(p) > 0; p = p[min(sealedBlock, len(p)):] {
			next := p[:min(sealedBlock, len(p))]
			advance2(&f.digest, &f.mac, next)
			f.stream.XORKeyStream(next, next)
		}
		return
	}
	for len(p) > 0 {
		n := copy(f.sealed[:], p)
		f.stream.XORKeyStream(p[:n], p[:n])
		advance3(&f.digest, &f.mac, &f.plain, f.sealed[:n], p[:n])
		p = p[n:]
	}
}

func (f *fused) sums() sums {
	held := f.size % sha256.BlockSize
	inner := f.mac.sum(f.sealedTail[:held], sha256.BlockSize+f.size)
	s := sums{
		digest: f.digest.sum(f.sealedTail[:held], f.size),
		mac:    f.outer.sum(inner[:], sha256.BlockSize+sha256.Size),
	}
	if f.withPlain {
		s.plain = f.plain.sum(f.plainTail[:held], f.size)
	}
	return s
}

// sum ends a message of size bytes, the last of which are in tail, and leaves s
// as it is.
func (s state) sum(tail []byte, size uint64) (sum [sha256.Size]byte) {
	var last [2 * sha256.BlockSize]byte
	n := copy(last[:], tail)
	last[n] = 0x80
	end := sha256.BlockSize
	if n+1+8 > end {
		end = 2 * sha256.BlockSize
	}
	binary.BigEndian.PutUint64(last[end-8:], size*8)
	var idle state
	advance2(&s, &idle, last[:end])
	for i, word := range [8]uint32{s[3], s[2], s[7], s[6], s[1], s[0], s[5], s[4]} {
		binary.BigEndian.PutUint32(sum[4*i:], word)
	}
	return sum
}
