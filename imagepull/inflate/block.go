// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package inflate

import "encoding/binary"

// readBlockHeader reads all of a block that comes before its data.
func (z *Reader) readBlockHeader() error {
	if err := z.need(3); err != nil {
		return err
	}
	z.final = z.bits&1 == 1
	kind := z.bits >> 1 & 3
	z.drop(3)
	switch kind {
	case 0:
		return z.readStoredHeader()
	case 1:
		z.codes.setFixed()
	case 2:
		if err := z.readCodes(); err != nil {
			return err
		}
	default:
		return z.corrupt("reserved block type")
	}
	z.state = inCompressed
	return nil
}

func (z *Reader) finishBlock() {
	z.state = atBlock
	if z.final {
		z.state = atTrailer
	}
}

func (z *Reader) readStoredHeader() error {
	z.align()
	b, err := z.take(4)
	if err != nil {
		return err
	}
	size := binary.LittleEndian.Uint16(b)
	if binary.LittleEndian.Uint16(b[2:]) != ^size {
		return z.corrupt("length of a stored block does not match its complement")
	}
	z.stored = int(size)
	z.state = inStored
	return nil
}

// copyStored copies what it can of a stored block.
func (z *Reader) copyStored() error {
	if z.stored == 0 {
		z.finishBlock()
		return nil
	}
	z.fill(1)
	if z.pos == z.limit {
		return z.ended()
	}
	n := copy(z.out[z.end:min(z.end+z.stored, outFull)], z.in[z.pos:z.limit])
	z.pos += uint(n)
	z.end += n
	z.stored -= n
	return nil
}

// Alphabets (RFC 1951, section 3.2.7).
const (
	literalSymbols  = 286 // that may occur in data
	distanceSymbols = 30
	endOfBlock      = 256

	// lengthOrder is in which order the code lengths of the code length code
	// are sent.
	lengthOrder = "\x10\x11\x12\x00\x08\x07\x09\x06\x0a\x05\x0b\x04\x0c\x03\x0d\x02\x0e\x01\x0f"
)

// readCodes reads the two codes of a dynamic block.
func (z *Reader) readCodes() error {
	if err := z.need(5 + 5 + 4); err != nil {
		return err
	}
	numLiterals := int(z.bits&31) + 257
	numDistances := int(z.bits>>5&31) + 1
	lengths := int(z.bits>>10&15) + 4
	z.drop(5 + 5 + 4)
	if numLiterals > literalSymbols || numDistances > distanceSymbols {
		return z.corrupt("too many symbols in a code")
	}
	c := &z.codes
	clear(c.lens[:len(lengthOrder)])
	for i := range lengths {
		if err := z.need(3); err != nil {
			return err
		}
		c.lens[lengthOrder[i]] = uint8(z.bits & 7)
		z.drop(3)
	}
	if !c.setLengths() {
		return z.corrupt("invalid code length code")
	}
	if err := z.readLengths(c.lens[:numLiterals+numDistances]); err != nil {
		return err
	}
	if !c.setDynamic(numLiterals, numDistances) {
		return z.corrupt("over-subscribed or incomplete code")
	}
	return nil
}

// readLengths reads the code lengths of both alphabets, which are compressed as
// one sequence.
func (z *Reader) readLengths(lens []uint8) error {
	for i := 0; i < len(lens); {
		symbol, err := z.lengthSymbol()
		if err != nil {
			return err
		}
		if symbol < 16 {
			lens[i] = symbol
			i++
			continue
		}
		var value uint8
		var repeat, extra uint64 = 3, 3
		switch symbol {
		case 16:
			if i == 0 {
				return z.corrupt("code length to repeat is missing")
			}
			value, extra = lens[i-1], 2
		case 18:
			repeat, extra = 11, 7
		}
		if err := z.need(extra); err != nil {
			return err
		}
		repeat += z.bits & (1<<extra - 1)
		z.drop(extra)
		if repeat > uint64(len(lens)-i) {
			return z.corrupt("too many code lengths")
		}
		for range repeat {
			lens[i] = value
			i++
		}
	}
	return nil
}

// lengthSymbol decodes a symbol of the code length code.
func (z *Reader) lengthSymbol() (uint8, error) {
	if z.count < maxLengthBits {
		z.load()
		if z.count < z.codes.lengthMin {
			return 0, z.ended()
		}
	}
	e := z.codes.length[z.bits&(1<<maxLengthBits-1)]
	n := uint64(e & entryBits)
	switch {
	case n == 0:
		return 0, z.corrupt("invalid code length symbol")
	case n > z.count:
		return 0, z.ended()
	}
	z.drop(n)
	return uint8(e >> entryValue), nil
}
