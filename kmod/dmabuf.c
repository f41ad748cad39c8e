// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory of a mount as a dma-buf, so that a device driver can read it in place:
 * model weights, for example. Read-only as far as the interface allows: not
 * writable by mmap, not mapped for devices that write. What a driver does with
 * the kernel address that vmap gives is its own business.
 */
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

#include "daxfs.h"

struct daxfs_buf {
	struct file *file;	/* keeps the mount and its region */
	struct daxfs_region *region;
	u64 off;		/* in the region */
	u64 size;
	struct file_ra_state ra;
};

static struct sg_table *buf_map(struct dma_buf_attachment *attach,
				enum dma_data_direction dir)
{
	struct daxfs_buf *b = attach->dmabuf->priv;
	unsigned long n = b->size >> PAGE_SHIFT, i;
	struct sg_table *table;
	struct page **pages;
	int err = -ENOMEM;

	if (dir != DMA_TO_DEVICE)
		return ERR_PTR(-EACCES);
	if (n > UINT_MAX)
		return ERR_PTR(-E2BIG);
	table = kzalloc(sizeof(*table), GFP_KERNEL);
	pages = kvmalloc_array(n, sizeof(*pages), GFP_KERNEL);
	if (!table || !pages)
		goto fail;
	for (i = 0; i < n; i++) {
		pages[i] = daxfs_region_page(b->region, b->off + (i << PAGE_SHIFT));
		if (!pages[i]) {
			err = -EFAULT;
			goto fail;
		}
	}
	err = sg_alloc_table_from_pages(table, pages, n, 0, b->size, GFP_KERNEL);
	if (err)
		goto fail;
	err = dma_map_sgtable(attach->dev, table, dir, 0);
	if (err) {
		sg_free_table(table);
		goto fail;
	}
	kvfree(pages);
	return table;
fail:
	kvfree(pages);
	kfree(table);
	return ERR_PTR(err);
}

static void buf_unmap(struct dma_buf_attachment *attach, struct sg_table *table,
		      enum dma_data_direction dir)
{
	dma_unmap_sgtable(attach->dev, table, dir, 0);
	sg_free_table(table);
	kfree(table);
}

static int buf_vmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	struct daxfs_buf *b = dmabuf->priv;

	iosys_map_set_vaddr(map, b->region->addr + b->off);
	return 0;
}

static vm_fault_t buf_fault(struct vm_fault *vmf)
{
	struct daxfs_buf *b = vmf->vma->vm_private_data;

	return daxfs_fault_range(vmf, b->region, b->off, b->size, &b->ra);
}

static const struct vm_operations_struct buf_vm_ops = {
	.fault = buf_fault,
};

/* The mapping holds the dma-buf's file, and that the daxfs_buf. */
static int buf_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	struct daxfs_buf *b = dmabuf->priv;
	int err = daxfs_map(vma, b->region);

	if (err)
		return err;
	vma->vm_ops = &buf_vm_ops;
	vma->vm_private_data = b;
	return 0;
}

static void buf_release(struct dma_buf *dmabuf)
{
	struct daxfs_buf *b = dmabuf->priv;

	fput(b->file);
	kfree(b);
}

static const struct dma_buf_ops buf_ops = {
	.map_dma_buf	= buf_map,
	.unmap_dma_buf	= buf_unmap,
	.vmap		= buf_vmap,
	.mmap		= buf_mmap,
	.release	= buf_release,
};

int daxfs_export(struct file *file, struct daxfs_region *r, u64 off, u64 size)
{
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	struct dma_buf *dmabuf;
	struct daxfs_buf *b;
	int fd;

	if (r->pages == DAXFS_PAGES_NONE)
		return -EOPNOTSUPP;
	b = kzalloc(sizeof(*b), GFP_KERNEL_ACCOUNT);
	if (!b)
		return -ENOMEM;
	b->file = get_file(file);
	b->region = r;
	b->off = off;
	b->size = size;
	info.ops = &buf_ops;
	info.size = size;
	info.flags = O_RDONLY;
	info.priv = b;
	dmabuf = dma_buf_export(&info);
	if (IS_ERR(dmabuf)) {
		fput(file);
		kfree(b);
		return PTR_ERR(dmabuf);
	}
	fd = dma_buf_fd(dmabuf, O_CLOEXEC);
	if (fd < 0)
		dma_buf_put(dmabuf);
	return fd;
}
