// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package inflate

// maxSymbolBits is the most that a match can take: both codes and their extra
// bits.
const maxSymbolBits = 15 + 5 + 15 + 13

// decompress decodes symbols of a compressed block: one with the care that the
// fast loop does not take, and then many at once. That one comes first since it
// is all that the shortest blocks have.
func (z *Reader) decompress() error {
	if err := z.symbol(); err != nil || z.state != inCompressed || z.end >= outFull {
		return err
	}
	z.unload()
	z.fill(fastInput + 8)
	z.decompressFast()
	return nil
}

// symbol decodes the next literal, match or end of block. The checks are made
// in the order of the standard library, so that no input gets another verdict
// here than there.
func (z *Reader) symbol() error {
	if z.count < maxSymbolBits {
		z.load()
		if z.count < z.codes.literalMin {
			return z.ended()
		}
	}
	entry := z.codes.literal[z.bits&(1<<literalRoot-1)]
	if entry&entryLink != 0 {
		entry = z.codes.literal[second(uint64(entry), z.bits>>literalRoot)%literalTable]
	}
	n := uint64(entry >> entryCode & maxCodeBits)
	switch {
	case n == 0:
		return z.corrupt("bits that no code has")
	case n > z.count:
		return z.ended()
	case entry&entryLiteral != 0:
		z.out[z.end] = byte(entry >> entryValue)
		z.end++
		z.drop(n)
		return nil
	case entry&entrySpecial == 0:
		return z.match(entry)
	case entry&entryEnd != 0:
		z.drop(n)
		z.finishBlock()
		return nil
	default:
		return z.corrupt("reserved length symbol")
	}
}

// second is the index of an entry of a second table, given the bits behind the
// root.
func second(link, bits uint64) uint64 {
	width := link >> entryCode & maxCodeBits
	return link>>entryValue&0xffff + bits&(1<<width-1)
}

// match decodes a distance and copies, the entry being the one of the length.
func (z *Reader) match(entry uint32) error {
	total := uint64(entry & entryBits)
	if total > z.count {
		return z.ended()
	}
	length := int(entry>>entryValue&lengthValue) + int(uint32(z.bits>>(entry>>entryCode&maxCodeBits))&(entry>>lengthMask))
	z.drop(total)

	if z.count < z.codes.distanceMin {
		return z.ended()
	}
	e := z.codes.distance[z.bits&(1<<distanceRoot-1)]
	if e&entryLink != 0 {
		e = z.codes.distance[second(e, z.bits>>distanceRoot)%distanceTable]
	}
	n := e >> entryCode & maxCodeBits
	switch {
	case n == 0:
		return z.corrupt("bits that no distance code has")
	case n > z.count:
		return z.ended()
	case e&entrySpecial != 0:
		return z.corrupt("reserved distance symbol")
	case e&entryBits > z.count:
		return z.ended()
	}
	distance := int(e>>entryValue&0xffff) + int(z.bits>>n&(e>>distanceMask))
	z.drop(e & entryBits)
	if distance > z.end-z.start {
		return z.corrupt("match begins before the data")
	}
	for range length {
		z.out[z.end] = z.out[z.end-distance]
		z.end++
	}
	return nil
}
