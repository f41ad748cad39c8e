/* SPDX-License-Identifier: GPL-2.0-only */
/* What the parsing core takes from the kernel, in user space. */
#ifndef DAXFS_USER_H
#define DAXFS_USER_H

#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>

#include <linux/types.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s64 s64;

#define le16_to_cpu(x)	le16toh(x)
#define le32_to_cpu(x)	le32toh(x)
#define le64_to_cpu(x)	le64toh(x)

#define __printf(fmt, first)	__attribute__((__format__(__printf__, fmt, first)))

/*
 * The kernel's barrier_data() stands where the core has just copied something
 * out of the image: that is when another kernel's write hurts most. So it also
 * gives others the occasion to change the image, see user.c.
 */
#define barrier_data(p) do {					\
	__asm__ volatile("" : : "r"(p) : "memory");		\
	image_was_read();					\
} while (0)

void image_was_read(void);

/* What image_was_read() calls, with its argument; NULL for nothing. */
extern void (*user_on_read)(void *arg);
extern void *user_on_read_arg;

/* Whether daxfs_report() prints to standard error. */
extern bool user_verbose;

/* CRC-32C as the format has it. */
u32 user_checksum(const void *p, size_t n);

#endif /* DAXFS_USER_H */
