/* SPDX-License-Identifier: GPL-2.0-only */
/* Changes to an image that hurt: fields get values at the edges. */
#ifndef DAXFS_CHANGE_H
#define DAXFS_CHANGE_H

#include "core.h"

/* A sequence of pseudo-random numbers; the seed is not 0. */
struct random {
	u64 state;
};

u64 random_next(struct random *r);
/* A number below n, which is not 0. */
u64 random_below(struct random *r, u64 n);

/*
 * Changes one field, or byte, of the image in mem: of superblock, inode table,
 * a directory, or anywhere.
 */
void change(struct random *r, u8 *mem, size_t size);

/* Makes the checksum of a native superblock right. */
void mend_checksum(u8 *mem, size_t size);

#endif /* DAXFS_CHANGE_H */
