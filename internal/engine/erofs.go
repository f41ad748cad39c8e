package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// Erofs mounts the EROFS view of an image with the kernel's own EROFS, through
// the page cache.
type Erofs struct {
	mu     sync.Mutex // one mount at a time, so that the new superblock can be named
	method *method    // by Probe
}

// method is one way to mount at an offset of a file.
type method struct {
	name string
	// cache is how many copies of the data reading through it leaves in memory.
	cache int
	mount func(src Source, target string) error
}

// methods are in order of preference: one copy in the page cache before two.
//
// fsoffset= is in Linux 6.16 and later, directio with it (Documentation/
// filesystems/erofs.rst); file-backed mounts need 6.12, and a file system with
// ->bmap or address operations, which tmpfs is not: ENOTBLK.
var methods = []method{
	{"file+directio", 1, func(src Source, target string) error {
		return mountErofs(src.Path, target, fmt.Sprintf("fsoffset=%d,directio", src.Offset))
	}},
	{"loop+directio", 1, func(src Source, target string) error { return mountLoop(src, target, true) }},
	{"file", 2, func(src Source, target string) error {
		return mountErofs(src.Path, target, fmt.Sprintf("fsoffset=%d", src.Offset))
	}},
	{"loop", 2, func(src Source, target string) error { return mountLoop(src, target, false) }},
}

// Name returns "erofs".
func (e *Erofs) Name() string { return "erofs" }

func mountErofs(source, target, data string) error {
	return unix.Mount(source, target, "erofs", unix.MS_RDONLY|unix.MS_NOATIME, data)
}

func mountLoop(src Source, target string, direct bool) error {
	dev, err := attachLoop(src, direct)
	if err != nil {
		return err
	}
	// Autoclear: the mount keeps the device, and its end frees it.
	defer dev.Close()
	return mountErofs(dev.Name(), target, "")
}

// Probe mounts a small image from a file in dir by each method until one
// works, and reads a file through it.
func (e *Erofs) Probe(ctx context.Context, dir string) Probe {
	p := Probe{Engine: e.Name()}
	fail := func(a Answer, reason, remedy string) Probe {
		p.Answer, p.Reason, p.Remedy = a, reason, remedy
		return p
	}
	if os.Geteuid() != 0 {
		return fail(Unknown, "mounting needs root", "run as root")
	}
	filesystems, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return fail(Unknown, err.Error(), "")
	}
	if !strings.Contains(string(filesystems), "\terofs\n") {
		// A first mount loads the module where there is one.
		if err := unix.Mount("none", "/nonexistent", "erofs", 0, ""); errors.Is(err, unix.ENODEV) {
			return fail(No, "the kernel has no EROFS", "modprobe erofs, or a kernel with CONFIG_EROFS_FS (Linux 5.19 or later)")
		}
	}
	tmp, err := os.MkdirTemp(dir, ".probe-")
	if err != nil {
		return fail(Unknown, err.Error(), "make the directory writable")
	}
	defer os.RemoveAll(tmp)
	src, err := probeImage(ctx, filepath.Join(tmp, "image"))
	if err != nil {
		return fail(Unknown, err.Error(), "")
	}
	target := filepath.Join(tmp, "mnt")
	if err := os.Mkdir(target, 0o700); err != nil {
		return fail(Unknown, err.Error(), "")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range methods {
		m := &methods[i]
		if err := tryMethod(m, src, target); err != nil {
			p.Passed = append(p.Passed, fmt.Sprintf("%s: %v", m.name, err))
			continue
		}
		e.method = m
		p.Answer, p.Method = Yes, m.name
		if m.cache > 1 {
			p.Reason = "reading caches the data twice"
			p.Remedy = "Linux 6.16 or later mounts the pool file directly with direct I/O"
		}
		return p
	}
	return fail(No, strings.Join(p.Passed, "; "), "a kernel with CONFIG_EROFS_FS and either file-backed mounts (6.12) or loop devices")
}

const probeOffset = 3 * disk.BlockSize

// probeImage writes an image with one file at an offset.
func probeImage(ctx context.Context, path string) (Source, error) {
	img, err := os.Create(path + ".tmp")
	if err != nil {
		return Source{}, err
	}
	defer os.Remove(img.Name())
	defer img.Close()
	b, err := mkdaxfs.NewBuilder(img, mkdaxfs.BuildOptions{})
	if err != nil {
		return Source{}, err
	}
	defer func() { _ = b.Close() }() // holds nothing without a spool
	const content = "probe"
	n := &mkdaxfs.Node{Mode: disk.TypeRegular | 0o444, Size: int64(len(content))}
	if n.Extent, err = b.Put(ctx, strings.NewReader(content), n.Size); err != nil {
		return Source{}, err
	}
	root := &mkdaxfs.Node{Mode: disk.TypeDir | 0o755, Children: []mkdaxfs.Child{{Name: content, Node: n}}}
	stats, err := b.Finish(ctx, &mkdaxfs.Tree{Root: root})
	if err != nil {
		return Source{}, err
	}
	bytes := make([]byte, probeOffset+stats.Size)
	if _, err := img.ReadAt(bytes[probeOffset:], 0); err != nil {
		return Source{}, err
	}
	if err := os.WriteFile(path, bytes, 0o600); err != nil {
		return Source{}, err
	}
	return Source{Path: path, Offset: probeOffset, Size: stats.Size}, nil
}

func tryMethod(m *method, src Source, target string) error {
	if err := m.mount(src, target); err != nil {
		return err
	}
	got, err := os.ReadFile(filepath.Join(target, "probe"))
	if uerr := unix.Unmount(target, unix.MNT_DETACH); uerr != nil && err == nil {
		err = uerr
	}
	if err == nil && string(got) != "probe" {
		err = fmt.Errorf("read %q from the probe image", got)
	}
	return err
}

// Mount mounts src by the method that Probe found, which must have answered
// Yes.
func (e *Erofs) Mount(_ context.Context, src Source, target string) (*Mount, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.method == nil {
		return nil, fmt.Errorf("mount image: %w", ErrNoEngine)
	}
	before := superblocks()
	if err := e.method.mount(src, target); err != nil {
		return nil, fmt.Errorf("mount image at %d of %s on %s with erofs by %s: %w", src.Offset, src.Path, target, e.method.name, err)
	}
	m := &Mount{Engine: e.Name(), Method: e.method.name, Target: target}
	for _, name := range superblocks() {
		if !slices.Contains(before, name) {
			m.Superblocks = append(m.Superblocks, name)
		}
	}
	return m, nil
}

const sysErofs = "/sys/fs/erofs"

// superblocks lists the kernel's EROFS superblocks: each has a directory in
// sysfs from mount to its very end (fs/erofs/sysfs.c), also while only an
// overlay or an open file keeps it.
func superblocks() []string {
	entries, err := os.ReadDir(sysErofs)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if e.Name() != "features" {
			out = append(out, e.Name())
		}
	}
	return out
}

// Gone reports whether the kernel has let go of a mount that was unmounted. A
// mount whose superblock was never named counts as gone only after a reboot,
// which the caller has to know.
func (m *Mount) Gone() bool {
	if m.ended || len(m.Superblocks) == 0 {
		return m.ended
	}
	now := superblocks()
	for _, s := range m.Superblocks {
		if slices.Contains(now, s) {
			return false
		}
	}
	return true
}
