// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"math/rand/v2"
)

// idioms is how many sequences of instructions the made-up machine code knows.
const idioms = 9000

// machine makes bytes that compress like programs and libraries: instructions
// with operands, idioms that compilers repeat, tables of addresses, strings,
// zeros.
type machine struct {
	idioms [idioms][]byte
	prose  *prose
}

func newMachine(seed uint64, p *prose) *machine {
	r := rand.New(rand.NewPCG(seed, 2))
	m := &machine{prose: p}
	for i := range m.idioms {
		for range 1 + r.IntN(4) {
			m.idioms[i] = instruction(m.idioms[i], r)
		}
	}
	return m
}

// instruction appends one: a prefix, an opcode, a register byte, an operand.
func instruction(b []byte, r *rand.Rand) []byte {
	opcodes := []byte{0x8b, 0x89, 0x8d, 0x83, 0x85, 0x0f, 0xe8, 0x31, 0x74, 0x75, 0xc7, 0x39, 0x5b, 0x41, 0x5d, 0xc3, 0xeb, 0x01, 0x29, 0x80}
	if r.IntN(2) == 0 {
		b = append(b, 0x48+byte(r.IntN(5)&4))
	}
	op := skewed(r, len(opcodes))
	b = append(b, opcodes[op])
	switch r.IntN(6) {
	case 0, 1, 2:
		return append(b, 0x40|byte(skewed(r, 64)), byte(skewed(r, 32))*8)
	case 3:
		return append(b, 0xc0|byte(skewed(r, 64)))
	case 4:
		return binary.LittleEndian.AppendUint32(b, uint32(r.IntN(1<<20)))
	default:
		return binary.LittleEndian.AppendUint32(b, -uint32(r.IntN(1<<16)))
	}
}

// write appends n bytes to b in runs of one kind.
func (m *machine) write(b []byte, n int, r *rand.Rand) []byte {
	start := len(b)
	n += start
	address := uint64(r.Uint32())
	for len(b) < n {
		end := min(n, len(b)+256+r.IntN(6000))
		switch c := r.IntN(100); {
		case c < 68:
			for len(b) < end {
				switch c := r.IntN(100); {
				case c < 20:
					b = again(b, start, 6+r.IntN(34), r)
				case c < 72:
					b = append(b, m.idioms[skewed(r, idioms)]...)
				default:
					b = instruction(b, r)
				}
			}
		case c < 80:
			for len(b) < end {
				address += uint64(8 * (1 + skewed(r, 60)))
				b = binary.LittleEndian.AppendUint64(b, address)
			}
		case c < 88:
			b = m.prose.write(b, end-len(b), r)
		case c < 90:
			for len(b) < end {
				b = binary.LittleEndian.AppendUint64(b, r.Uint64())
			}
		default:
			b = append(b, make([]byte, end-len(b))...)
		}
	}
	return b[:n]
}

// noise appends n bytes that do not compress, as of archives and pictures.
func noise(b []byte, n int, r *rand.Rand) []byte {
	n += len(b)
	for len(b) < n {
		b = binary.LittleEndian.AppendUint64(b, r.Uint64())
	}
	return b[:n]
}
