// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package inflate

// A table has an entry for every value of the next root bits of input. Codes
// longer than that go on in a second table behind the first, to which the entry
// links. All codes shorter than the root fill every entry that begins with them.
//
// The widths are a trade between the time to build a table, the cache it takes,
// and how many symbols need a second look.
const (
	literalRoot   = 10
	distanceRoot  = 8
	maxLengthBits = 7  // of a code length code
	maxCodeBits   = 15 // of the other codes

	// Sizes with room for the largest second tables that complete codes of at
	// most 15 bits can need (1332 and 400 entries in all), rounded up to a
	// power of two so that a mask keeps an index in bounds.
	literalTable  = 2048
	distanceTable = 512

	literals  = 1 << literalRoot
	distances = 1 << distanceRoot
)

// The parts of an entry:
//
//	bits 0-5    how many bits to drop in all: code and extra bits
//	bit  6      it is a literal
//	bits 8-11   length of the code
//	bit  14     it is neither literal, length nor distance
//	bit  15     it links to a second table (bit 14 is set too)
//	bits 16-    of literals: the byte
//	            of lengths and distances: the base value
//	            of the end of the block: 1
//	            of links: where the second table starts; its width is in bits 8-11
//	bits 27-31  of lengths: mask of the extra bits
//	bits 32-    of distances: mask of the extra bits
//
// An entry that no code leads to drops no bits.
const (
	entryBits    = 63
	entryLiteral = 1 << 6
	entryCode    = 8
	entrySpecial = 1 << 14
	entryLink    = 1 << 15
	entryEnd     = 1 << entryValue // beside entrySpecial: end of block
	entryValue   = 16
	lengthMask   = 27
	distanceMask = 32
	lengthValue  = 1<<9 - 1
)

// codes are the codes of the current block as tables.
type codes struct {
	literal     [literalTable]uint32
	distance    [distanceTable]uint64
	literalMin  uint64 // bits that must be there before a symbol can be
	distanceMin uint64
	fixed       bool // the tables are those of fixed blocks

	// The tables of fixed blocks, once there was one. To build them anew takes
	// far longer than the shortest blocks between them.
	fixedLiteral  [literals]uint32
	fixedDistance [distances]uint64
	haveFixed     bool

	length    [1 << maxLengthBits]uint32
	lengthMin uint64
	lens      [literalSymbols + distanceSymbols + 4]uint8

	// Entries of each symbol, but for the length of its code.
	literalEntries  [literalSymbols + 2]uint32
	distanceEntries [distanceSymbols + 2]uint64
	lengthEntries   [len(lengthOrder)]uint32
}

// init computes what is the same for all blocks.
func (c *codes) init() {
	for i := range endOfBlock {
		c.literalEntries[i] = entryLiteral | uint32(i)<<entryValue
	}
	for i := endOfBlock; i < len(c.literalEntries); i++ {
		c.literalEntries[i] = entrySpecial
	}
	c.literalEntries[endOfBlock] |= entryEnd
	base := uint32(3)
	for i := range uint32(28) {
		extra := max(i/4, 1) - 1
		c.literalEntries[endOfBlock+1+i] = (1<<extra-1)<<lengthMask | base<<entryValue | extra
		base += 1 << extra
	}
	c.literalEntries[endOfBlock+29] = 258 << entryValue

	base = 1
	for i := range uint32(distanceSymbols) {
		extra := max(i/2, 1) - 1
		c.distanceEntries[i] = (1<<extra-1)<<distanceMask | uint64(base)<<entryValue | uint64(extra)
		base += 1 << extra
	}
	c.distanceEntries[distanceSymbols] = entrySpecial
	c.distanceEntries[distanceSymbols+1] = entrySpecial
	for i := range c.lengthEntries {
		c.lengthEntries[i] = uint32(i) << entryValue
	}
}

// setFixed makes the codes those of RFC 1951, section 3.2.6.
func (c *codes) setFixed() {
	if c.fixed {
		return
	}
	if !c.haveFixed {
		c.buildFixed()
	}
	// No code is longer than the roots.
	copy(c.literal[:], c.fixedLiteral[:])
	copy(c.distance[:], c.fixedDistance[:])
	c.literalMin, c.distanceMin = 7, 5
	c.fixed = true
}

func (c *codes) buildFixed() {
	lens := c.lens[:literalSymbols+2]
	for i := range lens {
		switch {
		case i < 144:
			lens[i] = 8
		case i < 256:
			lens[i] = 9
		case i < 280:
			lens[i] = 7
		default:
			lens[i] = 8
		}
	}
	build(c.fixedLiteral[:], literalRoot, lens, c.literalEntries[:])
	lens = lens[:distanceSymbols+2]
	for i := range lens {
		lens[i] = 5
	}
	build(c.fixedDistance[:], distanceRoot, lens, c.distanceEntries[:])
	c.haveFixed = true
}

// setLengths builds the code length code from lens.
func (c *codes) setLengths() (ok bool) {
	c.lengthMin, ok = build(c.length[:], maxLengthBits, c.lens[:len(lengthOrder)], c.lengthEntries[:])
	return ok
}

// setDynamic builds both codes from lens, which holds the lengths of one
// alphabet behind those of the other.
func (c *codes) setDynamic(literals, distances int) (ok bool) {
	c.fixed = false
	lens := c.lens[:literals+distances]
	if c.literalMin, ok = build(c.literal[:], literalRoot, lens[:literals], c.literalEntries[:]); !ok {
		return false
	}
	// The last symbol of a block is its end, and takes that many bits.
	c.literalMin = max(c.literalMin, uint64(lens[endOfBlock]))
	c.distanceMin, ok = build(c.distance[:], distanceRoot, lens[literals:], c.distanceEntries[:])
	return ok
}
