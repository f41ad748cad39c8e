// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Fills one of each record and prints its bytes: TestLayoutMatchesC compares
 * them with what Go's encoders write for the same values. */
#include <assert.h>
#include <endian.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "daxfs_format.h"

#define AT(type, field, off) static_assert(offsetof(struct type, field) == (off), #type "." #field)
#define SIZE(type, n) static_assert(sizeof(struct type) == (n), #type)

SIZE(daxfs_super, DAXFS_SUPER_SIZE);
AT(daxfs_super, total_size, 16);
AT(daxfs_super, inode_offset, 40);
AT(daxfs_super, data_offset, 56);
AT(daxfs_super, overlay, 64);
AT(daxfs_super, pcache, 88);
AT(daxfs_super, checksum, 112);
AT(daxfs_super, incompat, 120);
AT(daxfs_super, uuid, 144);
AT(daxfs_super, meta_offset, 160);
AT(daxfs_super, meta_digest, 224);
AT(daxfs_super, entries, 256);
AT(daxfs_super, reserved2, 272);
SIZE(daxfs_inode, 64);
AT(daxfs_inode, data_offset, 24);
AT(daxfs_inode, rdev, 36);
AT(daxfs_inode, mtime, 40);
AT(daxfs_inode, xattr_offset, 56);
SIZE(daxfs_dir_header, 8);
SIZE(daxfs_dirent, 12);
AT(daxfs_dirent, type, 10);
SIZE(daxfs_dirent_v8, 272);
AT(daxfs_dirent_v8, name, 16);
AT(daxfs_dirent_v8, pad, 271);
SIZE(daxfs_xattr_entry, 4);
SIZE(daxfs_extent, 48);
AT(daxfs_extent, size, 32);
SIZE(daxfs_layer_ref, 32);

static void print(const char *name, const void *p, size_t n)
{
	const unsigned char *b = p;

	printf("%s ", name);
	while (n--)
		printf("%02x", *b++);
	printf("\n");
}

#define PRINT(name, v) print(name, &(v), sizeof(v))

static void fill(__u8 *p, size_t n, __u8 first)
{
	while (n--)
		*p++ = first++;
}

int main(void)
{
	struct daxfs_super sb = {
		.magic = htole32(DAXFS_IMAGE_MAGIC),
		.version = htole32(DAXFS_VERSION_NATIVE),
		.block_size = htole32(DAXFS_BLOCK_SIZE),
		.total_size = htole64(0x1122334455667788),
		.base_offset = htole64(0x2122334455667788),
		.base_size = htole64(0x3122334455667788),
		.inode_offset = htole64(0x4122334455667788),
		.inode_count = htole32(0x51223344),
		.root_ino = htole32(DAXFS_ROOT_INO),
		.data_offset = htole64(0x6122334455667788),
		.incompat = htole64(DAXFS_INCOMPAT_LAYER),
		.ro_compat = htole64(0x7122334455667788),
		.compat = htole64(DAXFS_COMPAT_EROFS | DAXFS_COMPAT_POOL),
		.meta_offset = htole64(0x8122334455667788),
		.meta_size = htole64(0x9122334455667788),
		.xattr_offset = htole64(0xa122334455667788),
		.xattr_size = htole64(0xb122334455667788),
		.extent_offset = htole64(0xc122334455667788),
		.extent_count = htole64(0xd122334455667788),
		.layer_offset = htole64(0xe122334455667788),
		.layer_count = htole64(0xf122334455667788),
		.entries = htole64(0x0122334455667788),
		.data_size = htole64(0x0222334455667788),
	};
	struct daxfs_inode in = {
		.ino = htole32(0x11223344),
		.mode = htole32(0x21223344),
		.uid = htole32(0x31223344),
		.gid = htole32(0x41223344),
		.size = htole64(0x5122334455667788),
		.data_offset = htole64(0x6122334455667788),
		.nlink = htole32(0x71223344),
		.rdev = htole32(0x81223344),
		.mtime = htole64(-3),
		.mtime_nsec = htole32(0x91223344),
		.xattr_size = htole32(0xa1223344),
		.xattr_offset = htole64(0xb122334455667788),
	};
	struct daxfs_dirent de = {
		.ino = htole32(0x11223344),
		.name_offset = htole32(0x21223344),
		.name_len = htole16(0x3122),
		.type = 4,
	};
	struct daxfs_dirent_v8 v8 = {
		.ino = htole32(0x11223344),
		.mode = htole32(0x21223344),
		.name_len = htole16(DAXFS_NAME_MAX),
	};
	struct daxfs_extent ex = {
		.size = htole64(0x1122334455667788),
		.offset = htole64(0x2122334455667788),
	};
	struct {
		struct daxfs_xattr_entry e;
		char rest[12];
	} xa = { { 4, DAXFS_XATTR_INDEX_SECURITY, htole16(6) }, "namevalue!" };

	fill(sb.uuid, sizeof(sb.uuid), 1);
	fill(sb.meta_digest, sizeof(sb.meta_digest), 100);
	fill(ex.digest, sizeof(ex.digest), 7);
	memset(v8.name, 'n', sizeof(v8.name));

	PRINT("super", sb);
	PRINT("inode", in);
	PRINT("dirent", de);
	PRINT("dirent_v8", v8);
	PRINT("extent", ex);
	PRINT("xattr", xa);
	return 0;
}
