// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pins outlive mounts: io_uring, RDMA or a pipe can hold pages of a file whose
 * mappings and descriptors are gone. The pool must not use the memory for
 * something else meanwhile, so an image is not gone from sysfs, and its region
 * not given back, until nobody has more of its pages than mappings explain.
 */
#include <linux/bitmap.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "daxfs.h"

/* A reference for being there, one for each mapping: all others are pins. */
static bool page_pinned(struct page *page)
{
	return page_ref_count(page) > 1 + compat_page_mapcount(page);
}

static bool image_pinned(struct daxfs_mount *m)
{
	struct daxfs_region *r = m->region;
	unsigned long n = r->size >> PAGE_SHIFT, i, *bits;
	struct page *page;
	bool pinned = false;

	/* The exporter of a dma-buf counts its pages in its own way. */
	if (r->dmabuf || r->pages == DAXFS_PAGES_NONE)
		return false;
	/* Files may share pages: each is looked at once. */
	bits = kvcalloc(BITS_TO_LONGS(n), sizeof(*bits), GFP_KERNEL | __GFP_NOWARN);
	if (!bits)
		return true; /* perhaps; we will look again */
	daxfs_mark_files(m, bits, PAGE_SIZE);
	for_each_set_bit(i, bits, n) {
		page = daxfs_region_page(r, (u64)i << PAGE_SHIFT);
		pinned = page && page_pinned(page);
		if (pinned)
			break;
		if (i % 4096 == 0)
			cond_resched();
	}
	kvfree(bits);
	return pinned;
}

static void free_mount(struct daxfs_mount *m, bool wait)
{
	daxfs_sysfs_remove(m);
	if (m->region)
		daxfs_region_put(m->region, wait);
	kfree(m->name);
	kfree(m);
}

static void look_again(struct work_struct *work)
{
	struct daxfs_mount *m = container_of(work, struct daxfs_mount, unpin.work);

	if (image_pinned(m)) {
		/* 0.1 s, doubled up to 6.4 s */
		unsigned long wait = HZ / 10 << min(m->looks++, 6U);

		queue_delayed_work(daxfs_wq, &m->unpin, wait);
		return;
	}
	free_mount(m, false);
	/* daxfs_region_exit() waits until this function has returned. */
	module_put(THIS_MODULE);
}

void daxfs_free_mount(struct daxfs_mount *m)
{
	/* Without an entry in sysfs it was never mounted. */
	if (!m->kobj_added || !image_pinned(m)) {
		free_mount(m, true);
		return;
	}
	WRITE_ONCE(m->pinned, true);
	__module_get(THIS_MODULE);
	INIT_DELAYED_WORK(&m->unpin, look_again);
	queue_delayed_work(daxfs_wq, &m->unpin, HZ / 10);
}
