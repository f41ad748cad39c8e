package engine

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// Daxfs mounts images with our kernel module (kmod/): the memory's own pages
// are mapped into processes, whoever shares them.
type Daxfs struct{}

// Name returns "daxfs".
func (*Daxfs) Name() string { return "daxfs" }

// suits says why a region is not for this engine.
func (*Daxfs) suits(r Region) error {
	if _, ok := r.(DmaBuf); ok {
		return nil
	}
	if r.Address() == 0 {
		return fmt.Errorf("%s is of kind %s, which has no physical address: %w", r.Path(), r.Kind(), ErrUnsuitable)
	}
	// What the module can make page structs for.
	if r.Address()%disk.HugeSize != 0 || r.Size()%disk.HugeSize != 0 {
		return fmt.Errorf("%s is memory at %#x of %d bytes, want multiples of 2 MiB: %w", r.Path(), r.Address(), r.Size(), ErrUnsuitable)
	}
	return nil
}

// Probe tries the module on the region's memory.
func (e *Daxfs) Probe(ctx context.Context, p Pool) Probe {
	probe := Probe{Engine: e.Name()}
	if err := e.suits(p.Region); err != nil {
		return probe.with(No, err.Error(), "a pool in memory: pool.path = \"phys:ADDRESS,size=SIZE\" or \"/dev/pmemN\"")
	}
	probe, ok := needs(probe, "daxfs", "build and load the module in kmod/ (kmod/README.md)")
	if !ok {
		return probe
	}
	return probeByTrial(ctx, probe, p, func(src Source, target string) (*Mount, error) { return e.Mount(ctx, src, target) })
}

// Mount mounts src by its physical address, or by a dma-buf.
func (e *Daxfs) Mount(_ context.Context, src Source, target string) (*Mount, error) {
	if err := e.suits(src.Region); err != nil {
		return nil, fmt.Errorf("mount %v with daxfs: %w", src, err)
	}
	m := &Mount{Engine: e.Name(), Method: "phys", Target: target}
	options := []option{{key: "offset", value: strconv.FormatInt(src.Offset, 10)}}
	if d, ok := src.Region.(DmaBuf); ok {
		f, err := d.DmaBuf()
		if err != nil {
			return nil, fmt.Errorf("mount %v with daxfs: %w", src, err)
		}
		defer f.Close()
		m.Method = "dmabuf"
		options = append(options, option{key: "dmabuf", fd: f})
	} else {
		options = append(options,
			option{key: "phys", value: fmt.Sprintf("%#x", src.Region.Address())},
			option{key: "size", value: strconv.FormatInt(src.Region.Size(), 10)})
	}
	if err := mountNew("daxfs", options, target); err != nil {
		return nil, fmt.Errorf("mount %v on %s with daxfs: %w", src, target, err)
	}
	return m.on(daxfsSuperblock(target)), nil
}

// daxfsSuperblock names the superblock that is mounted at target. Its name is
// MAJOR:MINOR.TIME, by the device and the nanoseconds from boot to mount; an
// earlier one of the same device may still be there. Without a name the mount
// works, and nobody can tell when it is gone.
func daxfsSuperblock(target string) []string {
	var st unix.Stat_t
	if unix.Stat(target, &st) != nil {
		return nil
	}
	found, err := filepath.Glob(fmt.Sprintf("%s/%d:%d.*", sysDaxfs, unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil || len(found) == 0 {
		return nil
	}
	return []string{slices.MaxFunc(found, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })}
}
