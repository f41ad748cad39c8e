#include "textflag.h"

// func flushLines(b []byte)
// CLFLUSH of each line of 64 bytes that b touches, then a fence.
TEXT ·flushLines(SB), NOSPLIT, $0-24
	MOVQ b_base+0(FP), AX
	MOVQ b_len+8(FP), BX
	ADDQ AX, BX
	ANDQ $~63, AX
loop:
	CMPQ AX, BX
	JAE  done
	CLFLUSH (AX)
	ADDQ $64, AX
	JMP  loop
done:
	MFENCE
	RET
