/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * On-disk format of DAXFS images: the C twin of Go's package internal/disk.
 * Normative source: docs/format.md. All integers are little-endian.
 *
 * Offsets "relative to base" count from daxfs_super.base_offset, addresses from
 * the superblock itself. No field may be trusted before it was checked.
 */
#ifndef DAXFS_FORMAT_H
#define DAXFS_FORMAT_H

#include <linux/types.h>

#define DAXFS_IMAGE_MAGIC	0x64617835	/* "dax5" */
#define DAXFS_VERSION_V8	8
#define DAXFS_VERSION_NATIVE	0x00010000
#define DAXFS_BLOCK_SIZE	4096
#define DAXFS_ROOT_INO		1
#define DAXFS_NAME_MAX		255
#define DAXFS_LINK_MAX		4095
#define DAXFS_XATTR_VALUE_MAX	65535
#define DAXFS_XATTRS_MAX	255	/* of an inode */

/* daxfs_super.incompat: a reader refuses bits that it does not know */
#define DAXFS_INCOMPAT_LAYER	(1ULL << 0)	/* layer index, not mountable */
#define DAXFS_INCOMPAT_KNOWN	DAXFS_INCOMPAT_LAYER

/* daxfs_super.compat: any reader may ignore them */
#define DAXFS_COMPAT_EROFS	(1ULL << 0)	/* EROFS view present */
#define DAXFS_COMPAT_POOL	(1ULL << 1)	/* data shared with other images */

/* bytes of the first block that are DAXFS's; the EROFS superblock follows */
#define DAXFS_SUPER_SIZE	1024

struct daxfs_super {
	__le32 magic;
	__le32 version;
	__le32 block_size;
	__le32 reserved0;	/* 0 */
	__le64 total_size;
	__le64 base_offset;	/* address */
	__le64 base_size;
	__le64 inode_offset;	/* relative to base */
	__le32 inode_count;
	__le32 root_ino;	/* 1 */
	__le64 data_offset;	/* relative to base */
	__le64 overlay[3];	/* public module's writable overlay: 0 */
	__le64 pcache[3];	/* public module's page cache: 0 */
	/* native only from here; 0 in v8 */
	__le32 checksum;	/* CRC-32C of all 1024 bytes, this field 0 */
	__le32 reserved1;	/* 0 */
	__le64 incompat;
	__le64 ro_compat;
	__le64 compat;
	__u8   uuid[16];
	__le64 meta_offset;	/* relative to base */
	__le64 meta_size;
	__le64 xattr_offset;	/* relative to base */
	__le64 xattr_size;
	__le64 extent_offset;	/* relative to base; layer index only */
	__le64 extent_count;
	__le64 layer_offset;	/* relative to base; pool image only */
	__le64 layer_count;
	__u8   meta_digest[32];	/* BLAKE3-256 of the metadata */
	__le64 entries;
	__le64 data_size;
	__u8   reserved2[752];	/* 0 */
};

/* inode table entry i holds inode i + 1 */
struct daxfs_inode {
	__le32 ino;
	__le32 mode;
	__le32 uid;
	__le32 gid;
	__le64 size;
	__le64 data_offset;	/* relative to base; 0 if size is 0 */
	__le32 nlink;
	/* reserved in v8, where only this project's readers look */
	__le32 rdev;		/* new_encode_dev() */
	__le64 mtime;		/* seconds since 1970, signed */
	__le32 mtime_nsec;
	__le32 xattr_size;
	__le64 xattr_offset;	/* relative to base; 0 if xattr_size is 0 */
};

/* a native directory: this, then entries sorted by name, then the names */
struct daxfs_dir_header {
	__le32 count;
	__le32 reserved;	/* 0 */
};

struct daxfs_dirent {
	__le32 ino;
	__le32 name_offset;	/* from the daxfs_dir_header */
	__le16 name_len;
	__u8   type;		/* DT_*: mode >> 12 */
	__u8   reserved;	/* 0 */
};

/* a v8 directory is an array of these; its size counts 271 for each */
#define DAXFS_DIRENT_V8_COUNT	271

struct daxfs_dirent_v8 {
	__le32 ino;
	__le32 mode;
	__le16 name_len;
	__u8   reserved[6];	/* 0 */
	__u8   name[255];
	__u8   pad;		/* 0 */
};

/* an extended attribute: this, name without prefix, value, padding to 4 bytes;
 * struct erofs_xattr_entry has the same bytes */
struct daxfs_xattr_entry {
	__u8   name_len;
	__u8   name_index;
	__le16 value_size;
};

#define DAXFS_XATTR_INDEX_USER			1
#define DAXFS_XATTR_INDEX_POSIX_ACL_ACCESS	2
#define DAXFS_XATTR_INDEX_POSIX_ACL_DEFAULT	3
#define DAXFS_XATTR_INDEX_TRUSTED		4
#define DAXFS_XATTR_INDEX_SECURITY		6

/* a row of a layer index's extent table, sorted by digest */
struct daxfs_extent {
	__u8   digest[32];	/* BLAKE3-256 of the bytes */
	__le64 size;
	__le64 offset;		/* relative to base, block aligned */
};

/* a row of a pool image's layer list: the layer's key, lowest layer first */
struct daxfs_layer_ref {
	__u8   key[32];
};

#endif /* DAXFS_FORMAT_H */
