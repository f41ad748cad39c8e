/* SPDX-License-Identifier: GPL-2.0-only */
/* Aborts where the core breaks a promise, in a way that libFuzzer reports. */
#ifndef DAXFS_PROMISE_H
#define DAXFS_PROMISE_H

#include <stdio.h>
#include <stdlib.h>

#define PROMISE(condition) do {						\
	if (!(condition)) {						\
		fprintf(stderr, "%s:%d: broken: %s\n", __FILE__,	\
			__LINE__, #condition);				\
		abort();						\
	}								\
} while (0)

#endif /* DAXFS_PROMISE_H */
