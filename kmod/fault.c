// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pool frames in processes.
 *
 * The frames have page structs, so a process's page is the pool's own, counted
 * and pinned like any other. A fault maps a batch: small where access looks
 * random, up to 2 MiB where it goes in order (docs/design/0004).
 */
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/slab.h>

#include "daxfs.h"

/* Pages of a batch: 64 KiB at first, 2 MiB at most. */
#define BATCH_MIN	16UL
#define BATCH_MAX	512UL

int daxfs_map(struct vm_area_struct *vma, const struct daxfs_region *r)
{
	if ((vma->vm_flags & VM_SHARED) && (vma->vm_flags & VM_WRITE))
		return -EACCES;
	/*
	 * A shared mapping can never become writable. A private one stays as it
	 * is: its writes go to copies.
	 */
	if (vma->vm_flags & VM_MAYSHARE)
		compat_vm_flags_clear(vma, VM_MAYWRITE);
	if (r->pages != DAXFS_PAGES_NONE)
		compat_vm_flags_set(vma, VM_MIXEDMAP);
	else if (vma->vm_flags & VM_MAYSHARE)
		compat_vm_flags_set(vma, VM_PFNMAP);
	return 0;
}

/*
 * How many pages to map from page pgoff on. ra->start is the page where the
 * last batch ended, ra->size its pages. Both are hints: threads that share the
 * file may mix them up, which costs faults, not correctness.
 */
static unsigned long batch(const struct vm_area_struct *vma,
			   const struct file_ra_state *ra, pgoff_t pgoff)
{
	/* To the end of the smallest batch that the page lies in. */
	unsigned long few = BATCH_MIN - pgoff % BATCH_MIN;

	if (vma->vm_flags & VM_RAND_READ)
		return few;
	if (vma->vm_flags & VM_SEQ_READ)
		return BATCH_MAX;
	if (pgoff && READ_ONCE(ra->start) == pgoff)
		return clamp(4UL * READ_ONCE(ra->size), BATCH_MIN, BATCH_MAX);
	return few;
}

/*
 * Maps n pages at addr, as far as none of them is mapped yet and they have page
 * structs: an image that changed may have led to memory that had no file.
 */
static int insert_pages(struct vm_area_struct *vma, unsigned long addr,
			struct daxfs_region *r, u64 off, unsigned long n)
{
	struct page *few[BATCH_MIN], **pages = few;
	unsigned long i;
	int err = -EFAULT;

	if (n > ARRAY_SIZE(few)) {
		pages = kmalloc_array(n, sizeof(*pages), GFP_KERNEL | __GFP_NOWARN);
		if (!pages) {
			pages = few;
			n = ARRAY_SIZE(few);
		}
	}
	for (i = 0; i < n; i++) {
		pages[i] = daxfs_region_page(r, off + i * PAGE_SIZE);
		if (!pages[i])
			break;
	}
	if (i)
		err = vm_insert_pages(vma, addr, pages, &i);
	if (pages != few)
		kfree(pages);
	return err;
}

/* How many pages a fault maps: a batch, clipped to the mapping and the file. */
static unsigned long clipped_batch(const struct vm_fault *vmf, unsigned long addr,
				   unsigned long file_pages,
				   const struct file_ra_state *ra)
{
	return min3(batch(vmf->vma, ra, vmf->pgoff),
		    (vmf->vma->vm_end - addr) >> PAGE_SHIFT,
		    file_pages - vmf->pgoff);
}

static void note_batch(const struct vm_fault *vmf, struct file_ra_state *ra,
		       unsigned long n)
{
	WRITE_ONCE(ra->start, vmf->pgoff + n);
	WRITE_ONCE(ra->size, max(n, BATCH_MIN));
}

static vm_fault_t map_pages(struct vm_fault *vmf, struct daxfs_region *r, u64 off,
			    unsigned long file_pages, struct file_ra_state *ra)
{
	struct vm_area_struct *vma = vmf->vma;
	unsigned long addr = vmf->address & PAGE_MASK, n, back = 0;
	int err = -EBUSY;

	n = clipped_batch(vmf, addr, file_pages, ra);
	/*
	 * Access that goes backwards shall not fault at each page: of the
	 * smallest batch, also what lies in front.
	 */
	if (n < BATCH_MIN)
		back = min(vmf->pgoff % BATCH_MIN, (addr - vma->vm_start) >> PAGE_SHIFT);
	if (back)
		err = insert_pages(vma, addr - back * PAGE_SIZE, r,
				   off - back * PAGE_SIZE, back + n);
	/* Stopped at a page that is mapped, maybe before the one that is not. */
	if (err == -EBUSY)
		err = insert_pages(vma, addr, r, off, n);
	/* Somebody else was first, at this page or behind it. */
	if (err && err != -EBUSY)
		return err == -ENOMEM ? VM_FAULT_OOM : VM_FAULT_SIGBUS;
	note_batch(vmf, ra, n);
	return VM_FAULT_NOPAGE;
}

/* Frames of a region without page structs. */
static vm_fault_t map_frames(struct vm_fault *vmf, struct daxfs_region *r, u64 off,
			     unsigned long file_pages, struct file_ra_state *ra)
{
	unsigned long addr = vmf->address & PAGE_MASK, n, i;
	vm_fault_t ret;

	n = clipped_batch(vmf, addr, file_pages, ra);
	for (i = 0; i < n; i++) {
		ret = vmf_insert_pfn(vmf->vma, addr + i * PAGE_SIZE,
				     daxfs_region_pfn(r, off + i * PAGE_SIZE));
		if (ret != VM_FAULT_NOPAGE)
			return i ? VM_FAULT_NOPAGE : ret;
	}
	note_batch(vmf, ra, n);
	return VM_FAULT_NOPAGE;
}

/*
 * A private mapping of a region without page structs gets copies, even for
 * reading: where a frame is mapped and written through ptrace, the kernel takes
 * the bytes around the written word from the debugger's memory
 * (__wp_page_copy_user() in mm/memory.c).
 */
static vm_fault_t map_copy(struct vm_fault *vmf, struct daxfs_region *r, u64 off)
{
	struct page *page = alloc_page(GFP_USER | __GFP_ACCOUNT);

	if (!page)
		return VM_FAULT_OOM;
	memcpy(page_address(page), r->addr + off, PAGE_SIZE);
	flush_dcache_page(page);
	__SetPageUptodate(page);
	vmf->page = page;
	return 0;
}

vm_fault_t daxfs_fault_range(struct vm_fault *vmf, struct daxfs_region *r,
			     u64 off, u64 size, struct file_ra_state *ra)
{
	unsigned long pages = DIV_ROUND_UP(size, PAGE_SIZE);
	u64 at = off + ((u64)vmf->pgoff << PAGE_SHIFT);

	if (vmf->pgoff >= pages)
		return VM_FAULT_SIGBUS;
	/* daxfs_map() has seen to it that this does not happen. */
	if ((vmf->flags & FAULT_FLAG_WRITE) && !vmf->cow_page)
		return VM_FAULT_SIGBUS;
	if (r->pages == DAXFS_PAGES_NONE) {
		if (vmf->vma->vm_flags & VM_MAYSHARE)
			return map_frames(vmf, r, at, pages, ra);
		return map_copy(vmf, r, at);
	}
	if (vmf->cow_page) {
		vmf->page = daxfs_region_page(r, at);
		if (!vmf->page)
			return VM_FAULT_SIGBUS;
		/* The core copies the page and drops the reference. */
		get_page(vmf->page);
		return 0;
	}
	return map_pages(vmf, r, at, pages, ra);
}
