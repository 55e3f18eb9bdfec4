// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package inflate

import "encoding/binary"

// fastInput is how many bytes one turn of the fast loop may look at.
const fastInput = 16

// decompressFast decodes symbols as long as there is much input and room for
// much output. It stops before anything unusual: the end of the block, a code
// that leads nowhere, a match that begins before the data.
//
// The compiler proves every index of the loop to be in bounds, so that none is
// checked at run time; that is what most masks are for. To see those that are:
// go build -gcflags=-d=ssa/check_bce. The state is in local variables since only
// they are kept in registers.
func (z *Reader) decompressFast() {
	last := min(z.limit, inSize)
	if z.pos+fastInput > last {
		return
	}
	last -= fastInput
	b, n, pos := z.refill(z.bits, z.count, z.pos)
	end := uint(z.end)
	e := z.codes.literal[b%literals]
	for pos <= last && end < outFull {
		// Literals most often come in rows. Three of the root leave 26 bits or
		// more, enough for one more or for what a length takes.
		if e&entryLiteral != 0 {
			z.out[end] = byte(e >> entryValue)
			end++
			b, n = b>>(e&63), n-uint64(e)
			if e = z.codes.literal[b%literals]; e&entryLiteral != 0 {
				z.out[end] = byte(e >> entryValue)
				end++
				b, n = b>>(e&63), n-uint64(e)
				if e = z.codes.literal[b%literals]; e&entryLiteral != 0 {
					z.out[end] = byte(e >> entryValue)
					end++
					b, n = b>>(e&63), n-uint64(e)
					if e = z.codes.literal[b%literals]; e&entryLiteral != 0 {
						z.out[end] = byte(e >> entryValue)
						end++
						b, n, pos = z.refill(b>>(e&63), n-uint64(e), pos)
						e = z.codes.literal[b%literals]
						continue
					}
				}
			}
		}
		if e&entrySpecial != 0 {
			if e&entryLink == 0 {
				break
			}
			e = z.codes.literal[second(uint64(e), b>>literalRoot)%literalTable]
			if e&entryLiteral != 0 {
				z.out[end%outSize] = byte(e >> entryValue)
				end++
				b, n, pos = z.refill(b>>(e&63), n-uint64(e), pos)
				e = z.codes.literal[b%literals]
				continue
			}
			if e&entrySpecial != 0 {
				break
			}
		}

		length := uint(e>>entryValue&lengthValue) + uint(uint32(b>>(e>>entryCode&63))&(e>>lengthMask))
		b1, n1, pos1 := z.refill(b>>(e&63), n-uint64(e), pos)
		d := z.codes.distance[b1%distances]
		if d&entrySpecial != 0 {
			if d&entryLink == 0 {
				break
			}
			d = z.codes.distance[second(d, b1>>distanceRoot)%distanceTable]
			if d&entrySpecial != 0 {
				break
			}
		}
		distance := uint(d>>entryValue&0xffff) + uint(b1>>(d>>entryCode&63)&(d>>distanceMask))
		if distance > end-uint(z.start) {
			break
		}
		// The next look-up goes along with the copy.
		b, n, pos = z.refill(b1>>(d&63), n1-d, pos1)
		e = z.codes.literal[b%literals]
		from, to := (end-distance)%outSize, end%outSize
		end += length
		if distance < 8 {
			z.repeat(to, distance, length)
			continue
		}
		z.copyWord(to, from)
		z.copyWord(to+8, from+8)
		z.copyWord(to+16, from+16)
		for i := uint(24); i < length; i += 16 {
			z.copyWord(to+i, from+i)
			z.copyWord(to+i+8, from+i+8)
		}
	}
	z.bits, z.count, z.pos, z.end = b, n&63, pos, int(end)
}

// refill adds input to the bits until there are 56 or more. Of n, only the low
// six bits mean anything, so that an entry can be subtracted as it is.
func (z *input) refill(b, n uint64, pos uint) (uint64, uint64, uint) {
	b |= binary.LittleEndian.Uint64(z.in[pos%inSize:]) << (n & 63)
	return b, n | 56, pos + uint(^n)>>3&7
}

// copyWord copies 8 bytes within the output.
func (z *Reader) copyWord(to, from uint) {
	binary.LittleEndian.PutUint64(z.out[to:], binary.LittleEndian.Uint64(z.out[from:]))
}

// repeat copies a match that overlaps itself, with a distance of 1 to 7. It may
// write up to 7 bytes more than length.
func (z *Reader) repeat(to, distance, length uint) {
	shift := distance * 8
	word := binary.LittleEndian.Uint64(z.out[(to-distance)%outSize:]) & (1<<shift - 1)
	for ; shift < 64; shift *= 2 {
		word |= word << shift
	}
	to %= outSize
	// After as many whole distances as fit a word, the same word comes again.
	const steps = "\x00\x08\x08\x06\x08\x05\x06\x07"
	step := uint(steps[distance%8])
	for i := uint(0); i < length%512; i += step {
		binary.LittleEndian.PutUint64(z.out[to+i:], word)
	}
}
