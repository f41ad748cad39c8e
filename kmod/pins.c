// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pins outlive mounts: io_uring, RDMA or a pipe can hold pages of a file whose
 * mappings and descriptors are gone. The pool must not use the memory for
 * something else meanwhile, so an image is not gone from sysfs, and its region
 * not given back, until nobody has more of its pages than mappings explain.
 */
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "daxfs.h"

/* A reference for being there, one for each mapping: all others are pins. */
static bool page_pinned(struct page *page)
{
	return page_ref_count(page) > 1 + compat_page_mapcount(page);
}

static bool file_pinned(struct daxfs_mount *m, const struct daxfs_node *n)
{
	struct page *page;
	u64 off;

	for (off = 0; off < n->size; off += PAGE_SIZE) {
		page = daxfs_region_page(m->region, m->offset + n->data + off);
		if (page && page_pinned(page))
			return true;
	}
	return false;
}

static bool image_pinned(struct daxfs_mount *m)
{
	struct daxfs_node n;
	u32 ino;

	/* The exporter of a dma-buf counts its pages in its own way. */
	if (m->region->dmabuf || m->region->pages == DAXFS_PAGES_NONE)
		return false;
	for (ino = 1; ino <= m->img.inode_count && ino; ino++) {
		if (!daxfs_node(&m->img, ino, &n) && S_ISREG(n.mode) && file_pinned(m, &n))
			return true;
		cond_resched();
	}
	return false;
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
