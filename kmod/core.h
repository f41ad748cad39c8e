/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The parsing core: reads a DAXFS image in memory that another kernel, or
 * another process, may change at any time. It trusts nothing that it has read:
 * each offset, size and count is copied out once, checked, and only the copy
 * is used. No function reads outside [mem, mem + size).
 *
 * It knows nothing of the VFS and compiles in user space too (fuzz/).
 *
 * Normative source of the format: docs/format.md.
 */
#ifndef DAXFS_CORE_H
#define DAXFS_CORE_H

#ifdef __KERNEL__
#include <linux/types.h>
#include <linux/stat.h>
#else
#include "user.h"
#endif
#include "daxfs_format.h"

/*
 * An image: what daxfs_open() found in the superblock. Constant from then on,
 * so it may be used by any number of readers at once.
 */
struct daxfs_image {
	const u8 *mem;		/* the superblock */
	u64 size;		/* bytes from mem that the image may use */
	const char *name;	/* for messages; the caller's */
	void *report_state;	/* for daxfs_report(); the caller's */

	bool native;		/* else v8 */
	u64 base;		/* address of the base; "address": bytes from mem */
	u64 inodes;		/* address of the inode table */
	u32 inode_count;	/* at least 1 */
	u64 xattrs;		/* address of the xattr area; v8: the base */
	u64 xattrs_size;
	u64 used;		/* bytes of metadata and data; v8: total_size */
	u64 compat;		/* feature bits */
	u8 uuid[16];		/* v8: zeros */
};

/*
 * An inode, checked: data and size, xattrs and xattrs_size lie inside the
 * image. For a directory of the v8 dialect all of its records do.
 */
struct daxfs_node {
	u32 ino;
	u32 mode;		/* with the type, one of the seven */
	u32 uid;
	u32 gid;
	u32 nlink;		/* at least 1 */
	u32 rdev;		/* new_encode_dev() */
	s64 mtime;		/* seconds since 1970 */
	u32 mtime_nsec;
	u64 size;
	u64 data;		/* address; 0 if size is 0 */
	u64 xattrs;		/* address of the run */
	u32 xattrs_size;
};

/* One name of a directory: a copy, with a name that readdir can show. */
struct daxfs_entry {
	u32 ino;		/* 1 … inode_count */
	u8 type;		/* DT_* */
	u8 name_len;		/* at least 1 */
	u8 name[DAXFS_NAME_MAX];
};

/*
 * One extended attribute. name and value point into the image, inside its
 * bounds, and may change: copy them, then judge the copy.
 */
struct daxfs_xattr {
	u8 index;		/* DAXFS_XATTR_INDEX_* */
	u8 name_len;		/* without prefix; 0 for the POSIX ACLs */
	u16 value_size;
	const u8 *name;
	const u8 *value;
};

/* A walk over the attributes of an inode; zeros to begin with. */
struct daxfs_xattr_walk {
	u32 pos;		/* of the next entry in the run */
	u32 seen;		/* entries so far */
};

/*
 * All return 0 or what is said, or
 *   -EUCLEAN     the image is damaged; daxfs_report() has said where
 *   -EINVAL      daxfs_open(): no DAXFS superblock
 *   -EOPNOTSUPP  daxfs_open(): an image for another reader
 *   -ENOMEM, -EINTR  daxfs_check()
 */

/*
 * Reads the superblock at mem, of which size bytes may be read, into img. name
 * and report_state of img are set already.
 */
int daxfs_open(struct daxfs_image *img, const void *mem, u64 size);

int daxfs_node(const struct daxfs_image *img, u32 ino, struct daxfs_node *n);

/* Whether the names of a directory are sorted, so that halving finds them. */
bool daxfs_sorted(const struct daxfs_image *img, const struct daxfs_node *dir);

/*
 * Finds a name: 1, with *ino and *type set, or 0. In a native directory by
 * halving, in a v8 one only if sorted, else by looking at each.
 */
int daxfs_lookup(const struct daxfs_image *img, const struct daxfs_node *dir,
		 bool sorted, const void *name, unsigned int len,
		 u32 *ino, u8 *type);

/*
 * Reads how many names a directory has, whose records lie inside it. The number
 * may change; what was read once holds for daxfs_entry().
 */
int daxfs_names(const struct daxfs_image *img, const struct daxfs_node *dir,
		u64 *count);

/* Reads name number i of a directory that daxfs_names() found to have more. */
int daxfs_entry(const struct daxfs_image *img, const struct daxfs_node *dir,
		u64 i, struct daxfs_entry *e);

/*
 * Copies the target of a link, which has n->size bytes, to buf and ends it
 * with a NUL. buf has room for n->size + 1.
 */
int daxfs_target(const struct daxfs_image *img, const struct daxfs_node *n,
		 char *buf);

/* Reads the next attribute of a run: 1, or 0 at its end. */
int daxfs_xattr_next(const struct daxfs_image *img, u64 xattrs, u32 xattrs_size,
		     struct daxfs_xattr_walk *walk, struct daxfs_xattr *x);

/*
 * For who reads many directories of an image: adds what one occupies to *sum.
 * Directories are disjoint, so that no image has more of them than bytes: this
 * keeps the time linear that a reader of all of them takes. Returns 0, or
 * -EUCLEAN.
 */
int daxfs_count_dir(const struct daxfs_image *img, const struct daxfs_node *dir,
		    u64 *sum);

/*
 * Proves what one pass over inodes and names can: all of them valid by
 * themselves, names sorted and unique, types in entries as in inodes, every
 * directory with one name, link counts (both native only). Takes five bytes of
 * memory an inode meanwhile. Contents and digests are not looked at.
 */
int daxfs_check(const struct daxfs_image *img);

/*
 * What the core needs from outside, in the kernel and in user space.
 */
__printf(2, 3)
void daxfs_report(const struct daxfs_image *img, const char *fmt, ...);
u32 daxfs_crc32c(u32 seed, const void *p, size_t n);
/* Lets others run in a long loop; -EINTR if the caller shall end. */
int daxfs_breathe(void);
void *daxfs_zalloc(size_t n);
void daxfs_free(void *p);

#endif /* DAXFS_CORE_H */
