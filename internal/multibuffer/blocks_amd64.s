#include "textflag.h"

// SHA-256 of two messages at once, FIPS 180-4 6.2.2 with the SHA extensions as the Intel 64 manual describes
// them. SHA256RNDS2 takes four cycles before the next round of the same message can begin; the rounds of the other message
// fit in between. X0 is its implicit operand. ABEF and CDGH are the two halves of a state in its order, 16 bytes each
// in memory with the last word first.

// Rounds 4i to 4i+3 of the words in X0.
#define ROUNDS(abef, cdgh) \
	SHA256RNDS2 X0, abef, cdgh \
	PSHUFD $0x0e, X0, X0       \
	SHA256RNDS2 X0, cdgh, abef

#define SUM(state, x) \
	MOVOU state, X0 \
	PADDL X0, x     \
	MOVOU x, state

// Of one message the state is in X1 and X2 and the words in X3 to X6, of the other in X7 and X8 and X9 to X12. More
// would not find room.

#define LOAD(msg, i, x) \
	MOVOU (16*i)(msg), x \
	PSHUFB X14, x

#define BOTH(i, m, n) \
	MOVOU (16*i)(R13), X13 \
	MOVO  X13, X0          \
	PADDL m, X0            \
	ROUNDS(X1, X2)         \
	MOVO  X13, X0          \
	PADDL n, X0            \
	ROUNDS(X7, X8)

// The words of rounds 4i+16 to 4i+19 in the place of those of 4i to 4i+3; b, c and d are those after a.
#define WORDS(a, b, c, d) \
	SHA256MSG1 b, a    \
	MOVO d, X13        \
	PALIGNR $4, c, X13 \
	PADDL X13, a       \
	SHA256MSG2 d, a

#define STEP(i, a, b, c, d, e, f, g, h) \
	BOTH(i, a, e)   \
	WORDS(a, b, c, d) \
	WORDS(e, f, g, h)

// func blocks(states *[2]state, messages *[2]*byte, n int, k *[64]uint32)
TEXT ·blocks(SB), NOSPLIT, $0-32
	MOVQ states+0(FP), DI
	MOVQ messages+8(FP), SI
	MOVQ n+16(FP), DX
	MOVQ k+24(FP), R13
	MOVQ 0(SI), R8
	MOVQ 8(SI), R9
	MOVOU swap<>(SB), X14
	MOVOU 0(DI), X1
	MOVOU 16(DI), X2
	MOVOU 32(DI), X7
	MOVOU 48(DI), X8

loop:
	TESTQ DX, DX
	JZ    done
	LOAD(R8, 0, X3)
	LOAD(R8, 1, X4)
	LOAD(R8, 2, X5)
	LOAD(R8, 3, X6)
	LOAD(R9, 0, X9)
	LOAD(R9, 1, X10)
	LOAD(R9, 2, X11)
	LOAD(R9, 3, X12)
	STEP(0, X3, X4, X5, X6, X9, X10, X11, X12)
	STEP(1, X4, X5, X6, X3, X10, X11, X12, X9)
	STEP(2, X5, X6, X3, X4, X11, X12, X9, X10)
	STEP(3, X6, X3, X4, X5, X12, X9, X10, X11)
	STEP(4, X3, X4, X5, X6, X9, X10, X11, X12)
	STEP(5, X4, X5, X6, X3, X10, X11, X12, X9)
	STEP(6, X5, X6, X3, X4, X11, X12, X9, X10)
	STEP(7, X6, X3, X4, X5, X12, X9, X10, X11)
	STEP(8, X3, X4, X5, X6, X9, X10, X11, X12)
	STEP(9, X4, X5, X6, X3, X10, X11, X12, X9)
	STEP(10, X5, X6, X3, X4, X11, X12, X9, X10)
	STEP(11, X6, X3, X4, X5, X12, X9, X10, X11)
	BOTH(12, X3, X9)
	BOTH(13, X4, X10)
	BOTH(14, X5, X11)
	BOTH(15, X6, X12)
	SUM(0(DI), X1)
	SUM(16(DI), X2)
	SUM(32(DI), X7)
	SUM(48(DI), X8)
	ADDQ $64, R8
	ADDQ $64, R9
	DECQ DX
	JMP  loop

done:
	RET

// Each word of a message is big-endian.
DATA swap<>+0(SB)/8, $0x0405060700010203
DATA swap<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL swap<>(SB), RODATA|NOPTR, $16
