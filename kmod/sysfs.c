// SPDX-License-Identifier: GPL-2.0-only
/*
 * /sys/fs/daxfs: a directory for each mounted image, which is there until the
 * last user of its superblock and of its pages is gone, also after a lazy
 * unmount; and the regions.
 *
 * A name is MAJOR:MINOR.TIME, with the device number that stat(2) shows, and
 * the nanoseconds from boot to mount: device numbers are used again, names are
 * not.
 */
#include <linux/fs.h>
#include <linux/kobject.h>
#include <linux/ktime.h>
#include <linux/sysfs.h>

#include "daxfs.h"

static struct kset *daxfs_kset;

static struct daxfs_mount *of(struct kobject *kobj)
{
	return container_of(kobj, struct daxfs_mount, kobj);
}

static ssize_t phys_show(struct kobject *kobj, struct kobj_attribute *a, char *buf)
{
	struct daxfs_region *r = of(kobj)->region;

	return r->dmabuf ? sysfs_emit(buf, "dmabuf\n")
			 : sysfs_emit(buf, "%pa\n", &r->start);
}

static ssize_t size_show(struct kobject *kobj, struct kobj_attribute *a, char *buf)
{
	return sysfs_emit(buf, "%llu\n", of(kobj)->region->size);
}

static ssize_t offset_show(struct kobject *kobj, struct kobj_attribute *a, char *buf)
{
	return sysfs_emit(buf, "%llu\n", of(kobj)->offset);
}

static ssize_t name_show(struct kobject *kobj, struct kobj_attribute *a, char *buf)
{
	return sysfs_emit(buf, "%s\n", of(kobj)->name);
}

static ssize_t uuid_show(struct kobject *kobj, struct kobj_attribute *a, char *buf)
{
	return sysfs_emit(buf, "%pU\n", of(kobj)->img.uuid);
}

static ssize_t pages_show(struct kobject *kobj, struct kobj_attribute *a, char *buf)
{
	static const char *const words[] = { "own", "existing", "none" };

	return sysfs_emit(buf, "%s\n", words[of(kobj)->region->pages]);
}

static ssize_t dev_show(struct kobject *kobj, struct kobj_attribute *a, char *buf)
{
	return sysfs_emit(buf, "%u:%u\n", MAJOR(of(kobj)->dev), MINOR(of(kobj)->dev));
}

static ssize_t state_show(struct kobject *kobj, struct kobj_attribute *a, char *buf)
{
	return sysfs_emit(buf, READ_ONCE(of(kobj)->pinned) ? "pinned\n" : "mounted\n");
}

static struct kobj_attribute dev_attr = __ATTR_RO(dev);
static struct kobj_attribute state_attr = __ATTR_RO(state);
static struct kobj_attribute phys_attr = __ATTR_RO(phys);
static struct kobj_attribute size_attr = __ATTR_RO(size);
static struct kobj_attribute offset_attr = __ATTR_RO(offset);
static struct kobj_attribute name_attr = __ATTR_RO(name);
static struct kobj_attribute uuid_attr = __ATTR_RO(uuid);
static struct kobj_attribute pages_attr = __ATTR_RO(pages);

static struct attribute *mount_attrs[] = {
	&dev_attr.attr,
	&state_attr.attr,
	&phys_attr.attr,
	&size_attr.attr,
	&offset_attr.attr,
	&name_attr.attr,
	&uuid_attr.attr,
	&pages_attr.attr,
	NULL,
};
ATTRIBUTE_GROUPS(mount);

static void mount_release(struct kobject *kobj)
{
	complete(&of(kobj)->kobj_gone);
}

static const struct kobj_type mount_type = {
	.sysfs_ops = &kobj_sysfs_ops,
	.default_groups = mount_groups,
	.release = mount_release,
};

int daxfs_sysfs_add(struct super_block *sb)
{
	struct daxfs_mount *m = daxfs_mount(sb);
	int err;

	init_completion(&m->kobj_gone);
	m->dev = sb->s_dev;
	m->kobj.kset = daxfs_kset;
	err = kobject_init_and_add(&m->kobj, &mount_type, NULL, "%u:%u.%llu",
				   MAJOR(m->dev), MINOR(m->dev), ktime_get_boottime_ns());
	if (err) {
		kobject_put(&m->kobj);
		wait_for_completion(&m->kobj_gone);
		return err;
	}
	m->kobj_added = true;
	return 0;
}

void daxfs_sysfs_remove(struct daxfs_mount *m)
{
	if (!m->kobj_added)
		return;
	kobject_del(&m->kobj);
	kobject_put(&m->kobj);
	/* Somebody may be reading one of the files. */
	wait_for_completion(&m->kobj_gone);
	m->kobj_added = false;
}

static ssize_t regions_show(struct kobject *kobj, struct kobj_attribute *a, char *buf)
{
	return daxfs_region_show(buf);
}

static struct kobj_attribute regions_attr = __ATTR_RO(regions);

int daxfs_sysfs_init(void)
{
	int err;

	daxfs_kset = kset_create_and_add("daxfs", NULL, fs_kobj);
	if (!daxfs_kset)
		return -ENOMEM;
	err = sysfs_create_file(&daxfs_kset->kobj, &regions_attr.attr);
	if (err)
		kset_unregister(daxfs_kset);
	return err;
}

void daxfs_sysfs_exit(void)
{
	sysfs_remove_file(&daxfs_kset->kobj, &regions_attr.attr);
	kset_unregister(daxfs_kset);
}
