/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The differences between the kernels that the module builds for, and nothing
 * else. Each is named with the release that brought it.
 */
#ifndef DAXFS_COMPAT_H
#define DAXFS_COMPAT_H

#include <linux/version.h>
#include <linux/crc32c.h>
#include <linux/dma-buf.h>
#include <linux/fs.h>
#include <linux/memory_hotplug.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/posix_acl_xattr.h>
#include <linux/uio.h>
#include <linux/xattr.h>

#define SINCE(major, minor)	(LINUX_VERSION_CODE >= KERNEL_VERSION(major, minor, 0))

/* 6.2: dma-buf functions that take the lock themselves; ->get_inode_acl */
#if SINCE(6, 2)
#define compat_dma_buf_vmap	dma_buf_vmap_unlocked
#define compat_dma_buf_vunmap	dma_buf_vunmap_unlocked
#define COMPAT_GET_ACL		get_inode_acl
#define COMPAT_ACL_HANDLERS
#else
#define compat_dma_buf_vmap	dma_buf_vmap
#define compat_dma_buf_vunmap	dma_buf_vunmap
#define COMPAT_GET_ACL		get_acl
#ifdef CONFIG_FS_POSIX_ACL
#define COMPAT_ACL_HANDLERS	&posix_acl_access_xattr_handler, &posix_acl_default_xattr_handler,
#else
#define COMPAT_ACL_HANDLERS
#endif
#endif

/* 6.3: vm_flags are changed by functions */
#if SINCE(6, 3)
#define compat_vm_flags_set	vm_flags_set
#define compat_vm_flags_clear	vm_flags_clear
#else
static inline void compat_vm_flags_set(struct vm_area_struct *vma, unsigned long flags)
{
	vma->vm_flags |= flags;
}

static inline void compat_vm_flags_clear(struct vm_area_struct *vma, unsigned long flags)
{
	vma->vm_flags &= ~flags;
}
#endif

/* 6.5: splice of files that are not in the page cache */
#if SINCE(6, 5)
#define compat_splice_read	copy_splice_read
#else
#define compat_splice_read	generic_file_splice_read
#endif

/*
 * 6.7: fsconfig(FSCONFIG_SET_FD) tells the number of the descriptor. Before, it
 * has to be found by its file.
 */
#if SINCE(6, 7)
#define compat_param_fd(param, result)	((int)(result)->uint_32)
#else
#include <linux/fdtable.h>
#include <linux/fs_parser.h>

static inline int compat_same_file(const void *wanted, struct file *file, unsigned int fd)
{
	return file == wanted ? fd + 1 : 0;
}

static inline int compat_param_fd(struct fs_parameter *param, struct fs_parse_result *result)
{
	if (param->type != fs_value_is_file)
		return result->uint_32;
	return iterate_fd(current->files, 0, compat_same_file, param->file) - 1;
}
#endif

/* 6.7: file handles have to be asked for; times are set by functions */
#if SINCE(6, 7)
#define COMPAT_ENCODE_FH	.encode_fh = generic_encode_ino32_fh,

static inline void compat_set_times(struct inode *inode, struct timespec64 t)
{
	inode_set_mtime_to_ts(inode, t);
	inode_set_atime_to_ts(inode, t);
	inode_set_ctime_to_ts(inode, t);
}
#else
#define COMPAT_ENCODE_FH

static inline void compat_set_times(struct inode *inode, struct timespec64 t)
{
	inode->i_mtime = t;
	inode->i_atime = t;
	inode->i_ctime = t;
}
#endif

/* 6.7: s_xattr points to constants */
#if SINCE(6, 7)
#define COMPAT_XATTR_HANDLERS(name)	const struct xattr_handler *const name[]
#else
#define COMPAT_XATTR_HANDLERS(name)	const struct xattr_handler *name[]
#endif

/* 6.9: a UUID has a length */
static inline void compat_set_uuid(struct super_block *sb, const u8 *uuid)
{
#if SINCE(6, 9)
	super_set_uuid(sb, uuid, sizeof(sb->s_uuid));
#else
	import_uuid(&sb->s_uuid, uuid);
#endif
}

/* 6.13: namespaces are strings */
#if SINCE(6, 13)
#define COMPAT_IMPORT_NS_DMA_BUF	MODULE_IMPORT_NS("DMA_BUF")
#else
#define COMPAT_IMPORT_NS_DMA_BUF	MODULE_IMPORT_NS(DMA_BUF)
#endif

/* 7.0: the hint is gone */
static inline struct dev_pagemap *compat_get_dev_pagemap(unsigned long pfn)
{
#if SINCE(7, 0)
	return get_dev_pagemap(pfn);
#else
	return get_dev_pagemap(pfn, NULL);
#endif
}

/* 6.12: page_mapcount() is gone; ours are single pages, whose folios they are */
#if SINCE(6, 12)
#define compat_page_mapcount(page)	folio_mapcount(page_folio(page))
#else
#define compat_page_mapcount(page)	page_mapcount(page)
#endif

#define compat_alloc_inode_sb(sb, cache)	alloc_inode_sb(sb, cache, GFP_KERNEL)

/* 6.19: i_state is read by functions */
#if SINCE(6, 19)
#define compat_inode_is_new(inode)	(inode_state_read_once(inode) & I_NEW)
#else
#define compat_inode_is_new(inode)	((inode)->i_state & I_NEW)
#endif


#define inode_number(inode)			((unsigned long)(inode)->i_ino)

/* What of the physical address space can be mapped, with page structs or not. */
static inline struct range compat_phys_range(bool nopages)
{
	struct range r = { .start = 0 };

	if (!nopages)
		return mhp_get_pluggable_range(true);
#ifdef CONFIG_X86
	r.end = (1ULL << boot_cpu_data.x86_phys_bits) - 1;
#else
	r.end = (1ULL << MAX_PHYSMEM_BITS) - 1;
#endif
	return r;
}

#endif /* DAXFS_COMPAT_H */
