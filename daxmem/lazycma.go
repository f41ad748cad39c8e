package daxmem

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// The driver lazy_cma (github.com/multikernel/lazy_cma, commit 01d09123)
// allocates contiguous memory while the kernel runs. An allocation is known by
// its physical address, has an entry of its own in /proc/iomem, and stays until
// it is freed or the driver is unloaded, whatever becomes of the process.
const (
	devLazyCMA = "/dev/lazy_cma"

	// LAZY_CMA_IOCTL_ALLOC takes struct lazy_cma_allocation_data: length, address
	// (64 bits each, the address out), NUMA node (32, -1 is any), padding (32),
	// name (64 bytes).
	lazyCMAAlloc   = 0xc0584800
	lazyCMAArgSize = 88
	lazyCMAName    = 24
)

// lazyCMA is the driver, and how to ask it.
type lazyCMA struct {
	device string
	iomem  func() ([]*resource, error)
	alloc  func(f *os.File, name string, size int64) (address uint64, err error)
}

// open maps the allocation called l.Name. Where there is none, its owner makes
// it, for which l has to have a size. The driver maps an allocation from its
// beginning only, so that windows begin there, too.
func (d lazyCMA) open(path string, l Location, a access) (Region, error) {
	f, err := os.OpenFile(d.device, a.mode(), 0)
	if err != nil {
		return nil, err
	}
	at, fresh, err := d.find(f, l, a)
	if err == nil && a == toOwn {
		err = lockRange(f, int64(at.Address), at.Size)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	r := &mappedRegion{
		kind: KindLazyCMA, path: path, address: at.Address, ro: a != toOwn,
		f: f, base: int64(at.Address), size: at.Size,
	}
	if err := r.mapAll(); err != nil {
		return nil, err
	}
	if fresh { // the driver gives it with what was in it, which nobody needs
		if err := r.Punch(0, r.size); err != nil {
			return nil, errors.Join(err, r.Close())
		}
	}
	return r, nil
}

// find returns where the allocation is, and whether it was made just now.
func (d lazyCMA) find(f *os.File, l Location, a access) (at Location, fresh bool, err error) {
	all, err := d.iomem()
	if err != nil {
		return Location{}, false, err
	}
	at, err = findLazyCMA(all, l)
	if !errors.Is(err, ErrNoMemory) || a != toOwn || l.Size == 0 {
		return at, false, err
	}
	address, err := d.alloc(f, l.Name, l.Size)
	if err != nil {
		return Location{}, false, fmt.Errorf("allocate %d bytes from %s: %w", l.Size, d.device, err)
	}
	return Location{Address: address, Size: l.Size}, true, nil
}

// findLazyCMA finds the one allocation that l means. Its range is inside System
// RAM, from which the driver took it.
func findLazyCMA(all []*resource, l Location) (Location, error) {
	if hidden(all) {
		return Location{}, fmt.Errorf("/proc/iomem shows no addresses to this process: %w", os.ErrPermission)
	}
	var fit []Location
	var seen []string
	for _, r := range resourcesNamed(all, l.Name) {
		seen = append(seen, r.String())
		if size := int64(r.to - r.from + 1); r.free() && (l.Size == 0 || l.Size == size) {
			fit = append(fit, Location{Address: r.from, Size: size})
		}
	}
	switch {
	case len(seen) == 0:
		return Location{}, fmt.Errorf("/proc/iomem has no %q: %w", l.Name, ErrNoMemory)
	case len(fit) != 1:
		wanted := "without other resources in them"
		if l.Size != 0 {
			wanted = fmt.Sprintf("%s and of %d bytes", wanted, l.Size)
		}
		return Location{}, invalidf("/proc/iomem has %d resources %q, %d of them %s, want 1: %s", len(seen), l.Name, len(fit), wanted, strings.Join(seen, ", "))
	}
	return fit[0], nil
}

// allocLazyCMA allocates memory of any NUMA node.
func allocLazyCMA(f *os.File, name string, size int64) (uint64, error) {
	arg := lazyCMAArgument(name, size)
	_, err := ioctl(int(f.Fd()), lazyCMAAlloc, arg)
	if errors.Is(err, unix.ENOMEM) {
		err = fmt.Errorf("%w (there is not so much contiguous memory: try soon after booting)", err)
	}
	if err != nil {
		return 0, err
	}
	return hostOrder.Uint64(arg[8:]), nil
}

func lazyCMAArgument(name string, size int64) []byte {
	b := make([]byte, lazyCMAArgSize)
	hostOrder.PutUint64(b, uint64(size))
	hostOrder.PutUint32(b[16:], ^uint32(0))
	copy(b[lazyCMAName:], name)
	return b
}
