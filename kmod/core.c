// SPDX-License-Identifier: GPL-2.0-only
/* The parsing core, see core.h. */
#ifdef __KERNEL__
#include <linux/errno.h>
#include <linux/kernel.h>
#include <linux/string.h>
#endif
#include "core.h"

/* Directory entries and stat agree: the upper four bits of a 16-bit mode. */
#define MODE_TYPE(mode)	((mode) >> 12)

#define DIRENTS		sizeof(struct daxfs_dir_header)	/* where they start */

/* Whether [off, off + len) lies inside [0, size), without wrapping. */
static bool inside(u64 off, u64 len, u64 size)
{
	return off <= size && len <= size - off;
}

/*
 * Copies n bytes at address off out of the image. Whoever called has checked
 * the range; the barrier makes the copy the only thing that the compiler can
 * use from then on, so that a value is not read a second time after its check.
 */
static void fetch(const struct daxfs_image *img, void *to, u64 off, size_t n)
{
	memcpy(to, img->mem + off, n);
	barrier_data(to);
}

static int bad_super(const struct daxfs_image *img, const char *what, u64 found,
		     const char *want)
{
	daxfs_report(img, "superblock: %s is %llu, want %s", what,
		     (unsigned long long)found, want);
	return -EUCLEAN;
}

static bool all_zero(const u8 *p, size_t n)
{
	while (n--)
		if (*p++)
			return false;
	return true;
}

/* The part of the superblock that only native images have. */
static int open_native(struct daxfs_image *img, struct daxfs_super *s)
{
	u32 sum = le32_to_cpu(s->checksum), want;
	u64 incompat = le64_to_cpu(s->incompat), off, size;

	s->checksum = 0;
	want = ~daxfs_crc32c(~0U, s, sizeof(*s));
	if (sum != want) {
		daxfs_report(img, "superblock: checksum is %#x, its bytes have %#x",
			     sum, want);
		return -EUCLEAN;
	}
	if (incompat & ~DAXFS_INCOMPAT_KNOWN) {
		daxfs_report(img, "superblock: incompatible features %#llx, this reader knows %#llx",
			     (unsigned long long)incompat,
			     (unsigned long long)DAXFS_INCOMPAT_KNOWN);
		return -EOPNOTSUPP;
	}
	if (incompat & DAXFS_INCOMPAT_LAYER) {
		daxfs_report(img, "this is a layer index, which cannot be mounted");
		return -EOPNOTSUPP;
	}
	if (!all_zero((u8 *)s->overlay, sizeof(s->overlay)) ||
	    !all_zero((u8 *)s->pcache, sizeof(s->pcache)))
		return bad_super(img, "overlay or pcache", 1, "zeros");

	off = le64_to_cpu(s->xattr_offset);
	size = le64_to_cpu(s->xattr_size);
	if (!inside(off, size, img->size - img->base))
		return bad_super(img, "xattr_offset", off, "an area inside the image");
	img->xattrs = img->base + off;
	img->xattrs_size = size;

	size = le64_to_cpu(s->meta_size);
	if (!inside(le64_to_cpu(s->meta_offset), size, img->size - img->base))
		return bad_super(img, "meta_size", size, "a range inside the image");
	img->used = size + le64_to_cpu(s->data_size);
	if (img->used < size)
		return bad_super(img, "data_size", le64_to_cpu(s->data_size),
				 "a sum below 2^64");
	img->compat = le64_to_cpu(s->compat);
	memcpy(img->uuid, s->uuid, sizeof(img->uuid));
	return 0;
}

int daxfs_open(struct daxfs_image *img, const void *mem, u64 size)
{
	struct daxfs_super s;
	u64 total, off;
	u32 count;

	img->mem = mem;
	img->size = size;
	if (size < DAXFS_BLOCK_SIZE) {
		daxfs_report(img, "%llu bytes are no image, want at least %u",
			     (unsigned long long)size, DAXFS_BLOCK_SIZE);
		return -EINVAL;
	}
	fetch(img, &s, 0, sizeof(s));
	if (le32_to_cpu(s.magic) != DAXFS_IMAGE_MAGIC) {
		daxfs_report(img, "superblock: magic is %#x, want %#x",
			     le32_to_cpu(s.magic), DAXFS_IMAGE_MAGIC);
		return -EINVAL;
	}
	switch (le32_to_cpu(s.version)) {
	case DAXFS_VERSION_NATIVE:
		img->native = true;
		break;
	case DAXFS_VERSION_V8:
		img->native = false;
		break;
	default:
		daxfs_report(img, "superblock: version is %#x, want %#x or %u",
			     le32_to_cpu(s.version), DAXFS_VERSION_NATIVE,
			     DAXFS_VERSION_V8);
		return -EOPNOTSUPP;
	}
	if (le32_to_cpu(s.block_size) != DAXFS_BLOCK_SIZE)
		return bad_super(img, "block_size", le32_to_cpu(s.block_size), "4096");

	total = le64_to_cpu(s.total_size);
	if (total < DAXFS_BLOCK_SIZE || total > size) {
		daxfs_report(img, "superblock: total_size is %llu, want %u to the %llu bytes of memory behind it",
			     (unsigned long long)total, DAXFS_BLOCK_SIZE,
			     (unsigned long long)size);
		return -EUCLEAN;
	}
	img->base = le64_to_cpu(s.base_offset);
	if (!inside(img->base, le64_to_cpu(s.base_size), total))
		return bad_super(img, "base_size", le64_to_cpu(s.base_size),
				 "a base inside total_size");
	/* Data must be aligned wherever the base is. */
	if (img->base % DAXFS_BLOCK_SIZE)
		return bad_super(img, "base_offset", img->base, "a multiple of 4096");
	/* From here on nothing behind the base is touched. */
	img->size = img->base + le64_to_cpu(s.base_size);

	count = le32_to_cpu(s.inode_count);
	off = le64_to_cpu(s.inode_offset);
	if (!count || !inside(off, (u64)count * sizeof(struct daxfs_inode),
			      img->size - img->base))
		return bad_super(img, "inode_count", count,
				 "a table inside the image with one inode or more");
	img->inodes = img->base + off;
	img->inode_count = count;
	if (le32_to_cpu(s.root_ino) != DAXFS_ROOT_INO)
		return bad_super(img, "root_ino", le32_to_cpu(s.root_ino), "1");

	if (img->native)
		return open_native(img, &s);
	img->xattrs = img->base;
	img->xattrs_size = img->size - img->base;
	img->used = total;
	img->compat = 0;
	memset(img->uuid, 0, sizeof(img->uuid));
	return 0;
}

static int bad_inode(const struct daxfs_image *img, u32 ino, const char *what,
		     u64 found)
{
	daxfs_report(img, "inode %u: %s %llu", ino, what,
		     (unsigned long long)found);
	return -EUCLEAN;
}

/* The number of names of a v8 directory and the bytes that they occupy. */
static u64 v8_names(u64 size)
{
	return size / DAXFS_DIRENT_V8_COUNT;
}

static u64 v8_bytes(u64 size)
{
	return v8_names(size) * sizeof(struct daxfs_dirent_v8);
}

int daxfs_node(const struct daxfs_image *img, u32 ino, struct daxfs_node *n)
{
	struct daxfs_inode raw;
	u64 off, bytes;

	if (!ino || ino > img->inode_count)
		return bad_inode(img, ino, "number above the inode count",
				 img->inode_count);
	fetch(img, &raw, img->inodes + (u64)(ino - 1) * sizeof(raw), sizeof(raw));
	if (le32_to_cpu(raw.ino) != ino)
		return bad_inode(img, ino, "its place holds inode",
				 le32_to_cpu(raw.ino));
	n->ino = ino;
	n->mode = le32_to_cpu(raw.mode);
	n->uid = le32_to_cpu(raw.uid);
	n->gid = le32_to_cpu(raw.gid);
	n->nlink = le32_to_cpu(raw.nlink);
	n->rdev = le32_to_cpu(raw.rdev);
	n->mtime = (s64)le64_to_cpu(raw.mtime);
	n->mtime_nsec = le32_to_cpu(raw.mtime_nsec);
	n->size = le64_to_cpu(raw.size);
	n->data = 0;
	n->xattrs = 0;
	n->xattrs_size = le32_to_cpu(raw.xattr_size);
	off = le64_to_cpu(raw.data_offset);
	bytes = n->size;

	if (n->mode > 0177777)
		return bad_inode(img, ino, "mode has bits above 16:", n->mode);
	if (n->mtime_nsec > 999999999)
		return bad_inode(img, ino, "mtime has nanoseconds", n->mtime_nsec);
	if (!n->nlink) {
		if (img->native)
			return bad_inode(img, ino, "link count", 0);
		n->nlink = 1;
	}
	switch (n->mode & S_IFMT) {
	case S_IFREG:
		if (n->size >> 62)
			return bad_inode(img, ino, "file of bytes", n->size);
		if (n->size && img->native && off % DAXFS_BLOCK_SIZE)
			return bad_inode(img, ino, "unaligned data at", off);
		break;
	case S_IFLNK:
		if (!n->size || n->size > DAXFS_LINK_MAX)
			return bad_inode(img, ino, "link target of bytes", n->size);
		bytes++; /* the NUL */
		break;
	case S_IFDIR:
		if (!img->native) {
			/* Also keeps the product from wrapping. */
			if (n->size > img->size)
				return bad_inode(img, ino, "directory of bytes", n->size);
			bytes = v8_bytes(n->size);
		} else if (n->size && n->size < DIRENTS + sizeof(struct daxfs_dirent) + 1) {
			return bad_inode(img, ino, "directory of bytes", n->size);
		}
		break;
	case S_IFCHR:
	case S_IFBLK:
	case S_IFIFO:
	case S_IFSOCK:
		if (n->size)
			return bad_inode(img, ino, "special file of bytes", n->size);
		break;
	default:
		return bad_inode(img, ino, "unknown type in mode", n->mode);
	}
	if (n->size) {
		if (!inside(off, bytes, img->size - img->base))
			return bad_inode(img, ino, "data beyond the image, at", off);
		n->data = img->base + off;
	}
	if (n->xattrs_size) {
		off = le64_to_cpu(raw.xattr_offset);
		/* May wrap: then it is no address in the area either. */
		off += img->base - img->xattrs;
		if (!inside(off, n->xattrs_size, img->xattrs_size))
			return bad_inode(img, ino, "attributes outside their area, of bytes",
					 n->xattrs_size);
		n->xattrs = img->xattrs + off;
	}
	return 0;
}

static int bad_dir(const struct daxfs_image *img, const struct daxfs_node *dir,
		   u64 i, const char *what)
{
	daxfs_report(img, "directory inode %u: entry %llu: %s", dir->ino,
		     (unsigned long long)i, what);
	return -EUCLEAN;
}

/* A name where it lies. */
struct where {
	u32 ino;
	u8 type;
	unsigned int len;
	const u8 *name;
};

int daxfs_names(const struct daxfs_image *img, const struct daxfs_node *dir,
		u64 *count)
{
	struct daxfs_dir_header h;

	*count = 0;
	if (!img->native) {
		*count = v8_names(dir->size);
		return 0;
	}
	if (!dir->size)
		return 0;
	fetch(img, &h, dir->data, sizeof(h));
	*count = le32_to_cpu(h.count);
	if (!*count || *count > (dir->size - DIRENTS) / sizeof(struct daxfs_dirent)) {
		daxfs_report(img, "directory inode %u: %llu names in %llu bytes",
			     dir->ino, (unsigned long long)*count,
			     (unsigned long long)dir->size);
		return -EUCLEAN;
	}
	return 0;
}

/* Finds name number i of a directory that has more than i. */
static int locate(const struct daxfs_image *img, const struct daxfs_node *dir,
		  u64 i, struct where *w)
{
	if (img->native) {
		struct daxfs_dirent e;
		u32 off;

		fetch(img, &e, dir->data + DIRENTS + i * sizeof(e), sizeof(e));
		w->ino = le32_to_cpu(e.ino);
		w->type = e.type;
		w->len = le16_to_cpu(e.name_len);
		off = le32_to_cpu(e.name_offset);
		if (!inside(off, w->len, dir->size))
			return bad_dir(img, dir, i, "its name lies outside the directory");
		w->name = img->mem + dir->data + off;
	} else {
		u64 at = dir->data + i * sizeof(struct daxfs_dirent_v8);
		struct {
			__le32 ino;
			__le32 mode;
			__le16 name_len;
		} e;

		fetch(img, &e, at, offsetof(struct daxfs_dirent_v8, reserved));
		w->ino = le32_to_cpu(e.ino);
		w->type = MODE_TYPE(le32_to_cpu(e.mode) & S_IFMT);
		w->len = le16_to_cpu(e.name_len);
		w->name = img->mem + at + offsetof(struct daxfs_dirent_v8, name);
	}
	if (!w->len || w->len > DAXFS_NAME_MAX)
		return bad_dir(img, dir, i, "its name has no length from 1 to 255");
	if (!w->ino || w->ino > img->inode_count)
		return bad_dir(img, dir, i, "it names an inode that is not there");
	return 0;
}

static int compare(const void *a, unsigned int a_len, const void *b,
		   unsigned int b_len)
{
	int c = memcmp(a, b, a_len < b_len ? a_len : b_len);

	return c ? c : (int)a_len - (int)b_len;
}

int daxfs_lookup(const struct daxfs_image *img, const struct daxfs_node *dir,
		 bool sorted, const void *name, unsigned int len,
		 u32 *ino, u8 *type)
{
	u64 low = 0, high, count;
	struct where w;
	int err;

	err = daxfs_names(img, dir, &count);
	if (err)
		return err;
	for (high = count; low < high;) {
		u64 i = sorted ? low + (high - low) / 2 : low;
		int c;

		err = locate(img, dir, i, &w);
		if (err)
			return err;
		c = compare(name, len, w.name, w.len);
		if (!c) {
			*ino = w.ino;
			*type = w.type;
			return 1;
		}
		if (c < 0 && sorted)
			high = i;
		else
			low = i + 1;
		if (!sorted && low % 4096 == 0) {
			err = daxfs_breathe();
			if (err)
				return err;
		}
	}
	return 0;
}

bool daxfs_sorted(const struct daxfs_image *img, const struct daxfs_node *dir)
{
	struct where w, before = {};
	u64 count, i;

	if (img->native)
		return true;
	if (daxfs_names(img, dir, &count))
		return false;
	for (i = 0; i < count; i++) {
		if (locate(img, dir, i, &w))
			return false;
		if (i && compare(before.name, before.len, w.name, w.len) >= 0)
			return false;
		before = w;
		if (i % 4096 == 4095 && daxfs_breathe())
			return false;
	}
	return true;
}

static bool good_type(u8 type)
{
	switch (type) {
	case MODE_TYPE(S_IFREG):
	case MODE_TYPE(S_IFDIR):
	case MODE_TYPE(S_IFLNK):
	case MODE_TYPE(S_IFCHR):
	case MODE_TYPE(S_IFBLK):
	case MODE_TYPE(S_IFIFO):
	case MODE_TYPE(S_IFSOCK):
		return true;
	}
	return false;
}

static bool is_dots(const u8 *name, unsigned int len)
{
	return name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.'));
}

int daxfs_entry(const struct daxfs_image *img, const struct daxfs_node *dir,
		u64 i, struct daxfs_entry *e)
{
	unsigned int n;
	struct where w;
	int err;

	err = locate(img, dir, i, &w);
	if (err)
		return err;
	e->ino = w.ino;
	e->type = w.type;
	e->name_len = w.len;
	memcpy(e->name, w.name, w.len);
	barrier_data(e->name);
	if (!good_type(e->type))
		return bad_dir(img, dir, i, "its type is none of the seven");
	for (n = 0; n < e->name_len; n++)
		if (!e->name[n] || e->name[n] == '/')
			return bad_dir(img, dir, i, "its name has a '/' or a NUL");
	if (is_dots(e->name, e->name_len))
		return bad_dir(img, dir, i, "its name is \".\" or \"..\"");
	return 0;
}

int daxfs_target(const struct daxfs_image *img, const struct daxfs_node *n,
		 char *buf)
{
	fetch(img, buf, n->data, n->size + 1);
	if (strnlen(buf, n->size + 1) != n->size) {
		buf[n->size] = 0;
		return bad_inode(img, n->ino, "link target does not end with its only NUL, at byte",
				 n->size);
	}
	return 0;
}

int daxfs_xattr_next(const struct daxfs_image *img, u64 xattrs, u32 xattrs_size,
		     struct daxfs_xattr_walk *walk, struct daxfs_xattr *x)
{
	struct daxfs_xattr_entry e;
	u32 rest = xattrs_size - walk->pos, bytes;

	if (!rest)
		return 0;
	if (rest < sizeof(e) || walk->seen == DAXFS_XATTRS_MAX)
		goto bad;
	fetch(img, &e, xattrs + walk->pos, sizeof(e));
	x->index = e.name_index;
	x->name_len = e.name_len;
	x->value_size = le16_to_cpu(e.value_size);
	bytes = (sizeof(e) + x->name_len + x->value_size + 3) & ~3U;
	if (bytes > rest)
		goto bad;
	switch (x->index) {
	case DAXFS_XATTR_INDEX_USER:
	case DAXFS_XATTR_INDEX_TRUSTED:
	case DAXFS_XATTR_INDEX_SECURITY:
		if (!x->name_len)
			goto bad;
		break;
	case DAXFS_XATTR_INDEX_POSIX_ACL_ACCESS:
	case DAXFS_XATTR_INDEX_POSIX_ACL_DEFAULT:
		if (x->name_len)
			goto bad;
		break;
	default:
		goto bad;
	}
	x->name = img->mem + xattrs + walk->pos + sizeof(e);
	x->value = x->name + x->name_len;
	walk->pos += bytes;
	walk->seen++;
	return 1;
bad:
	daxfs_report(img, "attributes at %llu: entry %u at byte %u is none, or beyond the 255th",
		     (unsigned long long)xattrs, walk->seen, walk->pos);
	return -EUCLEAN;
}

int daxfs_count_dir(const struct daxfs_image *img, const struct daxfs_node *dir,
		    u64 *sum)
{
	u64 bytes = img->native ? dir->size : v8_bytes(dir->size);

	/* Both are at most img->size, so the sum does not wrap. */
	*sum += bytes;
	if (*sum <= img->size)
		return 0;
	daxfs_report(img, "directory inode %u: directories overlap, they have %llu bytes so far",
		     dir->ino, (unsigned long long)*sum);
	return -EUCLEAN;
}

/*
 * check
 */

struct check {
	const struct daxfs_image *img;
	u32 *links;	/* names found of each inode; of directories, of their subdirectories */
	u8 *named;	/* whether a directory has a name */
	u64 dirs;	/* bytes of all directories so far */
};

static int check_xattrs(const struct daxfs_image *img, const struct daxfs_node *n)
{
	struct daxfs_xattr_walk walk = {};
	struct daxfs_xattr x;
	int err;

	do
		err = daxfs_xattr_next(img, n->xattrs, n->xattrs_size, &walk, &x);
	while (err > 0);
	return err;
}

static int check_target(const struct daxfs_image *img, const struct daxfs_node *n)
{
	char *buf = daxfs_zalloc(n->size + 1);
	int err = -ENOMEM;

	if (buf)
		err = daxfs_target(img, n, buf);
	daxfs_free(buf);
	return err;
}

static int check_dir(struct check *c, const struct daxfs_node *dir)
{
	const struct daxfs_image *img = c->img;
	struct daxfs_entry *e, *entry, *before;
	struct daxfs_node n;
	u64 i, count;
	int err;

	err = daxfs_count_dir(img, dir, &c->dirs);
	if (!err)
		err = daxfs_names(img, dir, &count);
	if (err)
		return err;
	entry = daxfs_zalloc(2 * sizeof(*entry));
	if (!entry)
		return -ENOMEM;
	for (i = 0; i < count; i++) {
		e = &entry[i & 1];
		before = &entry[~i & 1];
		err = daxfs_entry(img, dir, i, e);
		if (err)
			break;
		err = daxfs_node(img, e->ino, &n);
		if (err)
			break;
		err = -EUCLEAN;
		if (MODE_TYPE(n.mode) != e->type) {
			bad_dir(img, dir, i, "its type is not the inode's");
			break;
		}
		if (i && img->native &&
		    compare(before->name, before->name_len, e->name, e->name_len) >= 0) {
			bad_dir(img, dir, i, "its name is not above the one before it");
			break;
		}
		if (S_ISDIR(n.mode)) {
			if (c->named[e->ino - 1] || e->ino == DAXFS_ROOT_INO) {
				bad_dir(img, dir, i, "its directory has another name");
				break;
			}
			c->named[e->ino - 1] = 1;
			c->links[dir->ino - 1]++;
		} else {
			c->links[e->ino - 1]++;
		}
		err = i % 1024 == 1023 ? daxfs_breathe() : 0;
		if (err)
			break;
	}
	daxfs_free(entry);
	return err;
}

static int check_inode(struct check *c, u32 ino)
{
	struct daxfs_node n;
	int err;

	err = daxfs_node(c->img, ino, &n);
	if (!err)
		err = check_xattrs(c->img, &n);
	if (err)
		return err;
	if (ino == DAXFS_ROOT_INO && !S_ISDIR(n.mode))
		return bad_inode(c->img, ino, "root is no directory but has mode",
				 n.mode);
	if (S_ISLNK(n.mode))
		return check_target(c->img, &n);
	if (S_ISDIR(n.mode))
		return check_dir(c, &n);
	return 0;
}

/* Compares the names that were counted with what inodes say. */
static int check_links(struct check *c, u32 ino)
{
	struct daxfs_node n;
	u64 links = c->links[ino - 1];
	int err;

	err = daxfs_node(c->img, ino, &n);
	if (err)
		return err;
	if (S_ISDIR(n.mode)) {
		links += 2;
		if (!c->named[ino - 1] && ino != DAXFS_ROOT_INO)
			return bad_inode(c->img, ino, "directory without a name, with mode",
					 n.mode);
	}
	if (links != n.nlink)
		return bad_inode(c->img, ino, "link count differs from its names, which are",
				 links);
	return 0;
}

int daxfs_check(const struct daxfs_image *img)
{
	struct check c = { .img = img };
	size_t count = img->inode_count;
	u32 ino;
	int err = -ENOMEM;

	c.links = daxfs_zalloc(count * sizeof(*c.links));
	c.named = daxfs_zalloc(count);
	if (!c.links || !c.named)
		goto out;
	for (ino = 1; ino <= img->inode_count && ino; ino++) {
		err = check_inode(&c, ino);
		if (!err && ino % 256 == 0)
			err = daxfs_breathe();
		if (err)
			goto out;
	}
	for (ino = 1; img->native && ino <= img->inode_count && ino; ino++) {
		err = check_links(&c, ino);
		if (!err && ino % 1024 == 0)
			err = daxfs_breathe();
		if (err)
			goto out;
	}
out:
	daxfs_free(c.named);
	daxfs_free(c.links);
	return err;
}
