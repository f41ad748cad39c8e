// SPDX-License-Identifier: GPL-2.0-only
/* See walk.h. */
#include <stdlib.h>

#include "promise.h"
#include "walk.h"

/* A directory still to be read. */
struct pending {
	struct pending *next;
	struct daxfs_node node;
	size_t path_len;
	u8 path[];	/* without a slash at the end; empty for the root */
};

struct walk {
	const struct daxfs_image *img;
	FILE *out;
	u64 names_left;
	unsigned int errors;
	u32 *parent;	/* of each directory: where its name was found; 0 not yet */
	struct pending *first, **last;
};

/* So many names of a directory are looked up. */
#define LOOKUPS_MAX 64

static volatile u8 sink;

static void hex(FILE *out, const u8 *p, size_t n)
{
	while (n--)
		fprintf(out, "%02x", *p++);
}

/* Reads like a copy to a user does: every byte, into a buffer of that size. */
static u8 *copy(const u8 *p, size_t n)
{
	u8 *c = malloc(n + 1);

	PROMISE(c != NULL);
	memcpy(c, p, n);
	c[n] = 0;
	return c;
}

static void attributes(struct walk *w, const struct daxfs_node *n)
{
	struct daxfs_xattr_walk at = {};
	struct daxfs_xattr x;
	u32 before;
	int err;

	while (before = at.pos,
	       (err = daxfs_xattr_next(w->img, n->xattrs, n->xattrs_size, &at, &x)) > 0) {
		u8 *name = copy(x.name, x.name_len);
		u8 *value = copy(x.value, x.value_size);

		PROMISE(at.pos > before && at.pos <= n->xattrs_size);
		PROMISE(at.seen <= 255);
		if (w->out) {
			fprintf(w->out, " %u:", x.index);
			hex(w->out, name, x.name_len);
			fputc('=', w->out);
			hex(w->out, value, x.value_size);
		}
		free(name);
		free(value);
	}
	if (err)
		w->errors++;
}

static void target(struct walk *w, const struct daxfs_node *n)
{
	char *buf = malloc(n->size + 1);
	int err;

	PROMISE(buf != NULL);
	err = daxfs_target(w->img, n, buf);
	if (err) {
		w->errors++;
	} else {
		PROMISE(strlen(buf) == n->size);
		if (w->out)
			hex(w->out, (u8 *)buf, n->size);
	}
	free(buf);
}

static void data(struct walk *w, const struct daxfs_node *n)
{
	const u8 *p = w->img->mem + n->data;
	u64 i;

	if (w->out) {
		fprintf(w->out, "%08x", user_checksum(p, n->size));
		return;
	}
	for (i = 0; i < n->size; i += DAXFS_BLOCK_SIZE)
		sink = p[i];
	if (n->size)
		sink = p[n->size - 1];
}

static void promised_node(const struct daxfs_image *img, const struct daxfs_node *n)
{
	u64 bytes = n->size;

	PROMISE(n->ino && n->ino <= img->inode_count);
	PROMISE(n->nlink);
	PROMISE(n->mode <= 0177777);
	PROMISE(n->mtime_nsec < 1000000000);
	if (S_ISDIR(n->mode) && !img->native)
		bytes = bytes / DAXFS_DIRENT_V8_COUNT * sizeof(struct daxfs_dirent_v8);
	if (S_ISLNK(n->mode)) {
		PROMISE(n->size && n->size <= DAXFS_LINK_MAX);
		bytes++;
	}
	PROMISE(n->data <= img->size && bytes <= img->size - n->data);
	PROMISE(n->xattrs <= img->size && n->xattrs_size <= img->size - n->xattrs);
}

static void node(struct walk *w, const struct daxfs_node *n, const u8 *path, size_t len)
{
	promised_node(w->img, n);
	if (w->out) {
		fputc('/', w->out);
		hex(w->out, path, len);
		fprintf(w->out, " %u %o %u %u %llu %u %#x %lld.%09u ", n->ino, n->mode,
			n->uid, n->gid, (unsigned long long)n->size, n->nlink, n->rdev,
			(long long)n->mtime, n->mtime_nsec);
	}
	if (S_ISLNK(n->mode))
		target(w, n);
	else if (S_ISREG(n->mode))
		data(w, n);
	else if (w->out)
		fputc('-', w->out);
	attributes(w, n);
	if (w->out)
		fputc('\n', w->out);
}

static void later(struct walk *w, const struct daxfs_node *n, const u8 *path, size_t len)
{
	struct pending *p = malloc(sizeof(*p) + len);

	PROMISE(p != NULL);
	p->next = NULL;
	p->node = *n;
	p->path_len = len;
	memcpy(p->path, path, len);
	*w->last = p;
	w->last = &p->next;
}

static void entry(struct walk *w, const struct pending *dir, const struct daxfs_entry *e)
{
	struct daxfs_node n;
	size_t len = dir->path_len + 1 + e->name_len;
	u8 *path;

	PROMISE(e->ino && e->ino <= w->img->inode_count);
	PROMISE(e->name_len);
	PROMISE(!memchr(e->name, 0, e->name_len) && !memchr(e->name, '/', e->name_len));
	if (daxfs_node(w->img, e->ino, &n) || n.mode >> 12 != e->type) {
		w->errors++;
		return;
	}
	path = malloc(len);
	PROMISE(path != NULL);
	memcpy(path, dir->path, dir->path_len);
	path[dir->path_len] = '/';
	memcpy(path + dir->path_len + 1, e->name, e->name_len);
	node(w, &n, path, len);
	if (S_ISDIR(n.mode)) {
		/* As dir.c: a directory is in one place. */
		if (w->parent[n.ino - 1] || n.ino == DAXFS_ROOT_INO) {
			w->errors++;
		} else {
			w->parent[n.ino - 1] = dir->node.ino;
			later(w, &n, path, len);
		}
	}
	free(path);
}

static void find(struct walk *w, const struct pending *dir, bool sorted,
		 const struct daxfs_entry *e)
{
	u8 name[DAXFS_NAME_MAX + 1];
	u32 ino = 0;
	u8 type = 0;
	int found;

	/* Exactly as long as the name, so that one more byte would be noticed. */
	u8 *exact = copy(e->name, e->name_len);

	found = daxfs_lookup(w->img, &dir->node, sorted, exact, e->name_len, &ino, &type);
	free(exact);
	if (found < 0) {
		w->errors++;
	} else if (!found) {
		w->errors++; /* the directory is not in order */
	} else {
		PROMISE(ino && ino <= w->img->inode_count);
		if (w->img->native && (ino != e->ino || type != e->type))
			w->errors++;
	}

	/* A name that is not there, or is by chance. */
	memcpy(name, e->name, e->name_len);
	name[e->name_len - 1] ^= 1;
	found = daxfs_lookup(w->img, &dir->node, sorted, name, e->name_len, &ino, &type);
	PROMISE(found <= 1);
	if (found < 0)
		w->errors++;
}

static void directory(struct walk *w, const struct pending *dir)
{
	struct daxfs_entry *e = malloc(sizeof(*e));
	bool sorted = daxfs_sorted(w->img, &dir->node);
	u64 i, count = 0;
	int err;

	PROMISE(e != NULL);
	err = daxfs_names(w->img, &dir->node, &count);
	for (i = 0; !err && i < count && w->names_left; i++) {
		err = daxfs_entry(w->img, &dir->node, i, e);
		if (err)
			break;
		w->names_left--;
		entry(w, dir, e);
		if (i < LOOKUPS_MAX)
			find(w, dir, sorted, e);
	}
	if (err)
		w->errors++;
	free(e);
}

unsigned int walk(const struct daxfs_image *img, u64 names_max, FILE *out)
{
	struct walk w = { .img = img, .out = out, .names_left = names_max };
	struct daxfs_node root;

	w.last = &w.first;
	w.parent = calloc(img->inode_count, sizeof(*w.parent));
	PROMISE(w.parent != NULL);
	if (daxfs_node(img, DAXFS_ROOT_INO, &root) || !S_ISDIR(root.mode)) {
		w.errors++;
	} else {
		node(&w, &root, (const u8 *)"", 0);
		later(&w, &root, (const u8 *)"", 0);
	}
	while (w.first) {
		struct pending *dir = w.first;

		directory(&w, dir);
		w.first = dir->next;
		if (!w.first)
			w.last = &w.first;
		free(dir);
	}
	free(w.parent);
	return w.errors;
}
