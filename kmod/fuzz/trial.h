/* SPDX-License-Identifier: GPL-2.0-only */
/* Tries of the core on one image. Each works on a copy of its own, in a heap
 * block of exactly the image's size: a byte read behind it is an error of
 * AddressSanitizer. */
#ifndef DAXFS_TRIAL_H
#define DAXFS_TRIAL_H

#include <stdio.h>

#include "core.h"

struct verdict {
	int open;		/* of daxfs_open() */
	int check;		/* of daxfs_check(), if open is 0 */
	unsigned int errors;	/* of the walk, which follows whatever check is */
};

/*
 * Opens, checks and walks; prints the listing to out unless NULL. Aborts if an
 * image that passes the check has errors in the walk.
 */
struct verdict try_still(const void *image, size_t size, FILE *out);

/* The same while the image changes at each read: always the same way. */
void try_changing(const void *image, size_t size, u64 seed);

/* The same while another thread changes it. */
void try_live(const void *image, size_t size, u64 seed);

#endif /* DAXFS_TRIAL_H */
