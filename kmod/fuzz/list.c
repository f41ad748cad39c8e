// SPDX-License-Identifier: GPL-2.0-only
/*
 * Reads images from standard input, each after its size in 8 bytes of this
 * machine's order, and prints for each "open N check N errors N", the listing
 * if it passes the check, and a line with a dot. With -changing, each is also
 * tried while it changes, both ways.
 */
#include <stdlib.h>

#include "promise.h"
#include "trial.h"

int main(int argc, char **argv)
{
	bool changing = argc > 1 && !strcmp(argv[1], "-changing");
	u64 size, seed = 1;

	while (fread(&size, sizeof(size), 1, stdin) == 1) {
		u8 *image = malloc(size);
		struct verdict v;
		char *listing;
		size_t listing_size;
		FILE *out = open_memstream(&listing, &listing_size);

		PROMISE(image && out);
		PROMISE(fread(image, 1, size, stdin) == size);
		v = try_still(image, size, out);
		fclose(out);
		printf("open %d check %d errors %u\n%s.\n", v.open, v.check, v.errors, listing);
		fflush(stdout);
		free(listing);
		if (changing) {
			try_changing(image, size, seed++ * 2654435761U);
			try_live(image, size, seed++ * 2654435761U);
		}
		free(image);
	}
	return 0;
}
