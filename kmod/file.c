// SPDX-License-Identifier: GPL-2.0-only
/* Regular files: one copy by read(), none by mmap(). */
#include <linux/fs.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>
#include <linux/uio.h>

#include "daxfs.h"

/*
 * ioctls, on any file or directory of a mount and on regular files. The first
 * is the public module's.
 */
#define DAXFS_IOC_DMABUF	_IO('D', 1)	/* a dma-buf over the mount's memory */
#define DAXFS_IOC_FILE_DMABUF	_IO('D', 2)	/* a dma-buf over the file's pages */

/* Where an address of the image is in its region. */
static u64 region_offset(const struct inode *inode)
{
	return daxfs_mount(inode->i_sb)->offset + daxfs_i(inode)->data;
}

/* Bytes that are copied before others get a turn. */
#define READ_CHUNK	SZ_1M

static int daxfs_open_file(struct inode *inode, struct file *file)
{
	/* There is nothing to bypass, and nothing to wait for. */
	file->f_mode |= FMODE_CAN_ODIRECT | FMODE_NOWAIT;
	return 0;
}

static ssize_t daxfs_read_iter(struct kiocb *iocb, struct iov_iter *to)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	struct daxfs_region *r = daxfs_mount(inode->i_sb)->region;
	const u8 *data = r->addr + region_offset(inode);
	u64 size = i_size_read(inode), left;
	ssize_t done = 0;

	if (iocb->ki_pos < 0)
		return -EINVAL;
	if (iocb->ki_pos >= size)
		return 0;
	left = min_t(u64, size - iocb->ki_pos, iov_iter_count(to));
	while (left) {
		size_t n = min_t(u64, left, READ_CHUNK);
		size_t copied = _copy_mc_to_iter(data + iocb->ki_pos, n, to);

		iocb->ki_pos += copied;
		done += copied;
		left -= copied;
		if (copied < n) {
			/* The user's memory, or bad memory of the pool. */
			if (!done)
				done = -EFAULT;
			break;
		}
		if (fatal_signal_pending(current))
			break;
		cond_resched();
	}
	return done;
}

static vm_fault_t daxfs_fault(struct vm_fault *vmf)
{
	struct file *file = vmf->vma->vm_file;
	struct inode *inode = file_inode(file);
	struct daxfs_mount *m = daxfs_mount(inode->i_sb);

	return daxfs_fault_range(vmf, m->region, region_offset(inode),
				 i_size_read(inode), &file->f_ra);
}

static const struct vm_operations_struct daxfs_vm_ops = {
	.fault = daxfs_fault,
};

/* Whether a file's data begins at a page; that of v8 images need not. */
static bool aligned(const struct inode *inode)
{
	return region_offset(inode) % PAGE_SIZE == 0;
}

static int daxfs_mmap(struct file *file, struct vm_area_struct *vma)
{
	int err;

	if (!aligned(file_inode(file)))
		return -ENODEV;
	err = daxfs_map(vma, daxfs_mount(file_inode(file)->i_sb)->region);
	if (err)
		return err;
	vma->vm_ops = &daxfs_vm_ops;
	file_accessed(file);
	return 0;
}

long daxfs_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct inode *inode = file_inode(file);
	struct daxfs_mount *m = daxfs_mount(inode->i_sb);
	u64 size;
	int err;

	switch (cmd) {
	case DAXFS_IOC_DMABUF:
		/* All files of all images, whatever their permissions. */
		if (!capable(CAP_SYS_ADMIN))
			return -EPERM;
		err = daxfs_pages_make_all(m->region);
		if (err)
			return err;
		return daxfs_export(file, m->region, 0, m->region->size);
	case DAXFS_IOC_FILE_DMABUF:
		if (!S_ISREG(inode->i_mode))
			return -ENOTTY;
		if (!(file->f_mode & FMODE_READ))
			return -EBADF;
		size = PAGE_ALIGN(i_size_read(inode));
		if (!size || !aligned(inode))
			return -ENODEV;
		return daxfs_export(file, m->region, region_offset(inode), size);
	}
	return -ENOTTY;
}

const struct file_operations daxfs_file_ops = {
	.open		= daxfs_open_file,
	.llseek		= generic_file_llseek,
	.read_iter	= daxfs_read_iter,
	.splice_read	= compat_splice_read,
	.mmap		= daxfs_mmap,
	.fsync		= noop_fsync,
	.unlocked_ioctl	= daxfs_ioctl,
	.compat_ioctl	= compat_ptr_ioctl,
};
