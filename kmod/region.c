// SPDX-License-Identifier: GPL-2.0-only
/* Regions: memory that images lie in. */
#include <linux/bitmap.h>
#include <linux/dma-buf.h>
#include <linux/fs_context.h>
#include <linux/io.h>
#include <linux/ioport.h>
#include <linux/module.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "daxfs.h"

/* memremap_pages() works in units of this (SUBSECTION_SIZE). */
#define PAGES_ALIGN	SZ_2M

/* Under daxfs_regions_lock: the list, and users of each region. */
static LIST_HEAD(daxfs_regions);
static DEFINE_MUTEX(daxfs_regions_lock);
struct workqueue_struct *daxfs_wq;

unsigned long daxfs_region_pfn(struct daxfs_region *r, u64 off)
{
	if (!r->dmabuf)
		return PHYS_PFN(r->start + off);
	if (is_vmalloc_addr(r->addr))
		return vmalloc_to_pfn(r->addr + off);
	return PHYS_PFN(virt_to_phys(r->addr + off));
}

struct page *daxfs_region_page(struct daxfs_region *r, u64 off)
{
	if (r->pages == DAXFS_PAGES_NONE)
		return NULL;
	if (r->pages == DAXFS_PAGES_OWN) {
		if (!test_bit(off / DAXFS_CHUNK, r->there))
			return NULL;
		smp_rmb(); /* the bit before the page struct, see pages.c */
	}
	return pfn_to_page(daxfs_region_pfn(r, off));
}

/*
 * Whether page structs of others can be mapped into processes by us: they must
 * be alive, and single, because a compound page is counted as a whole.
 */
static bool usable_page(struct page *page, bool compound)
{
	return folio_ref_count(page_folio(page)) > 0 && !PageAnon(page) && !PageSlab(page) &&
	       (compound || !PageCompound(page));
}

static void daxfs_drain(struct work_struct *work);

static struct daxfs_region *region_alloc(void)
{
	struct daxfs_region *r = kzalloc(sizeof(*r), GFP_KERNEL);

	if (!r)
		return NULL;
	INIT_LIST_HEAD(&r->list);
	INIT_LIST_HEAD(&r->runs);
	mutex_init(&r->runs_lock);
	INIT_DELAYED_WORK(&r->drain, daxfs_drain);
	return r;
}

/* Gives back what a region has taken, as far as its construction came. */
static void region_free(struct daxfs_region *r)
{
	if (r->dmabuf) {
		if (r->addr)
			compat_dma_buf_vunmap(r->dmabuf, &r->map);
		dma_buf_put(r->dmabuf);
	} else if (r->foreign) {
		put_dev_pagemap(r->foreign);
	} else {
		daxfs_pages_free(r);
		if (r->addr)
			memunmap(r->addr);
		remove_resource(&r->resource);
	}
	bitmap_free(r->there);
	kfree(r);
}

/*
 * The page structs that a driver has made for all of the region, if we can use
 * them: the reference that we hold keeps the driver from unbinding.
 */
static int use_foreign_pages(struct daxfs_region *r)
{
	struct dev_pagemap *map = compat_get_dev_pagemap(PHYS_PFN(r->start));
	u64 off;

	if (!map)
		return -EBUSY;
	r->foreign = map;
	for (off = 0; off < r->size; off += PAGE_SIZE) {
		unsigned long pfn = PHYS_PFN(r->start + off);

		if (off % PAGES_ALIGN == 0) {
			struct dev_pagemap *here = compat_get_dev_pagemap(pfn);

			if (here)
				put_dev_pagemap(here);
			if (here != map)
				return -EBUSY;
		}
		if (!usable_page(pfn_to_page(pfn), false))
			return -EBUSY;
	}
	if (map->type != MEMORY_DEVICE_FS_DAX && map->type != MEMORY_DEVICE_GENERIC)
		return -EBUSY;
	r->pages = DAXFS_PAGES_EXISTING;
	r->addr = page_address(pfn_to_page(PHYS_PFN(r->start)));
	return 0;
}

/*
 * Whether a driver has page structs for a part of the region, although it has
 * not requested the memory: memremap_pages() would warn about it.
 */
static bool has_foreign_pages(const struct daxfs_region *r)
{
	struct dev_pagemap *map;
	u64 off;

	for (off = 0; off < r->size; off += PAGES_ALIGN) {
		map = compat_get_dev_pagemap(PHYS_PFN(r->start + off));
		if (map) {
			put_dev_pagemap(map);
			return true;
		}
	}
	return false;
}

/* Maps a requested region for the kernel; pages.c makes page structs later. */
static int map_region(struct fs_context *fc, struct daxfs_region *r, bool nopages)
{
	if (has_foreign_pages(r)) {
		errorf(fc, pr_name "phys=%pa: a driver has page structs for a part of it", &r->start);
		return -EBUSY;
	}
	r->pages = nopages ? DAXFS_PAGES_NONE : DAXFS_PAGES_OWN;
	if (!nopages) {
		r->chunks = DIV_ROUND_UP_ULL(r->size, DAXFS_CHUNK);
		r->there = bitmap_zalloc(r->chunks, GFP_KERNEL);
		if (!r->there)
			return -ENOMEM;
	}
	r->addr = memremap(r->start, r->size, MEMREMAP_WB);
	if (!r->addr) {
		errorf(fc, pr_name "phys=%pa: cannot map %llu bytes", &r->start, r->size);
		return -ENOMEM;
	}
	return 0;
}

/* Takes a region that is there. */
static int share(struct fs_context *fc, struct daxfs_region *r, bool nopages)
{
	if (r->pages == DAXFS_PAGES_NONE && !nopages) {
		errorf(fc, pr_name "the region is in use without page structs; unmount its nopages mounts first");
		return -EBUSY;
	}
	r->users++;
	return 0;
}

static int is_busy(struct resource *res, void *unused)
{
	return 1;
}

/*
 * Enters the region into the resource tree (/proc/iomem), if no driver has
 * requested any of it. Not as busy, which request_mem_region() would do: with
 * CONFIG_IO_STRICT_DEVMEM that would take /dev/mem away from the pool's owner,
 * who writes the region through it.
 */
static bool claim(struct daxfs_region *r)
{
	r->resource.name = "daxfs";
	r->resource.start = r->start;
	r->resource.end = r->start + r->size - 1;
	r->resource.flags = IORESOURCE_MEM;
	return walk_iomem_res_desc(IORES_DESC_NONE, IORESOURCE_MEM | IORESOURCE_BUSY,
				   r->resource.start, r->resource.end, NULL, is_busy) != 1 &&
	       !insert_resource(&iomem_resource, &r->resource);
}

static struct daxfs_region *phys_locked(struct fs_context *fc, phys_addr_t start,
					u64 size, bool nopages)
{
	struct daxfs_region *r;
	int err;

	list_for_each_entry(r, &daxfs_regions, list) {
		if (r->dmabuf || start + size <= r->start || r->start + r->size <= start)
			continue;
		if (r->start != start || r->size != size) {
			errorf(fc, pr_name "phys=%pa,size=%llu overlaps the region phys=%pa,size=%llu, which is in use",
			       &start, size, &r->start, r->size);
			return ERR_PTR(-EBUSY);
		}
		err = share(fc, r, nopages);
		return err ? ERR_PTR(err) : r;
	}

	r = region_alloc();
	if (!r)
		return ERR_PTR(-ENOMEM);
	r->start = start;
	r->size = size;
	if (claim(r)) {
		err = map_region(fc, r, nopages);
	} else {
		err = use_foreign_pages(r);
		if (err) {
			errorf(fc, pr_name "phys=%pa,size=%llu: a driver owns a part of it (see /proc/iomem), without page structs that could be mapped here; unbind it",
			       &start, size);
			if (r->foreign)
				put_dev_pagemap(r->foreign);
			kfree(r);
			return ERR_PTR(err);
		}
	}
	if (err) {
		region_free(r);
		return ERR_PTR(err);
	}
	return r;
}

static void adopt(struct daxfs_region *r)
{
	if (!list_empty(&r->list))
		return; /* was shared */
	r->users = 1;
	list_add_tail(&r->list, &daxfs_regions);
	/* Until region_free(), which may come long after the last unmount. */
	__module_get(THIS_MODULE);
}

struct daxfs_region *daxfs_region_phys(struct fs_context *fc, phys_addr_t start,
				       u64 size, bool nopages)
{
	u64 align = nopages ? PAGE_SIZE : PAGES_ALIGN;
	struct range can = compat_phys_range(nopages);
	struct daxfs_region *r;

	if (!size || start % align || size % align) {
		errorf(fc, pr_name "phys=%pa,size=%llu: both must be multiples of %llu%s, and size not 0",
		       &start, size, align, nopages ? "" : " (nopages takes 4096)");
		return ERR_PTR(-EINVAL);
	}
	if (start + size < start || start < can.start || start + size - 1 > can.end) {
		errorf(fc, pr_name "phys=%pa,size=%llu is not within the addresses %#llx-%#llx that this kernel can map",
		       &start, size, can.start, can.end);
		return ERR_PTR(-EINVAL);
	}
	if (region_intersects(start, size, IORESOURCE_SYSTEM_RAM, IORES_DESC_NONE) !=
	    REGION_DISJOINT) {
		errorf(fc, pr_name "phys=%pa,size=%llu has System RAM in it, which this kernel uses itself",
		       &start, size);
		return ERR_PTR(-EINVAL);
	}
	mutex_lock(&daxfs_regions_lock);
	r = phys_locked(fc, start, size, nopages);
	if (!IS_ERR(r))
		adopt(r);
	mutex_unlock(&daxfs_regions_lock);
	return r;
}

/* Whether every page of a mapped dma-buf can be mapped into processes. */
static bool dmabuf_has_pages(struct daxfs_region *r)
{
	u64 off;

	if (!is_vmalloc_addr(r->addr) && !virt_addr_valid(r->addr))
		return false;
	for (off = 0; off < r->size; off += PAGE_SIZE) {
		unsigned long pfn = daxfs_region_pfn(r, off);

		if (!pfn || !pfn_valid(pfn) || !usable_page(pfn_to_page(pfn), true) ||
		    PageHuge(pfn_to_page(pfn)))
			return false;
	}
	return true;
}

static struct daxfs_region *dmabuf_locked(struct fs_context *fc,
					  struct dma_buf *dmabuf, bool nopages)
{
	struct daxfs_region *r;
	int err;

	list_for_each_entry(r, &daxfs_regions, list) {
		if (r->dmabuf != dmabuf)
			continue;
		err = share(fc, r, nopages);
		return err ? ERR_PTR(err) : r;
	}
	r = region_alloc();
	if (!r)
		return ERR_PTR(-ENOMEM);
	get_dma_buf(dmabuf);
	r->dmabuf = dmabuf;
	r->size = round_down(dmabuf->size, PAGE_SIZE);
	err = compat_dma_buf_vmap(dmabuf, &r->map);
	if (err) {
		errorf(fc, pr_name "dmabuf: its exporter (%s) cannot map it for the CPU: error %d",
		       dmabuf->exp_name, err);
		goto fail;
	}
	r->addr = r->map.vaddr;
	err = -EINVAL;
	if (r->map.is_iomem) {
		errorf(fc, pr_name "dmabuf: this is device memory, not RAM");
		goto fail;
	}
	r->pages = DAXFS_PAGES_EXISTING;
	if (!dmabuf_has_pages(r)) {
		if (!nopages) {
			errorf(fc, pr_name "dmabuf: not all of it has page structs that can be mapped (nopages does without)");
			goto fail;
		}
		r->pages = DAXFS_PAGES_NONE;
	}
	return r;
fail:
	region_free(r);
	return ERR_PTR(err);
}

struct daxfs_region *daxfs_region_dmabuf(struct fs_context *fc,
					 struct dma_buf *dmabuf, bool nopages)
{
	struct daxfs_region *r;

	mutex_lock(&daxfs_regions_lock);
	r = dmabuf_locked(fc, dmabuf, nopages);
	if (!IS_ERR(r))
		adopt(r);
	mutex_unlock(&daxfs_regions_lock);
	return r;
}

/*
 * Whether nobody has a reference to a page any more. What an image's pages are
 * pinned for is pins.c's business; here it is about what is left of images that
 * changed while they were mounted.
 */
static bool idle(struct daxfs_region *r)
{
	u64 off;

	if (r->pages == DAXFS_PAGES_OWN)
		return daxfs_pages_idle(r);
	if (!r->foreign)
		return true; /* its owner counts, or there is nothing to count */
	for (off = 0; off < r->size; off += PAGE_SIZE)
		if (page_ref_count(daxfs_region_page(r, off)) != 1)
			return false;
	return true;
}

/*
 * Frees a region without users as soon as it is idle. Only here: a work that is
 * queued still finds its region.
 */
static void daxfs_drain(struct work_struct *work)
{
	struct daxfs_region *r = container_of(work, struct daxfs_region, drain.work);
	bool gone = false;

	mutex_lock(&daxfs_regions_lock);
	if (!r->users) { /* else it was taken again meanwhile */
		gone = idle(r);
		if (gone) {
			list_del(&r->list);
			region_free(r);
		} else {
			/* 0.1 s, doubled up to 6.4 s */
			unsigned long wait = HZ / 10 << min(r->drains++, 6U);

			queue_delayed_work(daxfs_wq, &r->drain, wait);
		}
	}
	mutex_unlock(&daxfs_regions_lock);
	/*
	 * Not the last thing that runs here, but daxfs_region_exit() waits for
	 * the queue.
	 */
	if (gone)
		module_put(THIS_MODULE);
}

void daxfs_region_put(struct daxfs_region *r, bool wait)
{
	bool last;

	mutex_lock(&daxfs_regions_lock);
	last = !--r->users;
	if (last) {
		r->drains = 0;
		mod_delayed_work(daxfs_wq, &r->drain, 0);
	}
	mutex_unlock(&daxfs_regions_lock);
	/* Who unmounts shall find the memory free. The region may be gone now. */
	if (last && wait)
		flush_workqueue(daxfs_wq);
}

ssize_t daxfs_region_show(char *buf)
{
	static const char *const pages[] = { "own", "existing", "none" };
	struct daxfs_region *r;
	int len = 0;

	mutex_lock(&daxfs_regions_lock);
	list_for_each_entry(r, &daxfs_regions, list) {
		if (r->dmabuf)
			len += sysfs_emit_at(buf, len, "dmabuf=%s", r->dmabuf->exp_name);
		else
			len += sysfs_emit_at(buf, len, "phys=%pa", &r->start);
		len += sysfs_emit_at(buf, len, " size=%llu users=%u pages=%s%s\n",
				     r->size, r->users, pages[r->pages],
				     r->users ? "" : " draining");
	}
	mutex_unlock(&daxfs_regions_lock);
	return len;
}

int daxfs_region_init(void)
{
	daxfs_wq = alloc_workqueue("daxfs", WQ_UNBOUND, 0);
	return daxfs_wq ? 0 : -ENOMEM;
}

void daxfs_region_exit(void)
{
	destroy_workqueue(daxfs_wq);
}
