// SPDX-License-Identifier: GPL-2.0-only
/* Mounting: options, superblocks, and the module itself. */
#include <linux/bitmap.h>
#include <linux/dma-buf.h>
#include <linux/fs.h>
#include <linux/fs_context.h>
#include <linux/fs_parser.h>
#include <linux/module.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/statfs.h>

#include "daxfs.h"

/*
 * What the core needs, see core.h.
 */

/* Of mounts that fail: each has a limit of its own, together they have this. */
static DEFINE_RATELIMIT_STATE(daxfs_mount_reports, 5 * HZ, 10);

void daxfs_report(const struct daxfs_image *img, const char *fmt, ...)
{
	struct daxfs_mount *m = img->report_state;
	struct va_format vaf = { .fmt = fmt };
	va_list args;

	if (!__ratelimit(&m->report))
		return;
	va_start(args, fmt);
	vaf.va = &args;
	/* Who uses fsopen(2) reads it there; without a log errorf() is printk(). */
	if (m->fc && m->fc->log.log)
		errorf(m->fc, pr_name "%s: offset %llu: %pV", img->name, m->offset, &vaf);
	else if (!m->fc || __ratelimit(&daxfs_mount_reports))
		pr_err(pr_name "%s: offset %llu: %pV\n", img->name, m->offset, &vaf);
	va_end(args);
}

u32 daxfs_crc32c(u32 seed, const void *p, size_t n)
{
	return crc32c(seed, p, n);
}

int daxfs_breathe(void)
{
	cond_resched();
	return fatal_signal_pending(current) ? -EINTR : 0;
}

void *daxfs_zalloc(size_t n)
{
	return kvzalloc(n, GFP_KERNEL | __GFP_NOWARN | __GFP_RETRY_MAYFAIL);
}

void daxfs_free(void *p)
{
	kvfree(p);
}

/*
 * Options.
 */

enum { OPT_PHYS, OPT_SIZE, OPT_OFFSET, OPT_DMABUF, OPT_NAME, OPT_VALIDATE, OPT_NOPAGES };

static const struct fs_parameter_spec daxfs_params[] = {
	fsparam_string("phys", OPT_PHYS),
	fsparam_string("size", OPT_SIZE),
	fsparam_string("offset", OPT_OFFSET),
	/* mount(8) keeps "offset" for its loop devices; EROFS's name for it. */
	fsparam_string("fsoffset", OPT_OFFSET),
	fsparam_fd("dmabuf", OPT_DMABUF),
	fsparam_string("name", OPT_NAME),
	fsparam_flag_no("validate", OPT_VALIDATE),
	fsparam_flag("nopages", OPT_NOPAGES),
	{}
};

struct daxfs_options {
	u64 phys, size, offset;
	bool has_phys, has_size;
	struct dma_buf *dmabuf;
	char *name;
	bool novalidate;
	bool nopages;
};

/* Reads a number with an optional unit: 0x180000000, 268435456, 256M. */
static int number(struct fs_context *fc, const char *key, const char *text, u64 *n)
{
	char *end;

	if (*text >= '0' && *text <= '9') {
		*n = memparse(text, &end);
		if (!*end)
			return 0;
	}
	errorf(fc, pr_name "%s=%s: want a number of bytes, decimal or 0x…, with K, M, G or T or without", key, text);
	return -EINVAL;
}

static int parse_dmabuf(struct fs_context *fc, struct daxfs_options *o, int fd)
{
	struct dma_buf *dmabuf = dma_buf_get(fd);

	if (IS_ERR(dmabuf)) {
		errorf(fc, pr_name "dmabuf: descriptor %d is no dma-buf", fd);
		return PTR_ERR(dmabuf);
	}
	if (o->dmabuf)
		dma_buf_put(o->dmabuf);
	o->dmabuf = dmabuf;
	return 0;
}

static int daxfs_parse_param(struct fs_context *fc, struct fs_parameter *param)
{
	struct daxfs_options *o = fc->fs_private;
	struct fs_parse_result result;
	int opt = fs_parse(fc, daxfs_params, param, &result);

	if (opt < 0)
		return opt;
	/* A remount gets the options that the mount has, and changes nothing. */
	if (fc->purpose == FS_CONTEXT_FOR_RECONFIGURE)
		return 0;
	switch (opt) {
	case OPT_PHYS:
		o->has_phys = true;
		return number(fc, param->key, param->string, &o->phys);
	case OPT_SIZE:
		o->has_size = true;
		return number(fc, param->key, param->string, &o->size);
	case OPT_OFFSET:
		return number(fc, param->key, param->string, &o->offset);
	case OPT_DMABUF:
		return parse_dmabuf(fc, o, compat_param_fd(param, &result));
	case OPT_NAME:
		kfree(o->name);
		o->name = param->string;
		param->string = NULL;
		return 0;
	case OPT_VALIDATE:
		o->novalidate = result.negated;
		return 0;
	case OPT_NOPAGES:
		o->nopages = true;
		return 0;
	}
	return -EINVAL;
}

/*
 * Superblocks.
 */

static int daxfs_statfs(struct dentry *dentry, struct kstatfs *st)
{
	const struct daxfs_image *img = &daxfs_mount(dentry->d_sb)->img;

	st->f_type = DAXFS_IMAGE_MAGIC;
	st->f_bsize = PAGE_SIZE;
	st->f_blocks = DIV_ROUND_UP_ULL(img->used, PAGE_SIZE);
	st->f_files = img->inode_count;
	st->f_namelen = DAXFS_NAME_MAX;
	st->f_fsid = u64_to_fsid(huge_encode_dev(dentry->d_sb->s_dev));
	return 0;
}

static int daxfs_show_options(struct seq_file *seq, struct dentry *root)
{
	const struct daxfs_mount *m = daxfs_mount(root->d_sb);

	if (m->region->dmabuf)
		seq_puts(seq, ",dmabuf");
	else
		seq_printf(seq, ",phys=%#llx,size=%llu", (u64)m->region->start,
			   m->region->size);
	seq_printf(seq, ",offset=%llu", m->offset);
	seq_show_option(seq, "name", m->name);
	if (m->novalidate)
		seq_puts(seq, ",novalidate");
	if (m->nopages)
		seq_puts(seq, ",nopages");
	return 0;
}

static const struct super_operations daxfs_super_ops = {
	.alloc_inode	= daxfs_alloc_inode,
	.free_inode	= daxfs_free_inode,
	.statfs		= daxfs_statfs,
	.show_options	= daxfs_show_options,
};

static int take_region(struct fs_context *fc, struct daxfs_mount *m,
		       struct daxfs_options *o)
{
	struct daxfs_region *r;

	if (o->dmabuf && (o->has_phys || o->has_size)) {
		errorf(fc, pr_name "dmabuf and phys,size exclude each other");
		return -EINVAL;
	}
	if (!o->dmabuf && !(o->has_phys && o->has_size)) {
		errorf(fc, pr_name "want phys=ADDRESS,size=BYTES or a dmabuf descriptor");
		return -EINVAL;
	}
	r = o->dmabuf ? daxfs_region_dmabuf(fc, o->dmabuf, o->nopages)
		      : daxfs_region_phys(fc, o->phys, o->size, o->nopages);
	if (IS_ERR(r))
		return PTR_ERR(r);
	m->region = r;
	if (o->offset % PAGE_SIZE || o->offset >= r->size) {
		errorf(fc, pr_name "offset=%llu: want a multiple of %lu below the region's %llu bytes",
		       o->offset, PAGE_SIZE, r->size);
		return -EINVAL;
	}
	m->offset = o->offset;
	return 0;
}

void daxfs_mark_files(struct daxfs_mount *m, unsigned long *bits, u64 unit)
{
	struct daxfs_node n;
	u64 from, to;
	u32 ino;

	for (ino = 1; ino <= m->img.inode_count && ino; ino++) {
		/* A bad inode is for who wants to use it. */
		if (!daxfs_node(&m->img, ino, &n) && S_ISREG(n.mode) && n.size) {
			from = (m->offset + n.data) / unit;
			to = (m->offset + n.data + n.size - 1) / unit;
			bitmap_set(bits, from, to - from + 1);
		}
		if (ino % 1024 == 0)
			cond_resched();
	}
}

/* Sees to it that the image's files can be mapped. */
static int make_pages(struct fs_context *fc, struct daxfs_mount *m)
{
	struct daxfs_region *r = m->region;
	unsigned long *want;
	int err;

	if (r->pages != DAXFS_PAGES_OWN)
		return 0;
	want = bitmap_zalloc(r->chunks, GFP_KERNEL);
	if (!want)
		return -ENOMEM;
	daxfs_mark_files(m, want, DAXFS_CHUNK);
	err = daxfs_pages_make(r, want);
	bitmap_free(want);
	if (err)
		errorf(fc, pr_name "cannot make page structs for the image's files: error %d (nopages does without)", err);
	return err;
}

static int daxfs_fill_super(struct super_block *sb, struct fs_context *fc)
{
	struct daxfs_options *o = fc->fs_private;
	struct daxfs_mount *m;
	struct inode *root;
	int err;

	if (PAGE_SIZE != DAXFS_BLOCK_SIZE) {
		errorf(fc, pr_name "images have blocks of %u bytes, this kernel pages of %lu",
		       DAXFS_BLOCK_SIZE, PAGE_SIZE);
		return -EINVAL;
	}
	m = kzalloc(sizeof(*m), GFP_KERNEL);
	if (!m)
		return -ENOMEM;
	/* daxfs_kill_sb() frees from here on. */
	sb->s_fs_info = m;
	m->name = o->name ? o->name : kasprintf(GFP_KERNEL, "%u:%u", MAJOR(sb->s_dev),
						MINOR(sb->s_dev));
	o->name = NULL;
	if (!m->name)
		return -ENOMEM;
	m->nopages = o->nopages;
	m->novalidate = o->novalidate;
	ratelimit_state_init(&m->report, 5 * HZ, 1);
	ratelimit_set_flags(&m->report, RATELIMIT_MSG_ON_RELEASE);
	m->img.name = m->name;
	m->img.report_state = m;
	m->fc = fc;

	err = take_region(fc, m, o);
	if (err)
		return err;
	err = daxfs_open(&m->img, m->region->addr + m->offset, m->region->size - m->offset);
	if (!err && !m->novalidate)
		err = daxfs_check(&m->img);
	if (err)
		return err;
	err = make_pages(fc, m);
	if (err)
		return err;

	sb->s_flags |= SB_RDONLY | SB_NOATIME | SB_POSIXACL;
	sb->s_magic = DAXFS_IMAGE_MAGIC;
	sb->s_maxbytes = MAX_LFS_FILESIZE;
	sb->s_blocksize = PAGE_SIZE;
	sb->s_blocksize_bits = PAGE_SHIFT;
	sb->s_time_gran = 1;
	sb->s_op = &daxfs_super_ops;
	sb->s_xattr = daxfs_xattr_handlers;
	sb->s_export_op = &daxfs_export_ops;
	compat_set_uuid(sb, m->img.uuid);

	root = daxfs_iget(sb, DAXFS_ROOT_INO);
	if (IS_ERR(root))
		return PTR_ERR(root);
	if (!S_ISDIR(root->i_mode)) {
		daxfs_report(&m->img, "root has mode %#o, want a directory", root->i_mode);
		iput(root);
		return -EUCLEAN;
	}
	sb->s_root = d_make_root(root);
	if (!sb->s_root)
		return -ENOMEM;
	m->fc = NULL;
	return daxfs_sysfs_add(sb);
}

static int daxfs_get_tree(struct fs_context *fc)
{
	return get_tree_nodev(fc, daxfs_fill_super);
}

static int daxfs_reconfigure(struct fs_context *fc)
{
	if ((fc->sb_flags_mask & SB_RDONLY) && !(fc->sb_flags & SB_RDONLY)) {
		errorf(fc, pr_name "images are read-only");
		return -EROFS;
	}
	fc->sb_flags |= SB_RDONLY;
	return 0;
}

static void daxfs_free_fc(struct fs_context *fc)
{
	struct daxfs_options *o = fc->fs_private;

	if (!o)
		return;
	if (o->dmabuf)
		dma_buf_put(o->dmabuf);
	kfree(o->name);
	kfree(o);
}

static const struct fs_context_operations daxfs_context_ops = {
	.parse_param	= daxfs_parse_param,
	.get_tree	= daxfs_get_tree,
	.reconfigure	= daxfs_reconfigure,
	.free		= daxfs_free_fc,
};

static int daxfs_init_fs_context(struct fs_context *fc)
{
	fc->fs_private = kzalloc(sizeof(struct daxfs_options), GFP_KERNEL);
	if (!fc->fs_private)
		return -ENOMEM;
	fc->ops = &daxfs_context_ops;
	return 0;
}

static void daxfs_kill_sb(struct super_block *sb)
{
	struct daxfs_mount *m = daxfs_mount(sb);

	kill_anon_super(sb);
	if (m)
		daxfs_free_mount(m);
}

static struct file_system_type daxfs_type = {
	.owner		= THIS_MODULE,
	.name		= "daxfs",
	.init_fs_context = daxfs_init_fs_context,
	.parameters	= daxfs_params,
	.kill_sb	= daxfs_kill_sb,
	.fs_flags	= FS_ALLOW_IDMAP,
};
MODULE_ALIAS_FS("daxfs");

static int __init daxfs_init(void)
{
	int err;

	BUILD_BUG_ON(sizeof(struct daxfs_super) != DAXFS_SUPER_SIZE);
	BUILD_BUG_ON(sizeof(struct daxfs_inode) != 64);
	BUILD_BUG_ON(sizeof(struct daxfs_dirent) != 12);
	BUILD_BUG_ON(sizeof(struct daxfs_dirent_v8) != 272);

	err = daxfs_inode_init();
	if (err)
		return err;
	err = daxfs_region_init();
	if (err)
		goto no_region;
	err = daxfs_sysfs_init();
	if (err)
		goto no_sysfs;
	err = register_filesystem(&daxfs_type);
	if (!err)
		return 0;
	daxfs_sysfs_exit();
no_sysfs:
	daxfs_region_exit();
no_region:
	daxfs_inode_exit();
	return err;
}

static void __exit daxfs_exit(void)
{
	unregister_filesystem(&daxfs_type);
	daxfs_sysfs_exit();
	daxfs_region_exit();
	daxfs_inode_exit();
}

module_init(daxfs_init);
module_exit(daxfs_exit);

MODULE_DESCRIPTION("DAXFS: read-only file system on shared memory");
MODULE_AUTHOR("The containerd-daxfs developers");
MODULE_LICENSE("GPL");
COMPAT_IMPORT_NS_DMA_BUF;
