// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux && !purego

package layercrypt

import (
	"bytes"
	"crypto/fips140"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"strings"
	"syscall"
	"testing"
)

func needKernel(t *testing.T) {
	t.Helper()
	if !hasKernel() {
		t.Skip("this processor has no SHA instructions")
	}
}

// The passes could agree by being the same one.
func TestKernelIsUsed(t *testing.T) {
	t.Parallel()
	needKernel(t)
	_, isFused := newPass(idleStream{}, make([]byte, keySize), true).(*fused)
	if isFused == fips140.Enabled() {
		t.Errorf("fused %t, FIPS 140 mode %t", isFused, fips140.Enabled())
	}
}

// The runtime's own view of the processor is the oracle.
func TestHasKernel(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Skip(err)
	}
	flags := " " + strings.Join(strings.Fields(string(b)), " ") + " "
	want := strings.Contains(flags, " ssse3 ") && strings.Contains(flags, " sha_ni ")
	if got := hasKernel(); got != want {
		t.Errorf("hasKernel() = %t, the kernel of the system says %t", got, want)
	}
}

type idleStream struct{}

func (idleStream) XORKeyStream(_, _ []byte) {}

// Examples of FIPS 180-2 (appendix B) and its empty message.
func TestFusedSHA256(t *testing.T) {
	t.Parallel()
	needKernel(t)
	for _, tc := range []struct{ message, want string }{
		{"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
		{"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
		{
			"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
			"248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
		},
		{strings.Repeat("a", 1_000_000), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"},
	} {
		for _, plain := range []bool{false, true} {
			f := newFused(idleStream{}, make([]byte, keySize), plain)
			f.open([]byte(tc.message))
			got := f.sums()
			if hex.EncodeToString(got.digest[:]) != tc.want {
				t.Errorf("digest of %.10q is %x", tc.message, got.digest)
			}
			if plain && got.plain != got.digest {
				t.Errorf("plaintext digest of %.10q is %x", tc.message, got.plain)
			}
		}
	}
}

// Examples of RFC 4231 whose key is at most a block long.
func TestFusedHMAC(t *testing.T) {
	t.Parallel()
	needKernel(t)
	for _, tc := range []struct{ key, message, want string }{
		{strings.Repeat("\x0b", 20), "Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"},
		{"Jefe", "what do ya want for nothing?", "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"},
		{
			strings.Repeat("\xaa", 20), strings.Repeat("\xdd", 50),
			"773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
		},
	} {
		f := newFused(idleStream{}, []byte(tc.key), false)
		f.open([]byte(tc.message))
		if got := f.sums(); hex.EncodeToString(got.mac[:]) != tc.want {
			t.Errorf("MAC of %q is %x", tc.message, got.mac)
		}
	}
}

// standard is s after whole blocks as the standard library has it.
func standard(t *testing.T, s state, blocks []byte) state {
	t.Helper()
	order := [8]int{3, 2, 7, 6, 1, 0, 5, 4}
	encoded := []byte("sha\x03")
	for _, at := range order {
		encoded = binary.BigEndian.AppendUint32(encoded, s[at])
	}
	encoded = append(encoded, make([]byte, sha256.BlockSize+8)...)
	h := sha256.New()
	if err := h.(interface{ UnmarshalBinary([]byte) error }).UnmarshalBinary(encoded); err != nil {
		t.Fatal(err)
	}
	h.Write(blocks)
	encoded, err := h.(interface{ MarshalBinary() ([]byte, error) }).MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	for i, at := range order {
		s[at] = binary.BigEndian.Uint32(encoded[4+4*i:])
	}
	return s
}

// guarded returns n bytes, the last before a page that must not be touched.
func guarded(t *testing.T, n int) []byte {
	t.Helper()
	page := os.Getpagesize()
	size := (n+page-1)/page*page + page
	b, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Munmap(b) })
	if err := syscall.Mprotect(b[size-page:], syscall.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	return b[size-page-n : size-page]
}

// Each state goes its own way, whole blocks count and nothing behind them is
// read, states are read and written within their 32 bytes.
func TestKernel(t *testing.T) {
	t.Parallel()
	needKernel(t)
	l := newPassLayer(1, 0)
	states := func() (a, b, c state) {
		for _, s := range []*state{&a, &b, &c} {
			for i := range s {
				s[i] = l.pieces.Uint32()
			}
		}
		return a, b, c
	}
	for _, n := range []int{0, 1, 63, 64, 65, 127, 128, 640, 4096} {
		msg := guarded(t, n)
		copy(msg, l.bytes(n))
		whole := n / sha256.BlockSize * sha256.BlockSize

		a, b, _ := states()
		wantA, wantB := standard(t, a, msg[:whole]), standard(t, b, msg[:whole])
		advance2(&a, &b, msg)
		if a != wantA || b != wantB {
			t.Errorf("advance2 over %d bytes: wrong state", n)
		}
		for _, m := range []int{0, 63, 64, 200, 640, 4096} {
			other := guarded(t, m)
			copy(other, l.bytes(m))
			both := min(whole, m/sha256.BlockSize*sha256.BlockSize)
			a, b, c := states()
			wantA, wantB, wantC := standard(t, a, msg[:both]), standard(t, b, msg[:both]), standard(t, c, other[:both])
			advance3(&a, &b, &c, msg, other)
			if a != wantA || b != wantB || c != wantC {
				t.Errorf("advance3 over %d and %d bytes: wrong state", n, m)
			}
		}
	}
	var around [7]state
	block := bytes.Repeat([]byte{1}, sha256.BlockSize)
	advance2(&around[1], &around[3], block)
	advance3(&around[1], &around[3], &around[5], block, block)
	for i := 0; i < len(around); i += 2 {
		if around[i] != (state{}) {
			t.Errorf("the kernel writes beside a state, at %d", i)
		}
	}
}
