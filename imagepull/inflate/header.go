// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package inflate

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

// Flags of a member's header (RFC 1952, section 2.3.1). FTEXT means nothing
// here, and the reserved ones are ignored as the standard library does.
const (
	flagHeaderCRC = 1 << 1
	flagExtra     = 1 << 2
	flagName      = 1 << 3
	flagComment   = 1 << 4
)

// maxHeaderString is how long a name or comment may be, with its final zero.
const maxHeaderString = 512

// readHeader reads the header of a member and makes z ready for its data. It
// returns io.EOF if the input ends before the header does begin.
func (z *Reader) readHeader() error {
	const fixedSize = 10
	z.fill(fixedSize)
	magic := []byte{0x1f, 0x8b, 8}
	have := z.in[z.pos:z.limit]
	if len(have) == 0 {
		return z.srcErr
	}
	if n := min(len(have), len(magic)); !bytes.Equal(have[:n], magic[:n]) {
		return z.corrupt("a gzip header is expected")
	}
	fixed, err := z.take(fixedSize)
	if err != nil {
		return err
	}
	flags := fixed[3]
	z.crc = crc32.ChecksumIEEE(fixed)
	if flags&flagExtra != 0 {
		err = z.skipExtra()
	}
	if flags&flagName != 0 && err == nil {
		err = z.skipString()
	}
	if flags&flagComment != 0 && err == nil {
		err = z.skipString()
	}
	if flags&flagHeaderCRC != 0 && err == nil {
		err = z.checkHeader()
	}
	z.startMember()
	return err
}

// headerBytes is take for fields that the header's checksum covers.
func (z *Reader) headerBytes(n uint) ([]byte, error) {
	b, err := z.take(n)
	z.crc = crc32.Update(z.crc, crc32.IEEETable, b)
	return b, err
}

func (z *Reader) skipExtra() error {
	size, err := z.headerBytes(2)
	if err != nil {
		return err
	}
	for left := uint(binary.LittleEndian.Uint16(size)); left > 0; {
		n := min(left, 512)
		if _, err := z.headerBytes(n); err != nil {
			return err
		}
		left -= n
	}
	return nil
}

func (z *Reader) skipString() error {
	for left := uint(maxHeaderString); left > 0; {
		z.fill(1)
		have := z.in[z.pos:min(z.limit, z.pos+left)]
		if len(have) == 0 {
			return z.ended()
		}
		n := uint(bytes.IndexByte(have, 0) + 1)
		if n > 0 {
			have = have[:n]
		}
		z.crc = crc32.Update(z.crc, crc32.IEEETable, have)
		z.pos += uint(len(have))
		if n > 0 {
			return nil
		}
		left -= uint(len(have))
	}
	return z.corrupt("a name or comment in the header is too long")
}

func (z *Reader) checkHeader() error {
	want := uint16(z.crc)
	b, err := z.take(2)
	if err != nil {
		return err
	}
	if binary.LittleEndian.Uint16(b) != want {
		return z.corrupt("checksum of the header does not match")
	}
	return nil
}
