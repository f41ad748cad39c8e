// SPDX-License-Identifier: GPL-2.0-only
/* See change.h. */
#include "change.h"
#include "user.h"

u64 random_next(struct random *r)
{
	/* xorshift64* */
	r->state ^= r->state >> 12;
	r->state ^= r->state << 25;
	r->state ^= r->state >> 27;
	return r->state * 0x2545f4914f6cdd1dULL;
}

u64 random_below(struct random *r, u64 n)
{
	return random_next(r) % n;
}

static u64 load(const u8 *mem, size_t size, u64 at, size_t width)
{
	u64 v = 0;

	if (at <= size && width <= size - at)
		memcpy(&v, mem + at, width);
	return le64toh(v);
}

/* Where a reader may be that must not know of the change: byte by byte. */
static void store(u8 *mem, size_t size, u64 at, size_t width, u64 v)
{
	volatile u8 *to = mem;

	if (at > size || width > size - at)
		return;
	for (; width--; v >>= 8)
		to[at++] = v;
}

/* A value that something could be bounded by, give or take one. */
static u64 edge(struct random *r, const u8 *mem, size_t size, u64 old)
{
	u64 v;

	switch (random_below(r, 10)) {
	case 0:
		v = 0;
		break;
	case 1:
		v = size;
		break;
	case 2:
		v = size - load(mem, size, offsetof(struct daxfs_super, base_offset), 8);
		break;
	case 3:
		v = load(mem, size, offsetof(struct daxfs_super, inode_count), 4);
		break;
	case 4:
		v = 1ULL << random_below(r, 64);
		break;
	case 5:
		v = old;
		break;
	case 6:
		v = old + DAXFS_BLOCK_SIZE;
		break;
	case 7:
		v = load(mem, size, random_below(r, size), 1 << random_below(r, 4));
		break;
	case 8:
		v = random_below(r, 65536);
		break;
	default:
		return random_next(r);
	}
	return v + random_below(r, 3) - 1;
}

#define FIELD(type, field) \
	{ offsetof(struct type, field), sizeof(((struct type *)NULL)->field) }

struct field {
	u16 at, width;
};

static const struct field super_fields[] = {
	FIELD(daxfs_super, version), FIELD(daxfs_super, block_size),
	FIELD(daxfs_super, total_size), FIELD(daxfs_super, base_offset),
	FIELD(daxfs_super, base_size), FIELD(daxfs_super, inode_offset),
	FIELD(daxfs_super, inode_count), FIELD(daxfs_super, root_ino),
	FIELD(daxfs_super, overlay[0]), FIELD(daxfs_super, checksum),
	FIELD(daxfs_super, incompat), FIELD(daxfs_super, meta_offset),
	FIELD(daxfs_super, meta_size), FIELD(daxfs_super, xattr_offset),
	FIELD(daxfs_super, xattr_size), FIELD(daxfs_super, data_size),
};

static const struct field inode_fields[] = {
	FIELD(daxfs_inode, ino), FIELD(daxfs_inode, mode), FIELD(daxfs_inode, size),
	FIELD(daxfs_inode, size), FIELD(daxfs_inode, data_offset),
	FIELD(daxfs_inode, data_offset), FIELD(daxfs_inode, nlink),
	FIELD(daxfs_inode, mtime_nsec), FIELD(daxfs_inode, xattr_size),
	FIELD(daxfs_inode, xattr_offset),
};

static const struct field dirent_fields[] = {
	FIELD(daxfs_dirent, ino), FIELD(daxfs_dirent, name_offset),
	FIELD(daxfs_dirent, name_len), FIELD(daxfs_dirent, type),
};

static const struct field dirent_v8_fields[] = {
	FIELD(daxfs_dirent_v8, ino), FIELD(daxfs_dirent_v8, mode),
	FIELD(daxfs_dirent_v8, name_len),
};

#define PICK(r, fields) ((fields)[random_below(r, sizeof(fields) / sizeof(*(fields)))])

static void change_field(struct random *r, u8 *mem, size_t size, u64 record, struct field f)
{
	u64 at = record + f.at;
	u64 v = edge(r, mem, size, load(mem, size, at, f.width));

	/* A mode with another type is more than any number. */
	if (f.width == 4 && random_below(r, 2))
		v = (v & 0177777) | (random_below(r, 16) << 12);
	store(mem, size, at, f.width, v);
}

void change(struct random *r, u8 *mem, size_t size)
{
	u64 base, inodes, count, inode, dir;

	if (size < sizeof(struct daxfs_super))
		return;
	base = load(mem, size, offsetof(struct daxfs_super, base_offset), 8);
	inodes = base + load(mem, size, offsetof(struct daxfs_super, inode_offset), 8);
	count = load(mem, size, offsetof(struct daxfs_super, inode_count), 4);
	inode = inodes + random_below(r, count ? count : 1) * sizeof(struct daxfs_inode);

	switch (random_below(r, 8)) {
	case 0:
		change_field(r, mem, size, 0, PICK(r, super_fields));
		break;
	case 1:
	case 2:
	case 3:
		change_field(r, mem, size, inode, PICK(r, inode_fields));
		break;
	case 4:
	case 5:
		dir = base + load(mem, size, inode + offsetof(struct daxfs_inode, data_offset), 8);
		if (load(mem, size, offsetof(struct daxfs_super, version), 4) == DAXFS_VERSION_V8)
			change_field(r, mem, size,
				     dir + random_below(r, 8) * sizeof(struct daxfs_dirent_v8),
				     PICK(r, dirent_v8_fields));
		else if (!random_below(r, 4))
			store(mem, size, dir, 4, edge(r, mem, size, load(mem, size, dir, 4)));
		else
			change_field(r, mem, size, dir + sizeof(struct daxfs_dir_header) +
				     random_below(r, 8) * sizeof(struct daxfs_dirent),
				     PICK(r, dirent_fields));
		break;
	case 6:
		/* The attributes lie at the beginning of the metadata. */
		dir = base + load(mem, size, offsetof(struct daxfs_super, xattr_offset), 8);
		store(mem, size, dir + random_below(r, 64), 1, edge(r, mem, size, 4));
		break;
	default:
		dir = random_below(r, size);
		store(mem, size, dir, 1, mem[dir] ^ 1 << random_below(r, 8));
	}
}

void mend_checksum(u8 *mem, size_t size)
{
	const size_t at = offsetof(struct daxfs_super, checksum);

	if (size < sizeof(struct daxfs_super))
		return;
	store(mem, size, at, 4, 0);
	store(mem, size, at, 4, user_checksum(mem, sizeof(struct daxfs_super)));
}
