package daxmem

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// devMem is physical memory as a file. Only its mapping is of use: read and
// write fail beyond the kernel's direct map (drivers/char/mem.c), which is
// where memory lies that is not the kernel's own.
const devMem = "/dev/mem"

// openPhys maps the range l of mem, which is called path. The mapping is cached,
// since mem is opened without O_SYNC, as the kernel maps it for its file systems.
func openPhys(mem, path string, l Location, a access) (Region, error) {
	if err := checkNotRAM(l); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(mem, a.mode(), 0)
	if err != nil {
		return nil, explainDevMem(err)
	}
	if a == toOwn {
		if err := lockRange(f, int64(l.Address), l.Size); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	r := &mappedRegion{
		kind: KindPhys, path: path, address: l.Address, ro: a != toOwn,
		f: f, base: int64(l.Address), size: l.Size, unit: disk.BlockSize,
	}
	if err := r.mapAll(); err != nil {
		return nil, explainDevMem(err)
	}
	return r, nil
}

// openPhysNamed maps what /proc/iomem calls l.Name.
func openPhysNamed(path string, l Location, a access) (Region, error) {
	all, err := readIomem()
	if err != nil {
		return nil, err
	}
	at, err := findNamed(all, l)
	if err != nil {
		return nil, err
	}
	return openPhys(devMem, path, at, a)
}

// explainDevMem says what a refusal of physical memory means.
func explainDevMem(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("map %s: %w (the range belongs to a driver or to the kernel, or the kernel is locked down)", devMem, err)
	}
	return err
}

// lockRange locks a range of a device against owners of any part of it. The
// lock belongs to the open file, not to the process, so that closing another
// descriptor of the device does not end it.
func lockRange(f *os.File, off, n int64) error {
	lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: off, Len: n}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%s at [%#x,+%#x): %w", f.Name(), off, n, ErrOwned)
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return nil
}

// checkNotRAM refuses memory that the kernel uses itself. Most kernels do not
// let it be mapped anyway; with the others a wrong address would destroy them.
func checkNotRAM(l Location) error {
	all, err := readIomem()
	if err != nil {
		return err
	}
	return findRAM(all, l)
}
