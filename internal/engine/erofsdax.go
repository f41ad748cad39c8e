package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// ErofsDax mounts the EROFS view of an image on a pmem device with DAX: the
// memory's own pages are mapped into processes by a stock kernel. It takes
// self-contained images only, since that kernel keeps one owner for each page.
type ErofsDax struct {
	mu sync.Mutex // one mount at a time, so that the new superblock can be named
}

// Name returns "erofs-dax".
func (*ErofsDax) Name() string { return "erofs-dax" }

// suits says why a region is not for this engine.
func (*ErofsDax) suits(r Region) error {
	if r.Kind() != "pmem" {
		return fmt.Errorf("%s is of kind %s, not a pmem device: %w", r.Path(), r.Kind(), ErrUnsuitable)
	}
	return nil
}

// Probe tries the kernel's EROFS and device-mapper on the pool's device.
func (e *ErofsDax) Probe(ctx context.Context, p Pool) Probe {
	probe := Probe{Engine: e.Name()}
	if err := e.suits(p.Region); err != nil {
		return probe.with(No, err.Error(), "a pool on a pmem device: pool.path = \"/dev/pmemN\"")
	}
	if p.Shared {
		return probe.with(No, "files of the pool's images share their bytes, and the kernel's DAX takes one inode for each page",
			"a new pool with pool.share_extents = false")
	}
	probe, ok := needs(probe, "erofs", "modprobe erofs, or a kernel with CONFIG_EROFS_FS (Linux 5.19 or later)")
	if !ok {
		return probe
	}
	if err := removeStale(); err != nil {
		return probe.with(Unknown, err.Error(), "")
	}
	if f, err := os.Open(dmControl); err != nil {
		return probe.with(No, "the kernel has no device-mapper: "+err.Error(), "modprobe dm_mod, or a kernel with CONFIG_BLK_DEV_DM")
	} else if err := f.Close(); err != nil {
		return probe.with(Unknown, err.Error(), "")
	}
	return probeByTrial(ctx, probe, p, func(src Source, target string) (*Mount, error) { return e.Mount(ctx, src, target) })
}

// Mount mounts src through a device-mapper device that begins at it, and
// verifies that DAX is on.
func (e *ErofsDax) Mount(_ context.Context, src Source, target string) (*Mount, error) {
	m, err := e.mount(src, target)
	if err != nil {
		return nil, fmt.Errorf("mount %v on %s with erofs-dax: %w", src, target, err)
	}
	return m, nil
}

func (e *ErofsDax) mount(src Source, target string) (*Mount, error) {
	if err := e.suits(src.Region); err != nil {
		return nil, err
	}
	if err := SelfContained(src); err != nil {
		return nil, err
	}
	pmem, err := os.Open(src.Region.Path())
	if err != nil {
		return nil, err
	}
	defer pmem.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	before := superblocks()
	dev, err := linear(pmem, src.Offset, src.Size&^(disk.BlockSize-1))
	if err != nil {
		return nil, err
	}
	defer dev.Close() // the mount keeps it
	options := []option{{key: "source", value: dev.Name()}, {key: "dax", value: "always"}}
	if err := mountNew("erofs", options, target); err != nil {
		return nil, err
	}
	if err := verifyDax(target); err != nil {
		return nil, errors.Join(err, unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
	}
	return (&Mount{Engine: e.Name(), Method: "dm-linear", Target: target}).on(erofsSuperblocks(target, before)), nil
}

// verifyDax reports whether the mount at target has DAX, which the kernel drops
// with nothing but a line in its log where the device has none.
func verifyDax(target string) error {
	infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(target))
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	if len(infos) == 0 {
		return fmt.Errorf("%s is not mounted", target)
	}
	// The last one is on top.
	if options := infos[len(infos)-1].VFSOptions; !slices.Contains(strings.Split(options, ","), "dax=always") {
		return fmt.Errorf("mounted with %q, without dax=always: the kernel or the device has no DAX: %w", options, unix.EOPNOTSUPP)
	}
	return nil
}

// SelfContained reports whether no two inodes of an image, and no other image,
// have the same bytes, so that the kernel's EROFS can have it with DAX. On two
// inodes that map one page the kernel warns, and loses count (fs/dax.c,
// dax_insert_entry). The error wraps ErrUnsuitable where they have, or where the
// image has no EROFS view.
func SelfContained(src Source) error {
	img, err := mkdaxfs.Open(io.NewSectionReader(src.Region, src.Offset, src.Size), src.Size)
	if err != nil {
		return err
	}
	sb := img.Superblock()
	if !sb.Native() || sb.Compat&disk.CompatErofs == 0 {
		return fmt.Errorf("the image has no EROFS view: %w", ErrUnsuitable)
	}
	if sb.Compat&disk.CompatPool != 0 {
		return fmt.Errorf("the image shares files with others of its pool, and the kernel's DAX takes one inode for each page: %w", ErrUnsuitable)
	}
	type file struct{ off, end uint64 }
	files := make([]file, 0, sb.InodeCount)
	for ino := range sb.InodeCount {
		in, err := img.Inode(ino + 1)
		if err != nil {
			return err
		}
		if in.Mode&disk.TypeMask == disk.TypeRegular && in.Size > 0 {
			files = append(files, file{in.DataOffset, in.DataOffset + disk.AlignUp(in.Size, disk.BlockSize)})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return cmp.Compare(a.off, b.off) })
	for i := 1; i < len(files); i++ {
		if files[i].off < files[i-1].end {
			return fmt.Errorf("files of the image share their bytes at %d, and the kernel's DAX takes one inode for each page: %w",
				sb.BaseOffset+files[i].off, ErrUnsuitable)
		}
	}
	return nil
}
