// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

//go:build !purego

// SHA-256 with the SHA extensions, for two and for three states at once.
//
// The 64 rounds of a block are a chain of 32 SHA256RNDS2, each of which waits
// for the one before while the unit could start others. Chains beside the first
// fill these gaps: on Zen 4 two take the time of one, three 1.1 times as long.
// The processor reorders far enough to find them, so the code does not
// interleave finer than four rounds.
//
// Blob digest and inner HMAC read the same blocks: they share one message
// schedule. The plaintext digest reads others and has its own.
//
// Registers:
//   X0          round constants plus schedule, as SHA256RNDS2 wants it; scratch
//   X1  X2      state a: (F E B A) and (H G D C), lowest lane first
//   X3  X4      state b
//   X5  X6      state c
//   X7  - X10   the last 16 schedule words of msg (states a and b)
//   X11 - X14   the last 16 schedule words of other (state c)
//   X15         the byte order of the message words
//   AX          round constants
//   DI R8 R9    states a, b, c in memory, which hold what the block began with
//   SI R10 DX   next block of msg, of other; end of msg
//
// States in memory have the order of the registers, so nothing is shuffled at
// entry and exit. Only SSE instructions are used: the upper halves of the
// vector registers are neither read nor written. All memory operands are
// unaligned loads and stores within the states, the tables and whole blocks. No
// branch and no address depends on what is hashed.

#include "textflag.h"

DATA ·k<>+0x00(SB)/8, $0x71374491428a2f98
DATA ·k<>+0x08(SB)/8, $0xe9b5dba5b5c0fbcf
DATA ·k<>+0x10(SB)/8, $0x59f111f13956c25b
DATA ·k<>+0x18(SB)/8, $0xab1c5ed5923f82a4
DATA ·k<>+0x20(SB)/8, $0x12835b01d807aa98
DATA ·k<>+0x28(SB)/8, $0x550c7dc3243185be
DATA ·k<>+0x30(SB)/8, $0x80deb1fe72be5d74
DATA ·k<>+0x38(SB)/8, $0xc19bf1749bdc06a7
DATA ·k<>+0x40(SB)/8, $0xefbe4786e49b69c1
DATA ·k<>+0x48(SB)/8, $0x240ca1cc0fc19dc6
DATA ·k<>+0x50(SB)/8, $0x4a7484aa2de92c6f
DATA ·k<>+0x58(SB)/8, $0x76f988da5cb0a9dc
DATA ·k<>+0x60(SB)/8, $0xa831c66d983e5152
DATA ·k<>+0x68(SB)/8, $0xbf597fc7b00327c8
DATA ·k<>+0x70(SB)/8, $0xd5a79147c6e00bf3
DATA ·k<>+0x78(SB)/8, $0x1429296706ca6351
DATA ·k<>+0x80(SB)/8, $0x2e1b213827b70a85
DATA ·k<>+0x88(SB)/8, $0x53380d134d2c6dfc
DATA ·k<>+0x90(SB)/8, $0x766a0abb650a7354
DATA ·k<>+0x98(SB)/8, $0x92722c8581c2c92e
DATA ·k<>+0xa0(SB)/8, $0xa81a664ba2bfe8a1
DATA ·k<>+0xa8(SB)/8, $0xc76c51a3c24b8b70
DATA ·k<>+0xb0(SB)/8, $0xd6990624d192e819
DATA ·k<>+0xb8(SB)/8, $0x106aa070f40e3585
DATA ·k<>+0xc0(SB)/8, $0x1e376c0819a4c116
DATA ·k<>+0xc8(SB)/8, $0x34b0bcb52748774c
DATA ·k<>+0xd0(SB)/8, $0x4ed8aa4a391c0cb3
DATA ·k<>+0xd8(SB)/8, $0x682e6ff35b9cca4f
DATA ·k<>+0xe0(SB)/8, $0x78a5636f748f82ee
DATA ·k<>+0xe8(SB)/8, $0x8cc7020884c87814
DATA ·k<>+0xf0(SB)/8, $0xa4506ceb90befffa
DATA ·k<>+0xf8(SB)/8, $0xc67178f2bef9a3f7
GLOBL ·k<>(SB), RODATA|NOPTR, $256

DATA ·bigEndian<>+0(SB)/8, $0x0405060700010203
DATA ·bigEndian<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL ·bigEndian<>(SB), RODATA|NOPTR, $16

// LOAD takes four words of a block.
#define LOAD(mem, w) \
	MOVOU  mem, w; \
	PSHUFB X15, w

// ROUNDS_AB makes four rounds of states a and b with the schedule words w,
// which begin at byte off of the constants.
#define ROUNDS_AB(off, w) \
	MOVOU       off(AX), X0; \
	PADDD       w, X0; \
	SHA256RNDS2 X0, X1, X2; \
	SHA256RNDS2 X0, X3, X4; \
	PSHUFD      $0x0e, X0, X0; \
	SHA256RNDS2 X0, X2, X1; \
	SHA256RNDS2 X0, X4, X3

// ROUNDS_C does so for state c.
#define ROUNDS_C(off, w) \
	MOVOU       off(AX), X0; \
	PADDD       w, X0; \
	SHA256RNDS2 X0, X5, X6; \
	PSHUFD      $0x0e, X0, X0; \
	SHA256RNDS2 X0, X6, X5

// NEXT ends the four words that follow w; w1 are the words before w.
#define NEXT(w1, w, next) \
	MOVO       w, X0; \
	PALIGNR    $4, w1, X0; \
	PADDD      X0, next; \
	SHA256MSG2 w, next

// STEP_AB makes rounds with w, ends the next words, and begins in w1 the ones
// that come three steps later.
#define STEP_AB(off, w1, w, next) \
	ROUNDS_AB(off, w); \
	NEXT(w1, w, next); \
	SHA256MSG1 w, w1

#define STEP_C(off, w1, w, next) \
	ROUNDS_C(off, w); \
	NEXT(w1, w, next); \
	SHA256MSG1 w, w1

// STEP_ABC is one step of all three; it takes the registers by their place in
// the rotation.
#define STEP_ABC(off, w1, w, next, v1, v, vnext) \
	STEP_AB(off, w1, w, next); \
	STEP_C(off, v1, v, vnext)

// CHAIN adds the state that the block began with and stores the sum.
#define CHAIN(mem, abef, cdgh) \
	MOVOU (mem), X0; \
	PADDD X0, abef; \
	MOVOU abef, (mem); \
	MOVOU 16(mem), X0; \
	PADDD X0, cdgh; \
	MOVOU cdgh, 16(mem)

// func advance2(a, b *state, msg []byte)
TEXT ·advance2(SB), NOSPLIT, $0-40
	MOVQ  a+0(FP), DI
	MOVQ  b+8(FP), R8
	MOVQ  msg_base+16(FP), SI
	MOVQ  msg_len+24(FP), DX
	ANDQ  $~63, DX
	JZ    done
	ADDQ  SI, DX
	LEAQ  ·k<>(SB), AX
	MOVOU ·bigEndian<>(SB), X15
	MOVOU (DI), X1
	MOVOU 16(DI), X2
	MOVOU (R8), X3
	MOVOU 16(R8), X4

block:
	LOAD(0(SI), X7)
	ROUNDS_AB(0x00, X7)
	LOAD(16(SI), X8)
	ROUNDS_AB(0x10, X8)
	SHA256MSG1 X8, X7
	LOAD(32(SI), X9)
	ROUNDS_AB(0x20, X9)
	SHA256MSG1 X9, X8
	LOAD(48(SI), X10)
	STEP_AB(0x30, X9, X10, X7)
	STEP_AB(0x40, X10, X7, X8)
	STEP_AB(0x50, X7, X8, X9)
	STEP_AB(0x60, X8, X9, X10)
	STEP_AB(0x70, X9, X10, X7)
	STEP_AB(0x80, X10, X7, X8)
	STEP_AB(0x90, X7, X8, X9)
	STEP_AB(0xa0, X8, X9, X10)
	STEP_AB(0xb0, X9, X10, X7)
	STEP_AB(0xc0, X10, X7, X8)
	ROUNDS_AB(0xd0, X8)
	NEXT(X7, X8, X9)
	ROUNDS_AB(0xe0, X9)
	NEXT(X8, X9, X10)
	ROUNDS_AB(0xf0, X10)
	CHAIN(DI, X1, X2)
	CHAIN(R8, X3, X4)
	ADDQ $64, SI
	CMPQ SI, DX
	JNE  block

done:
	RET

// func advance3(a, b, c *state, msg, other []byte)
TEXT ·advance3(SB), NOSPLIT, $0-72
	MOVQ  a+0(FP), DI
	MOVQ  b+8(FP), R8
	MOVQ  c+16(FP), R9
	MOVQ  msg_base+24(FP), SI
	MOVQ  msg_len+32(FP), DX
	MOVQ  other_base+48(FP), R10
	MOVQ  other_len+56(FP), CX
	CMPQ  CX, DX
	CMOVQLT CX, DX
	ANDQ  $~63, DX
	JZ    done
	ADDQ  SI, DX
	LEAQ  ·k<>(SB), AX
	MOVOU ·bigEndian<>(SB), X15
	MOVOU (DI), X1
	MOVOU 16(DI), X2
	MOVOU (R8), X3
	MOVOU 16(R8), X4
	MOVOU (R9), X5
	MOVOU 16(R9), X6

block:
	LOAD(0(SI), X7)
	LOAD(0(R10), X11)
	ROUNDS_AB(0x00, X7)
	ROUNDS_C(0x00, X11)
	LOAD(16(SI), X8)
	LOAD(16(R10), X12)
	ROUNDS_AB(0x10, X8)
	ROUNDS_C(0x10, X12)
	SHA256MSG1 X8, X7
	SHA256MSG1 X12, X11
	LOAD(32(SI), X9)
	LOAD(32(R10), X13)
	ROUNDS_AB(0x20, X9)
	ROUNDS_C(0x20, X13)
	SHA256MSG1 X9, X8
	SHA256MSG1 X13, X12
	LOAD(48(SI), X10)
	LOAD(48(R10), X14)
	STEP_ABC(0x30, X9, X10, X7, X13, X14, X11)
	STEP_ABC(0x40, X10, X7, X8, X14, X11, X12)
	STEP_ABC(0x50, X7, X8, X9, X11, X12, X13)
	STEP_ABC(0x60, X8, X9, X10, X12, X13, X14)
	STEP_ABC(0x70, X9, X10, X7, X13, X14, X11)
	STEP_ABC(0x80, X10, X7, X8, X14, X11, X12)
	STEP_ABC(0x90, X7, X8, X9, X11, X12, X13)
	STEP_ABC(0xa0, X8, X9, X10, X12, X13, X14)
	STEP_ABC(0xb0, X9, X10, X7, X13, X14, X11)
	STEP_ABC(0xc0, X10, X7, X8, X14, X11, X12)
	ROUNDS_AB(0xd0, X8)
	ROUNDS_C(0xd0, X12)
	NEXT(X7, X8, X9)
	NEXT(X11, X12, X13)
	ROUNDS_AB(0xe0, X9)
	ROUNDS_C(0xe0, X13)
	NEXT(X8, X9, X10)
	NEXT(X12, X13, X14)
	ROUNDS_AB(0xf0, X10)
	ROUNDS_C(0xf0, X14)
	CHAIN(DI, X1, X2)
	CHAIN(R8, X3, X4)
	CHAIN(R9, X5, X6)
	ADDQ $64, SI
	ADDQ $64, R10
	CMPQ SI, DX
	JNE  block

done:
	RET

// func cpuid(leaf uint32) (eax, ebx, ecx uint32)
TEXT ·cpuid(SB), NOSPLIT, $0-20
	MOVL leaf+0(FP), AX
	XORL CX, CX
	CPUID
	MOVL AX, eax+8(FP)
	MOVL BX, ebx+12(FP)
	MOVL CX, ecx+16(FP)
	RET
