/* SPDX-License-Identifier: GPL-2.0-only */
/* Walks an image through the core, as the file system does for its users. */
#ifndef DAXFS_WALK_H
#define DAXFS_WALK_H

#include <stdio.h>

#include "core.h"

/*
 * Reads every name from the root on, with its inode, attributes, link target
 * and file data, and looks names up. Ends early after as many names as names_max
 * says. Aborts where the core breaks what core.h promises.
 *
 * Prints a line for each name to out, if that is not NULL: path, inode, content
 * and attributes. Returns the number of errors met, none of which ends the walk.
 */
unsigned int walk(const struct daxfs_image *img, u64 names_max, FILE *out);

#endif /* DAXFS_WALK_H */
