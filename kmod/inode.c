// SPDX-License-Identifier: GPL-2.0-only
/* Inodes: read once from the image, then constant. */
#include <linux/fs.h>
#include <linux/namei.h>
#include <linux/posix_acl.h>
#include <linux/slab.h>
#include <linux/xattr.h>

#include "daxfs.h"

static struct kmem_cache *daxfs_inode_cache;

struct inode *daxfs_alloc_inode(struct super_block *sb)
{
	struct daxfs_inode_info *di = compat_alloc_inode_sb(sb, daxfs_inode_cache);

	if (!di)
		return NULL;
	di->data = 0;
	di->xattrs = 0;
	di->xattrs_size = 0;
	di->parent = 0;
	di->sorted = DAXFS_ORDER_UNKNOWN;
	return &di->vfs_inode;
}

void daxfs_free_inode(struct inode *inode)
{
	if (S_ISLNK(inode->i_mode))
		kfree(inode->i_link);
	kmem_cache_free(daxfs_inode_cache, daxfs_i(inode));
}

#ifdef CONFIG_FS_POSIX_ACL
static struct posix_acl *read_acl(struct inode *inode, int type)
{
	const struct daxfs_image *img = &daxfs_mount(inode->i_sb)->img;
	const struct daxfs_inode_info *di = daxfs_i(inode);
	u8 index = type == ACL_TYPE_ACCESS ? DAXFS_XATTR_INDEX_POSIX_ACL_ACCESS
					   : DAXFS_XATTR_INDEX_POSIX_ACL_DEFAULT;
	struct daxfs_xattr_walk walk = {};
	struct posix_acl *acl = NULL;
	struct daxfs_xattr x;
	void *copy;
	int err;

	while ((err = daxfs_xattr_next(img, di->xattrs, di->xattrs_size, &walk, &x)) > 0) {
		if (x.index != index)
			continue;
		copy = kmemdup(x.value, x.value_size, GFP_KERNEL);
		if (!copy)
			return ERR_PTR(-ENOMEM);
		acl = posix_acl_from_xattr(&init_user_ns, copy, x.value_size);
		kfree(copy);
		if (acl == ERR_PTR(-ENOMEM) || !IS_ERR(acl))
			return acl;
		daxfs_report(img, "inode %lu: attribute is no POSIX ACL", inode_number(inode));
		return ERR_PTR(-EUCLEAN);
	}
	return ERR_PTR(err);
}

static struct posix_acl *daxfs_get_acl(struct inode *inode, int type, bool rcu)
{
	if (rcu) /* posix_acl_from_xattr() allocates */
		return ERR_PTR(-ECHILD);
	return read_acl(inode, type);
}
#define DAXFS_ACL	.COMPAT_GET_ACL = daxfs_get_acl,
#else
#define DAXFS_ACL
#endif

static const struct inode_operations daxfs_file_inode_ops = {
	.listxattr	= daxfs_listxattr,
	DAXFS_ACL
};

static const struct inode_operations daxfs_link_inode_ops = {
	.get_link	= simple_get_link,
	.listxattr	= daxfs_listxattr,
};

static const struct inode_operations daxfs_dir_inode_ops = {
	.lookup		= daxfs_lookup_name,
	.listxattr	= daxfs_listxattr,
	DAXFS_ACL
};

static int fill_link(struct inode *inode, const struct daxfs_node *n)
{
	char *target = kmalloc(n->size + 1, GFP_KERNEL_ACCOUNT);
	int err;

	if (!target)
		return -ENOMEM;
	/* A copy: in the image the NUL could go away while a path is walked. */
	err = daxfs_target(&daxfs_mount(inode->i_sb)->img, n, target);
	if (err) {
		kfree(target);
		return err;
	}
	inode->i_link = target;
	inode->i_op = &daxfs_link_inode_ops;
	return 0;
}

static int fill(struct inode *inode, const struct daxfs_node *n)
{
	struct daxfs_inode_info *di = daxfs_i(inode);
	struct timespec64 mtime = { .tv_sec = n->mtime, .tv_nsec = n->mtime_nsec };

	di->data = n->data;
	di->xattrs = n->xattrs;
	di->xattrs_size = n->xattrs_size;
	i_uid_write(inode, n->uid);
	i_gid_write(inode, n->gid);
	set_nlink(inode, n->nlink);
	i_size_write(inode, n->size);
	inode->i_blocks = DIV_ROUND_UP(n->size, 512);
	compat_set_times(inode, mtime);
	if (!daxfs_has_acl(inode))
		cache_no_acl(inode);

	switch (n->mode & S_IFMT) {
	case S_IFREG:
		inode->i_op = &daxfs_file_inode_ops;
		inode->i_fop = &daxfs_file_ops;
		break;
	case S_IFDIR:
		inode->i_op = &daxfs_dir_inode_ops;
		inode->i_fop = &daxfs_dir_ops;
		if (n->ino == DAXFS_ROOT_INO)
			di->parent = DAXFS_ROOT_INO;
		break;
	case S_IFLNK: {
		int err = fill_link(inode, n);

		if (err)
			return err;
		break;
	}
	default:
		inode->i_op = &daxfs_file_inode_ops;
		init_special_inode(inode, n->mode, new_decode_dev(n->rdev));
	}
	/* Last: daxfs_free_inode() goes by it. */
	inode->i_mode = n->mode;
	return 0;
}

struct inode *daxfs_iget(struct super_block *sb, u32 ino)
{
	struct daxfs_node n;
	struct inode *inode;
	int err;

	inode = iget_locked(sb, ino);
	if (!inode)
		return ERR_PTR(-ENOMEM);
	if (!compat_inode_is_new(inode))
		return inode;
	err = daxfs_node(&daxfs_mount(sb)->img, ino, &n);
	if (!err)
		err = fill(inode, &n);
	if (err) {
		iget_failed(inode);
		return ERR_PTR(err);
	}
	unlock_new_inode(inode);
	return inode;
}

static void init_once(void *p)
{
	struct daxfs_inode_info *di = p;

	inode_init_once(&di->vfs_inode);
}

int daxfs_inode_init(void)
{
	daxfs_inode_cache = kmem_cache_create("daxfs_inode",
					      sizeof(struct daxfs_inode_info), 0,
					      SLAB_RECLAIM_ACCOUNT | SLAB_ACCOUNT,
					      init_once);
	return daxfs_inode_cache ? 0 : -ENOMEM;
}

void daxfs_inode_exit(void)
{
	/* Inodes are freed after a grace period. */
	rcu_barrier();
	kmem_cache_destroy(daxfs_inode_cache);
}
