// SPDX-License-Identifier: GPL-2.0-only
/* What the parsing core needs from outside (core.h), in user space. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "core.h"

void (*user_on_read)(void *arg);
void *user_on_read_arg;
bool user_verbose;

void image_was_read(void)
{
	if (user_on_read)
		user_on_read(user_on_read_arg);
}

void daxfs_report(const struct daxfs_image *img, const char *fmt, ...)
{
	char line[512];
	va_list args;

	/* Always formatted, so that a wrong argument is found. */
	va_start(args, fmt);
	vsnprintf(line, sizeof(line), fmt, args);
	va_end(args);
	if (user_verbose)
		fprintf(stderr, "%s: %s\n", img->name, line);
}

u32 daxfs_crc32c(u32 crc, const void *p, size_t n)
{
	const u8 *byte = p;

	while (n--) {
		crc ^= *byte++;
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
	}
	return crc;
}

u32 user_checksum(const void *p, size_t n)
{
	return ~daxfs_crc32c(~0U, p, n);
}

int daxfs_breathe(void)
{
	return 0;
}

void *daxfs_zalloc(size_t n)
{
	return calloc(1, n);
}

void daxfs_free(void *p)
{
	free(p);
}
