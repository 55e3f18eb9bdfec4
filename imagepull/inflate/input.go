// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package inflate

import (
	"encoding/binary"
	"io"
)

const (
	// inSize is how many compressed bytes are read at a time. It is a power of
	// two, so that a mask keeps an index in bounds.
	inSize = 32 << 10
	// maxEmptyReads is how often in a row a reader may return nothing at all.
	maxEmptyReads = 100
)

// input is the compressed bytes, and the bits taken from them in advance.
type input struct {
	src    io.Reader
	srcErr error // why src gives no more
	offset int64 // of in[0] in the file

	// in[pos:limit] has not been touched yet. The low count bits of bits come
	// before it. Bits above may be set to what in[pos:] holds, or to zero.
	bits       uint64
	count      uint64
	pos, limit uint
	in         [inSize + 8]byte
}

func (z *input) begin(r io.Reader) {
	z.src, z.srcErr, z.offset = r, nil, 0
	z.bits, z.count, z.pos, z.limit = 0, 0, 0, 0
}

// fill reads until the input has at least n untouched bytes, n being small, or
// src has ended.
func (z *input) fill(n uint) {
	if z.limit-z.pos >= n || z.srcErr != nil {
		return
	}
	z.offset += int64(z.pos)
	z.limit = uint(copy(z.in[:], z.in[z.pos:z.limit]))
	z.pos = 0
	for empty := 0; z.limit < n && z.srcErr == nil; empty++ {
		got, err := z.src.Read(z.in[z.limit:inSize])
		if got < 0 || got > inSize-int(z.limit) {
			got, err = 0, errInvalidRead
		}
		z.limit += uint(got)
		z.srcErr = err
		if got > 0 {
			empty = 0
		}
		if empty == maxEmptyReads && err == nil {
			z.srcErr = io.ErrNoProgress
		}
	}
}

// unload gives back the whole bytes among the bits.
func (z *input) unload() {
	z.pos -= uint(z.count >> 3)
	z.count &= 7
	z.bits &= 1<<z.count - 1
}

// load takes as many bits as there are and have room, which is 56 or more
// unless the input ends before.
func (z *input) load() {
	z.unload()
	z.fill(8)
	if z.limit-z.pos >= 8 {
		z.bits |= binary.LittleEndian.Uint64(z.in[z.pos:]) << z.count
		z.pos += uint(63-z.count) >> 3
		z.count |= 56
		return
	}
	for z.count < 56 && z.pos < z.limit {
		z.bits |= uint64(z.in[z.pos]) << z.count
		z.pos++
		z.count += 8
	}
}

// need makes n bits available, 56 at most.
func (z *input) need(n uint64) error {
	if z.count < n {
		z.load()
		if z.count < n {
			return z.ended()
		}
	}
	return nil
}

// drop removes n bits, which must be available.
func (z *input) drop(n uint64) {
	z.bits >>= n & 63
	z.count -= n
}

// align drops the bits left of a byte begun.
func (z *input) align() {
	z.unload()
	z.bits, z.count = 0, 0
}

// take returns the next n bytes, a few at most, valid until the next call. The
// input must be aligned.
func (z *input) take(n uint) ([]byte, error) {
	z.fill(n)
	if z.limit-z.pos < n {
		z.pos = z.limit
		return nil, z.ended()
	}
	b := z.in[z.pos : z.pos+n]
	z.pos += n
	return b, nil
}

// ended is the error for input that should have gone on.
func (z *input) ended() error {
	if z.srcErr == io.EOF { //nolint:errorlint // only the bare value means the end
		return io.ErrUnexpectedEOF
	}
	return z.srcErr
}

func (z *input) corrupt(problem string) error {
	return &CorruptError{Offset: z.offset + int64(z.pos) - int64(z.count>>3), Problem: problem}
}
