// SPDX-License-Identifier: Apache-2.0
//
// A shared library of one function, and some text around it, so that its pages
// are more than one.
#include "part.h"

int part(int n)
{
	return n * 3;
}

__asm__(".text\n.balign 4096\n.globl part_padding\npart_padding:\n.fill 65536, 1, 0xcc\n");
