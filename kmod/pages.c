// SPDX-License-Identifier: GPL-2.0-only
/*
 * Page structs for a region's memory: 16 MiB of them per GiB, in this kernel's
 * own RAM. So they are made only where the files of mounted images lie, chunk
 * by chunk, and stay as long as the region does (docs/design/0004).
 */
#include <linux/bitmap.h>
#include <linux/memremap.h>
#include <linux/slab.h>

#include "daxfs.h"

/* One range of page structs. */
struct daxfs_run {
	struct list_head list;
	struct dev_pagemap map;
};

static u64 chunk_end(const struct daxfs_region *r, unsigned long chunk)
{
	return min(((u64)chunk + 1) * DAXFS_CHUNK, r->size);
}

/*
 * Makes page structs for chunks [from, to), none of which has any. What
 * memremap_pages() would warn about, System RAM or others' page structs in the
 * range, cannot be there: region.c has looked.
 */
static int make_run(struct daxfs_region *r, unsigned long from, unsigned long to)
{
	struct daxfs_run *run = kzalloc(sizeof(*run), GFP_KERNEL);
	void *addr;

	if (!run)
		return -ENOMEM;
	run->map.type = MEMORY_DEVICE_GENERIC;
	run->map.range.start = r->start + (u64)from * DAXFS_CHUNK;
	run->map.range.end = r->start + chunk_end(r, to - 1) - 1;
	run->map.nr_range = 1;
	addr = memremap_pages(&run->map, NUMA_NO_NODE);
	if (IS_ERR(addr)) {
		kfree(run);
		return PTR_ERR(addr);
	}
	list_add(&run->list, &r->runs);
	return 0;
}

int daxfs_pages_make(struct daxfs_region *r, const unsigned long *want)
{
	unsigned long from, to;
	int err = 0;

	if (r->pages != DAXFS_PAGES_OWN)
		return 0;
	mutex_lock(&r->runs_lock);
	for (to = 0; !err; ) {
		from = find_next_andnot_bit(want, r->there, r->chunks, to);
		if (from >= r->chunks)
			break;
		to = from + 1;
		while (to < r->chunks && test_bit(to, want) && !test_bit(to, r->there))
			to++;
		err = make_run(r, from, to);
		/* From now on daxfs_region_page() gives them out. */
		if (!err) {
			smp_wmb();
			bitmap_set(r->there, from, to - from);
		}
	}
	mutex_unlock(&r->runs_lock);
	return err;
}

int daxfs_pages_make_all(struct daxfs_region *r)
{
	unsigned long *all;
	int err;

	all = bitmap_alloc(r->chunks, GFP_KERNEL);
	if (!all)
		return -ENOMEM;
	bitmap_fill(all, r->chunks);
	err = daxfs_pages_make(r, all);
	bitmap_free(all);
	return err;
}

bool daxfs_pages_idle(struct daxfs_region *r)
{
	struct daxfs_run *run;
	u64 pfn;

	list_for_each_entry(run, &r->runs, list) {
		for (pfn = PHYS_PFN(run->map.range.start);
		     pfn <= PHYS_PFN(run->map.range.end); pfn++)
			if (page_ref_count(pfn_to_page(pfn)) != 1)
				return false;
		cond_resched();
	}
	return true;
}

void daxfs_pages_free(struct daxfs_region *r)
{
	struct daxfs_run *run, *next;

	list_for_each_entry_safe(run, next, &r->runs, list) {
		memunmap_pages(&run->map);
		kfree(run);
	}
}
