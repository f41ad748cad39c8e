/* SPDX-License-Identifier: GPL-2.0-only */
/* What the module's files share; each section names the file that has it. */
#ifndef DAXFS_H
#define DAXFS_H

#include <linux/fs.h>
#include <linux/ioport.h>
#include <linux/iosys-map.h>
#include <linux/kobject.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/ratelimit.h>
#include <linux/workqueue.h>

#include "compat.h"
#include "core.h"

#define pr_name "daxfs: "

/*
 * region.c: the memory that images lie in. A region is there once in a kernel,
 * however many images are mounted from it, because page structs are.
 */

enum daxfs_pages {
	DAXFS_PAGES_OWN,	/* made by us: pages.c */
	DAXFS_PAGES_EXISTING,	/* a driver's, or a dma-buf's */
	DAXFS_PAGES_NONE,	/* nopages */
};

struct daxfs_region {
	struct list_head list;
	unsigned int users;	/* mounts; under the lock of region.c */

	phys_addr_t start;	/* phys regions */
	struct resource resource;
	struct dma_buf *dmabuf;	/* dma-buf regions, else NULL */
	struct iosys_map map;	/* of dmabuf */

	u64 size;		/* bytes, a multiple of the page size */
	void *addr;		/* where the kernel sees it */
	enum daxfs_pages pages;
	struct dev_pagemap *foreign;	/* DAXFS_PAGES_EXISTING of a phys region */

	/* DAXFS_PAGES_OWN: what has page structs; bits are set, never cleared */
	struct mutex runs_lock;
	struct list_head runs;
	unsigned long chunks;	/* of DAXFS_CHUNK bytes, the last one perhaps less */
	unsigned long *there;	/* a bit for each chunk */

	struct delayed_work drain;
	unsigned int drains;	/* how often in vain */
};

/*
 * The region [start, start + size) of physical addresses: a new one, or the one
 * that is there, to be given back with daxfs_region_put(). Errors have been
 * told to fc.
 */
struct daxfs_region *daxfs_region_phys(struct fs_context *fc, phys_addr_t start,
				       u64 size, bool nopages);
/* The same for a dma-buf, of which it takes a reference of its own. */
struct daxfs_region *daxfs_region_dmabuf(struct fs_context *fc,
					 struct dma_buf *dmabuf, bool nopages);
/*
 * Gives a region back. wait: returns when its memory is free, unless it has to
 * wait for others; not to be used from a work of daxfs_wq.
 */
void daxfs_region_put(struct daxfs_region *r, bool wait);
/* The page at byte off, which is inside; NULL if it has none. */
struct page *daxfs_region_page(struct daxfs_region *r, u64 off);
/* The frame at byte off. */
unsigned long daxfs_region_pfn(struct daxfs_region *r, u64 off);
/* Writes a line for each region to buf, of PAGE_SIZE bytes. */
ssize_t daxfs_region_show(char *buf);
int daxfs_region_init(void);
void daxfs_region_exit(void);
/* For what waits until pages are not in use. */
extern struct workqueue_struct *daxfs_wq;

/*
 * pages.c: page structs of DAXFS_PAGES_OWN regions
 */

#define DAXFS_CHUNK	(16ULL << 20)	/* bytes of memory that get page structs at once */

/*
 * Makes page structs for the chunks whose bits are set in want, where they are
 * not there yet. Nothing to do for other regions.
 */
int daxfs_pages_make(struct daxfs_region *r, const unsigned long *want);
int daxfs_pages_make_all(struct daxfs_region *r);
/* Whether nobody has a reference to any of them. */
bool daxfs_pages_idle(struct daxfs_region *r);
void daxfs_pages_free(struct daxfs_region *r);

/*
 * super.c: one mounted image.
 */

struct daxfs_mount {
	struct daxfs_image img;
	struct daxfs_region *region;
	u64 offset;		/* of the image in the region */
	char *name;
	bool nopages;
	bool novalidate;
	struct ratelimit_state report;
	struct fs_context *fc;	/* while it is being mounted */
	struct kobject kobj;	/* in /sys/fs/daxfs */
	struct completion kobj_gone;
	bool kobj_added;
	dev_t dev;
	bool pinned;		/* unmounted, but some of its pages are in use */
	struct delayed_work unpin;
	unsigned int looks;	/* how often they were in use */
};

static inline struct daxfs_mount *daxfs_mount(const struct super_block *sb)
{
	return sb->s_fs_info;
}

/*
 * Sets the bits of the pieces of the region, of unit bytes each, in which the
 * image's files lie. Files may overlap.
 */
void daxfs_mark_files(struct daxfs_mount *m, unsigned long *bits, u64 unit);

/*
 * pins.c
 */

/* Frees a mount after its last user, at once or when its pages are not in use. */
void daxfs_free_mount(struct daxfs_mount *m);

/*
 * inode.c
 */

struct daxfs_inode_info {
	u64 data;		/* address in the image */
	u64 xattrs;
	u32 xattrs_size;
	u32 parent;		/* directories: the inode that has its name, once known */
	u8 sorted;		/* directories of v8 images: enum daxfs_order */
	struct inode vfs_inode;
};

enum daxfs_order { DAXFS_ORDER_UNKNOWN, DAXFS_SORTED, DAXFS_UNSORTED };

static inline struct daxfs_inode_info *daxfs_i(const struct inode *inode)
{
	return container_of(inode, struct daxfs_inode_info, vfs_inode);
}

struct inode *daxfs_iget(struct super_block *sb, u32 ino);
struct inode *daxfs_alloc_inode(struct super_block *sb);
void daxfs_free_inode(struct inode *inode);
int daxfs_inode_init(void);
void daxfs_inode_exit(void);

/*
 * dir.c
 */

struct dentry *daxfs_lookup_name(struct inode *dir, struct dentry *dentry,
				 unsigned int flags);
extern const struct file_operations daxfs_dir_ops;
extern const struct export_operations daxfs_export_ops;

/*
 * file.c
 */

extern const struct file_operations daxfs_file_ops;
long daxfs_ioctl(struct file *file, unsigned int cmd, unsigned long arg);

/*
 * fault.c: pool frames in processes
 */

/* Prepares a mapping of a region's memory; the caller sets vm_ops. */
int daxfs_map(struct vm_area_struct *vma, const struct daxfs_region *r);
/*
 * Answers a fault in a mapping of [off, off + size) of a region, off a multiple
 * of the page size. ra keeps what the access looks like.
 */
vm_fault_t daxfs_fault_range(struct vm_fault *vmf, struct daxfs_region *r,
			     u64 off, u64 size, struct file_ra_state *ra);

/*
 * dmabuf.c: memory of a mount as a dma-buf
 */

/*
 * A descriptor of a new dma-buf over [off, off + size) of the region, both
 * multiples of the page size. It keeps file, and with it the mount.
 */
int daxfs_export(struct file *file, struct daxfs_region *r, u64 off, u64 size);

/*
 * xattr.c
 */

extern COMPAT_XATTR_HANDLERS(daxfs_xattr_handlers);
ssize_t daxfs_listxattr(struct dentry *dentry, char *buf, size_t size);

/* Whether an inode has one of the POSIX ACLs. */
bool daxfs_has_acl(struct inode *inode);

/*
 * sysfs.c
 */

int daxfs_sysfs_add(struct super_block *sb);
void daxfs_sysfs_remove(struct daxfs_mount *m);
int daxfs_sysfs_init(void);
void daxfs_sysfs_exit(void);

#endif /* DAXFS_H */
