// SPDX-License-Identifier: GPL-2.0-only
/* Extended attributes. */
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/xattr.h>

#include "daxfs.h"

/* Prefixes of names, by index; the ACLs' are whole names. */
static const char *const prefixes[] = {
	[DAXFS_XATTR_INDEX_USER]		= XATTR_USER_PREFIX,
	[DAXFS_XATTR_INDEX_POSIX_ACL_ACCESS]	= XATTR_NAME_POSIX_ACL_ACCESS,
	[DAXFS_XATTR_INDEX_POSIX_ACL_DEFAULT]	= XATTR_NAME_POSIX_ACL_DEFAULT,
	[DAXFS_XATTR_INDEX_TRUSTED]		= XATTR_TRUSTED_PREFIX,
	[DAXFS_XATTR_INDEX_SECURITY]		= XATTR_SECURITY_PREFIX,
};

static int next(struct inode *inode, struct daxfs_xattr_walk *walk,
		struct daxfs_xattr *x)
{
	const struct daxfs_inode_info *di = daxfs_i(inode);

	return daxfs_xattr_next(&daxfs_mount(inode->i_sb)->img, di->xattrs,
				di->xattrs_size, walk, x);
}

static int daxfs_getxattr(const struct xattr_handler *handler, struct dentry *dentry,
			  struct inode *inode, const char *name, void *buf, size_t size)
{
	struct daxfs_xattr_walk walk = {};
	size_t len = strlen(name);
	struct daxfs_xattr x;
	int err;

	while ((err = next(inode, &walk, &x)) > 0) {
		if (x.index != handler->flags || x.name_len != len ||
		    memcmp(x.name, name, len))
			continue;
		if (!buf)
			return x.value_size;
		if (x.value_size > size)
			return -ERANGE;
		memcpy(buf, x.value, x.value_size);
		return x.value_size;
	}
	return err ? err : -ENODATA;
}

static bool lists_trusted(struct dentry *dentry)
{
	return capable(CAP_SYS_ADMIN);
}

static const struct xattr_handler daxfs_user_xattr = {
	.prefix = XATTR_USER_PREFIX,
	.flags = DAXFS_XATTR_INDEX_USER,
	.get = daxfs_getxattr,
};

static const struct xattr_handler daxfs_trusted_xattr = {
	.prefix = XATTR_TRUSTED_PREFIX,
	.flags = DAXFS_XATTR_INDEX_TRUSTED,
	.list = lists_trusted,
	.get = daxfs_getxattr,
};

static const struct xattr_handler daxfs_security_xattr = {
	.prefix = XATTR_SECURITY_PREFIX,
	.flags = DAXFS_XATTR_INDEX_SECURITY,
	.get = daxfs_getxattr,
};

COMPAT_XATTR_HANDLERS(daxfs_xattr_handlers) = {
	&daxfs_user_xattr,
	&daxfs_trusted_xattr,
	&daxfs_security_xattr,
	COMPAT_ACL_HANDLERS
	NULL,
};

ssize_t daxfs_listxattr(struct dentry *dentry, char *buf, size_t size)
{
	struct inode *inode = d_inode(dentry);
	struct daxfs_xattr_walk walk = {};
	struct daxfs_xattr x;
	ssize_t total = 0;
	int err;

	while ((err = next(inode, &walk, &x)) > 0) {
		const char *prefix = prefixes[x.index];
		size_t len = strlen(prefix);

		if (x.index == DAXFS_XATTR_INDEX_TRUSTED && !lists_trusted(dentry))
			continue;
		if (!x.name_len && !IS_POSIXACL(inode))
			continue;
		if (buf) {
			char *to = buf + total;

			if (len + x.name_len + 1 > size - total)
				return -ERANGE;
			memcpy(to, prefix, len);
			memcpy(to + len, x.name, x.name_len);
			to[len + x.name_len] = 0;
			if (strlen(to) != len + x.name_len) {
				daxfs_report(&daxfs_mount(inode->i_sb)->img,
					     "inode %lu: an attribute's name has a NUL",
					     inode_number(inode));
				return -EUCLEAN;
			}
		}
		total += len + x.name_len + 1;
	}
	return err ? err : total;
}

bool daxfs_has_acl(struct inode *inode)
{
	struct daxfs_xattr_walk walk = {};
	struct daxfs_xattr x;
	int err;

	while ((err = next(inode, &walk, &x)) > 0)
		if (!x.name_len)
			return true;
	/* A bad run says so again when it is used. */
	return err < 0;
}
