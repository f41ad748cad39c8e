// SPDX-License-Identifier: GPL-2.0-only
/* Directories: lookup, readdir, and the way up for file handles. */
#include <linux/exportfs.h>
#include <linux/fs.h>

#include "daxfs.h"

/* What the core wants to know of a directory, from its inode. */
static struct daxfs_node node_of(struct inode *dir)
{
	return (struct daxfs_node) {
		.ino = inode_number(dir),
		.mode = dir->i_mode,
		.size = i_size_read(dir),
		.data = daxfs_i(dir)->data,
	};
}

/* Whether halving finds names in dir. Costs one pass over a v8 directory. */
static bool sorted(struct inode *dir, const struct daxfs_node *n)
{
	const struct daxfs_image *img = &daxfs_mount(dir->i_sb)->img;
	struct daxfs_inode_info *di = daxfs_i(dir);

	if (img->native)
		return true;
	if (READ_ONCE(di->sorted) == DAXFS_ORDER_UNKNOWN)
		WRITE_ONCE(di->sorted, daxfs_sorted(img, n) ? DAXFS_SORTED : DAXFS_UNSORTED);
	return READ_ONCE(di->sorted) == DAXFS_SORTED;
}

/*
 * Notes that inode, a directory, has a name in dir. The image may be wrong, or
 * change: the VFS must not see a directory in two places, or in itself.
 */
static int note_parent(struct inode *inode, struct inode *dir)
{
	u32 ino = inode_number(dir);
	u32 old = cmpxchg(&daxfs_i(inode)->parent, 0, ino);

	if ((old && old != ino) || inode == dir) {
		daxfs_report(&daxfs_mount(dir->i_sb)->img,
			     "directory inode %lu has names in directories %u and %u",
			     inode_number(inode), old, ino);
		return -EUCLEAN;
	}
	return 0;
}

struct dentry *daxfs_lookup_name(struct inode *dir, struct dentry *dentry,
				 unsigned int flags)
{
	const struct daxfs_image *img = &daxfs_mount(dir->i_sb)->img;
	struct daxfs_node n = node_of(dir);
	struct inode *inode;
	u32 ino;
	u8 type;
	int err;

	if (dentry->d_name.len > DAXFS_NAME_MAX)
		return ERR_PTR(-ENAMETOOLONG);
	err = daxfs_lookup(img, &n, sorted(dir, &n), dentry->d_name.name,
			   dentry->d_name.len, &ino, &type);
	if (err < 0)
		return ERR_PTR(err);
	if (!err)
		return d_splice_alias(NULL, dentry);
	inode = daxfs_iget(dir->i_sb, ino);
	if (IS_ERR(inode))
		return ERR_CAST(inode);
	err = 0;
	if (inode->i_mode >> 12 != type) {
		daxfs_report(img, "directory inode %lu: type %u of an entry is not that of inode %u, mode %#o",
			     inode_number(dir), type, ino, inode->i_mode);
		err = -EUCLEAN;
	} else if (S_ISDIR(inode->i_mode)) {
		err = note_parent(inode, dir);
	}
	if (err) {
		iput(inode);
		return ERR_PTR(err);
	}
	return d_splice_alias(inode, dentry);
}

/* Positions: 0 ".", 1 "..", then name number pos - 2. */
static int daxfs_readdir(struct file *file, struct dir_context *ctx)
{
	struct inode *dir = file_inode(file);
	const struct daxfs_image *img = &daxfs_mount(dir->i_sb)->img;
	struct daxfs_node n = node_of(dir);
	struct daxfs_entry *e;
	u64 count;
	int err;

	if (!dir_emit_dots(file, ctx))
		return 0;
	err = daxfs_names(img, &n, &count);
	if (err)
		return err;
	e = kmalloc(sizeof(*e), GFP_KERNEL);
	if (!e)
		return -ENOMEM;
	while (ctx->pos - 2 < count) {
		err = daxfs_entry(img, &n, ctx->pos - 2, e);
		if (err || !dir_emit(ctx, e->name, e->name_len, e->ino, e->type))
			break;
		ctx->pos++;
		err = ctx->pos % 1024 == 0 ? daxfs_breathe() : 0;
		if (err)
			break;
	}
	kfree(e);
	return err;
}

const struct file_operations daxfs_dir_ops = {
	.llseek		= generic_file_llseek,
	.read		= generic_read_dir,
	.iterate_shared	= daxfs_readdir,
	.fsync		= noop_fsync,
	.unlocked_ioctl	= daxfs_ioctl,
	.compat_ioctl	= compat_ptr_ioctl,
};

static struct inode *handle_inode(struct super_block *sb, u64 ino, u32 generation)
{
	if (!ino || ino > daxfs_mount(sb)->img.inode_count || generation)
		return ERR_PTR(-ESTALE);
	return daxfs_iget(sb, ino);
}

static struct dentry *daxfs_fh_to_dentry(struct super_block *sb, struct fid *fid,
					 int len, int type)
{
	return generic_fh_to_dentry(sb, fid, len, type, handle_inode);
}

static struct dentry *daxfs_fh_to_parent(struct super_block *sb, struct fid *fid,
					 int len, int type)
{
	return generic_fh_to_parent(sb, fid, len, type, handle_inode);
}

/* Whether dir has a name for inode child: 1 or 0. */
static int names_child(const struct daxfs_image *img, const struct daxfs_node *dir,
		       u32 child)
{
	struct daxfs_entry e;
	u64 i, count;
	int err;

	err = daxfs_names(img, dir, &count);
	for (i = 0; !err && i < count; i++) {
		err = daxfs_entry(img, dir, i, &e);
		if (!err && e.ino == child)
			return 1;
		if (!err && i % 1024 == 1023)
			err = daxfs_breathe();
	}
	return err;
}

/*
 * Images do not say where a directory has its name. Only who opens a file
 * handle of a directory that nobody has walked to pays for this search.
 */
static struct dentry *daxfs_get_parent(struct dentry *dentry)
{
	struct inode *child = d_inode(dentry);
	const struct daxfs_image *img = &daxfs_mount(child->i_sb)->img;
	u32 ino = READ_ONCE(daxfs_i(child)->parent);
	struct daxfs_node n;
	struct inode *dir;
	u64 sum = 0;
	int err;

	if (ino)
		return d_obtain_alias(daxfs_iget(child->i_sb, ino));
	for (ino = 1; ino <= img->inode_count && ino; ino++) {
		err = daxfs_node(img, ino, &n);
		if (!err && S_ISDIR(n.mode)) {
			err = daxfs_count_dir(img, &n, &sum);
			if (!err)
				err = names_child(img, &n, inode_number(child));
		}
		if (!err && ino % 256 == 0)
			err = daxfs_breathe();
		if (err < 0)
			return ERR_PTR(err);
		if (!err)
			continue;
		dir = daxfs_iget(child->i_sb, ino);
		if (IS_ERR(dir))
			return ERR_CAST(dir);
		err = note_parent(child, dir);
		if (err) {
			iput(dir);
			return ERR_PTR(err);
		}
		return d_obtain_alias(dir);
	}
	return ERR_PTR(-ESTALE);
}

const struct export_operations daxfs_export_ops = {
	COMPAT_ENCODE_FH
	.fh_to_dentry	= daxfs_fh_to_dentry,
	.fh_to_parent	= daxfs_fh_to_parent,
	.get_parent	= daxfs_get_parent,
};
