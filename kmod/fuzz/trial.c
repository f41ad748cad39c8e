// SPDX-License-Identifier: GPL-2.0-only
/* See trial.h. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "change.h"
#include "promise.h"
#include "trial.h"
#include "walk.h"

/* Names to look at: where they can be a loop's, and of an image to be listed. */
#define NAMES_MAX 20000
#define LISTED_MAX 1000000

static u8 *copy(const void *image, size_t size)
{
	u8 *mem = malloc(size);

	PROMISE(mem != NULL || !size);
	if (size)
		memcpy(mem, image, size);
	return mem;
}

static struct verdict run(const u8 *mem, size_t size, u64 names_max, FILE *out)
{
	struct daxfs_image img = { .name = "fuzz" };
	struct verdict v = {};

	v.open = daxfs_open(&img, mem, size);
	if (v.open)
		return v;
	PROMISE(img.size <= size);
	v.check = daxfs_check(&img);
	v.errors = walk(&img, names_max, v.check ? NULL : out);
	return v;
}

struct verdict try_still(const void *image, size_t size, FILE *out)
{
	u8 *mem = copy(image, size);
	struct verdict v = run(mem, size, out ? LISTED_MAX : NAMES_MAX, out);

	PROMISE(v.open || v.check || !v.errors);
	free(mem);
	return v;
}

struct changing {
	struct random random;
	const u8 *original;
	u8 *mem;
	size_t size;
	atomic_bool stop;
};

static void change_some(void *arg)
{
	struct changing *c = arg;
	u64 at;

	switch (random_below(&c->random, 8)) {
	case 0:
	case 1:
		change(&c->random, c->mem, c->size);
		break;
	case 2:
		/* Some of it back, else soon nothing is right. */
		if (c->size < 256)
			break;
		at = random_below(&c->random, c->size - 255);
		memcpy(c->mem + at, c->original + at, 256);
	}
}

void try_changing(const void *image, size_t size, u64 seed)
{
	struct changing c = {
		.random = { seed | 1 }, .original = image, .mem = copy(image, size), .size = size,
	};

	user_on_read_arg = &c;
	user_on_read = change_some;
	run(c.mem, size, NAMES_MAX / 16, NULL);
	user_on_read = NULL;
	free(c.mem);
}

static void *change_until_stopped(void *arg)
{
	struct changing *c = arg;

	while (!atomic_load(&c->stop))
		change_some(c);
	return NULL;
}

void try_live(const void *image, size_t size, u64 seed)
{
	struct changing c = {
		.random = { seed | 1 }, .original = image, .mem = copy(image, size), .size = size,
	};
	pthread_t thread;

	PROMISE(!pthread_create(&thread, NULL, change_until_stopped, &c));
	for (int i = 0; i < 4; i++)
		run(c.mem, size, NAMES_MAX / 16, NULL);
	atomic_store(&c.stop, true);
	PROMISE(!pthread_join(thread, NULL));
	free(c.mem);
}
