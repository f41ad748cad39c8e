package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// Erofs mounts the EROFS view of an image with the kernel's own EROFS, through
// the page cache.
type Erofs struct {
	mu     sync.Mutex // one mount at a time, so that the new superblock can be named
	method *method    // by Probe
}

// method is one way to mount at an offset of a file or device.
type method struct {
	name string
	// device says that it works on a block device too.
	device bool
	// cache is how many copies of the data reading through it leaves in memory.
	cache int
	mount func(src Source, target string) error
}

// methods are in order of preference: one copy in the page cache before two.
//
// fsoffset= is in Linux 6.16 and later, directio with it (Documentation/
// filesystems/erofs.rst); file-backed mounts need 6.12, and a file system with
// ->bmap or address operations, which tmpfs is not: ENOTBLK. On a block device
// fsoffset= is of no use: see linear.
var methods = []method{
	{"file+directio", false, 1, func(src Source, target string) error {
		return mountErofs(src.Region.Path(), target, fmt.Sprintf("fsoffset=%d,directio", src.Offset))
	}},
	{"loop+directio", true, 1, func(src Source, target string) error { return mountLoop(src, target, true) }},
	{"file", false, 2, func(src Source, target string) error {
		return mountErofs(src.Region.Path(), target, fmt.Sprintf("fsoffset=%d", src.Offset))
	}},
	{"loop", true, 2, func(src Source, target string) error { return mountLoop(src, target, false) }},
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

// suits says why a region is not for this engine.
func (e *Erofs) suits(r Region) error {
	if k := r.Kind(); k != "file" && k != "pmem" {
		return fmt.Errorf("%s is of kind %s, neither a file nor a block device: %w", r.Path(), k, ErrUnsuitable)
	}
	return nil
}

// Probe mounts a small image by each method until one works, and reads a file
// through it: from a file in the directory of the pool's file, or from the
// pool's device.
func (e *Erofs) Probe(ctx context.Context, p Pool) Probe {
	probe := Probe{Engine: e.Name()}
	if err := e.suits(p.Region); err != nil {
		return probe.with(No, err.Error(), "a pool in a file: pool.path = \"/var/lib/containerd-daxfs/pool.daxfs\"")
	}
	probe, ok := needs(probe, "erofs", "modprobe erofs, or a kernel with CONFIG_EROFS_FS (Linux 5.19 or later)")
	if !ok {
		return probe
	}
	if p.Region.Kind() == "file" {
		p.Trial = trialBeside(p.Region.Path())
	}
	if p.Trial == nil {
		return probe.with(Unknown, "the pool has no image yet to try it with", "start the daemon, which tries it")
	}
	t, err := p.Trial(ctx)
	if err != nil {
		return probe.with(Unknown, err.Error(), "make the directory writable")
	}
	defer t.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range methodsFor(p.Region) {
		if _, err := t.try(m.attempt); err != nil {
			probe.Passed = append(probe.Passed, fmt.Sprintf("%s: %v", m.name, err))
			continue
		}
		e.method = m
		probe.Answer, probe.Method = Yes, m.name
		if m.cache > 1 {
			probe.Reason = "reading caches the data twice"
			probe.Remedy = "Linux 6.16 or later mounts the pool file directly with direct I/O"
		}
		return probe
	}
	return probe.with(No, strings.Join(probe.Passed, "; "), "a kernel with CONFIG_EROFS_FS and either file-backed mounts (6.12) or loop devices")
}

// methodsFor returns the methods that can work on a region.
func methodsFor(r Region) []*method {
	var out []*method
	for i := range methods {
		if methods[i].device || r.Kind() == "file" {
			out = append(out, &methods[i])
		}
	}
	return out
}

// attempt mounts src by one method.
func (m *method) attempt(src Source, target string) (*Mount, error) {
	before := superblocks()
	if err := m.mount(src, target); err != nil {
		return nil, err
	}
	return (&Mount{Engine: "erofs", Method: m.name, Target: target}).on(erofsSuperblocks(target, before)), nil
}

// Mount mounts src by the method that Probe found; without a probe, by the
// first that works.
func (e *Erofs) Mount(_ context.Context, src Source, target string) (*Mount, error) {
	if err := e.suits(src.Region); err != nil {
		return nil, fmt.Errorf("mount %v with erofs: %w", src, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	try := methodsFor(src.Region)
	if e.method != nil {
		try = []*method{e.method}
	}
	var why []error
	for _, way := range try {
		m, err := way.attempt(src, target)
		if err == nil {
			return m, nil
		}
		why = append(why, fmt.Errorf("%s: %w", way.name, err))
	}
	return nil, fmt.Errorf("mount %v on %s with erofs: %w", src, target, errors.Join(why...))
}

const trialOffset = 3 * disk.BlockSize

// trialBeside returns what makes trials in a file of its own beside path, which
// has no name, so that nothing is left of it when this process is killed.
func trialBeside(path string) func(context.Context) (*Trial, error) {
	return func(ctx context.Context) (*Trial, error) {
		b, err := trialBytes(ctx)
		if err != nil {
			return nil, err
		}
		f, err := os.CreateTemp(filepath.Dir(path), ".probe-")
		if err != nil {
			return nil, err
		}
		if err = os.Remove(f.Name()); err == nil {
			_, err = f.WriteAt(b, trialOffset)
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return &Trial{
			Source: Source{File(fmt.Sprintf("/proc/self/fd/%d", f.Fd())), trialOffset, int64(len(b))}, Own: true,
			Close: func() { _ = f.Close() }, // nothing is left to go wrong
		}, nil
	}
}
