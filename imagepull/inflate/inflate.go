// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package inflate decodes gzip files (RFC 1952, DEFLATE of RFC 1951) in one
// pass, in fixed memory, and fast.
//
// Its input is hostile: it is parsed before any digest or MAC of it has been
// verified. The package is therefore plain Go without unsafe or assembly, so
// that a flaw can at worst give wrong bytes or an error. It accepts exactly
// what the standard library's compress/gzip accepts, and gives the same bytes.
package inflate

import (
	"encoding/binary"
	"hash/crc32"
	"io"
)

const (
	// windowSize is how far back a match may refer, in bytes.
	windowSize = 32 << 10
	// outSize is the size of the output buffer, which holds the window and new
	// output. It is a power of two, so that a mask keeps an index in bounds.
	outSize = 128 << 10
	// outFull is where the output counts as full. A symbol that is begun below
	// it may end in the slack behind.
	outFull  = outSize - 16
	outSlack = 640
)

// Reader is an io.Reader of the uncompressed bytes of a gzip file, all its
// members one after the other. Its memory is about 180 KiB, whatever the input
// says. What it has read is tentative until io.EOF, which it gives only when
// every checksum and length was right and r has ended. The zero Reader is ready
// for [Reader.Reset].
type Reader struct {
	input
	err   error // sticky, to be given once out[given:end] is
	state state
	final bool // the current block is the member's last

	stored int    // bytes to come of a stored block
	crc    uint32 // of the current member's bytes, up to out[summed]
	size   uint32 // of the current member's bytes, up to out[summed]

	// The output is out[:end]. Matches reach back to out[start]; what is before
	// given has gone to the consumer.
	start, summed, given, end int

	codes codes
	out   [outSize + outSlack]byte
}

// state is what the input is expected to hold next.
type state uint8

const (
	atBlock state = iota
	inStored
	inCompressed
	atTrailer
)

// NewReader returns a reader of the gzip file in r, after reading its header.
// It reads ahead of what it decodes. See [Reader.Read] for the errors.
func NewReader(r io.Reader) (*Reader, error) {
	z := new(Reader)
	if err := z.Reset(r); err != nil {
		return nil, err
	}
	return z, nil
}

// Reset makes z what [NewReader] would return for r, without allocating.
func (z *Reader) Reset(r io.Reader) error {
	z.codes.init()
	z.begin(r)
	z.err, z.stored = nil, 0
	z.summed, z.given, z.end = 0, 0, 0
	z.err = z.readHeader()
	return z.err
}

// Read reads uncompressed bytes. Its errors are sticky. They are a
// [*CorruptError] for bytes that are not what gzip allows, among them any that
// follow the last member; io.ErrUnexpectedEOF for a file that ends early; and
// otherwise what the underlying reader gave. An empty input is io.EOF.
func (z *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if z.given == z.end {
		z.decode()
	}
	n := copy(p, z.out[z.given:z.end])
	z.given += n
	if n == 0 {
		return 0, z.err
	}
	return n, nil
}

// WriteTo writes all that is left to w, in chunks of up to 128 KiB that w must
// not keep, and saves the copy that Read makes. Its errors are those of
// [Reader.Read], without io.EOF, and those of w.
func (z *Reader) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		if z.given == z.end {
			z.decode()
		}
		if z.given == z.end {
			break
		}
		n, err := w.Write(z.out[z.given:z.end])
		if n < 0 || n > z.end-z.given {
			return total, errInvalidWrite
		}
		z.given += n
		total += int64(n)
		if err != nil {
			return total, err
		}
		if z.given != z.end {
			return total, io.ErrShortWrite
		}
	}
	if z.err == io.EOF { //nolint:errorlint // only the bare value means the end
		return total, nil
	}
	return total, z.err
}

// decode fills the output buffer. Afterwards there is output or z.err is set.
func (z *Reader) decode() {
	if z.end >= outFull {
		z.slide()
	}
	for z.err == nil && z.end < outFull {
		z.err = z.step()
	}
	z.sum()
}

// step decodes some of the input.
func (z *Reader) step() error {
	switch z.state {
	case atBlock:
		return z.readBlockHeader()
	case inStored:
		return z.copyStored()
	case inCompressed:
		return z.decompress()
	default:
		return z.finishMember()
	}
}

// slide drops all output but the window.
func (z *Reader) slide() {
	n := z.end - windowSize
	copy(z.out[:windowSize], z.out[n:z.end])
	z.start = max(z.start-n, 0)
	z.summed -= n
	z.given -= n
	z.end -= n
}

// sum adds the new output to the checksum.
func (z *Reader) sum() {
	fresh := z.out[z.summed:z.end]
	z.crc = crc32.Update(z.crc, crc32.IEEETable, fresh)
	z.size += uint32(len(fresh))
	z.summed = z.end
}

// startMember forgets the member before.
func (z *Reader) startMember() {
	z.state = atBlock
	z.start, z.summed = z.end, z.end
	z.crc, z.size = 0, 0
}

// finishMember checks the trailer and goes on to the next member, if any.
func (z *Reader) finishMember() error {
	z.align()
	b, err := z.take(8)
	if err != nil {
		return err
	}
	z.sum()
	if binary.LittleEndian.Uint32(b) != z.crc {
		return z.corrupt("checksum does not match")
	}
	if binary.LittleEndian.Uint32(b[4:]) != z.size {
		return z.corrupt("length does not match")
	}
	return z.readHeader()
}
