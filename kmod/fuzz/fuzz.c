// SPDX-License-Identifier: GPL-2.0-only
/* The libFuzzer target: its input is an image. */
#include "change.h"
#include "trial.h"

int LLVMFuzzerTestOneInput(const u8 *image, size_t size);
size_t LLVMFuzzerCustomMutator(u8 *image, size_t size, size_t max, unsigned int seed);
size_t LLVMFuzzerMutate(u8 *image, size_t size, size_t max);

int LLVMFuzzerTestOneInput(const u8 *image, size_t size)
{
	/* The same input always runs the same way. */
	u64 seed = user_checksum(image, size < DAXFS_SUPER_SIZE ? size : DAXFS_SUPER_SIZE);

	try_still(image, size, NULL);
	try_changing(image, size, seed);
	if (seed % 64 == 0)	/* a thread costs more than the rest */
		try_live(image, size, seed);
	return 0;
}

/* Knows fields and checksum, which chance would not find. */
size_t LLVMFuzzerCustomMutator(u8 *image, size_t size, size_t max, unsigned int seed)
{
	struct random r = { (u64)seed << 1 | 1 };

	if (!random_below(&r, 4))
		size = LLVMFuzzerMutate(image, size, max);
	else
		for (u64 n = 1 + random_below(&r, 4); n; n--)
			change(&r, image, size);
	if (random_below(&r, 16))
		mend_checksum(image, size);
	return size;
}
