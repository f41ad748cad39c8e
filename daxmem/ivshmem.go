package daxmem

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

const sysPCI = "/sys/bus/pci/devices"

// PCI IDs of QEMU's ivshmem (docs/specs/ivshmem-spec), whose memory is BAR 2.
const (
	ivshmemVendor = 0x1af4
	ivshmemDevice = 0x1110
	ivshmemBAR    = 2
)

// openIvshmem maps the shared memory of an ivshmem device, called name, of a
// virtual machine. devices is a directory such as sysPCI.
func openIvshmem(devices, path, name string, a access) (_ Region, err error) {
	dir := filepath.Join(devices, name)
	address, size, err := ivshmemMemory(dir)
	if err != nil {
		return nil, err
	}
	if err := enablePCI(dir); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "resource2"), a.mode(), 0)
	if err != nil {
		return nil, err
	}
	if a == toOwn {
		if err := lockFile(lock); err != nil {
			return nil, errors.Join(err, lock.Close())
		}
	}
	r := &mappedRegion{kind: KindIvshmem, path: path, address: address, size: size, ro: a != toOwn, unit: disk.BlockSize, lock: lock}
	// Writes can be combined where the BAR allows it; without that each byte is
	// an access of its own. Atomic operations drain what was combined.
	r.f, err = os.OpenFile(filepath.Join(dir, "resource2_wc"), a.mode(), 0)
	if errors.Is(err, os.ErrNotExist) {
		r.f, err = os.OpenFile(filepath.Join(dir, "resource2"), a.mode(), 0)
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if err := r.mapAll(); err != nil {
		if errors.Is(err, unix.EINVAL) {
			err = fmt.Errorf("%w (it is mapped with other caching elsewhere)", err)
		}
		return nil, err
	}
	return r, nil
}

// enablePCI makes a device answer to memory accesses, which a driver would see
// to, but it has none. The file counts.
func enablePCI(dir string) error {
	file := filepath.Join(dir, "enable")
	n, err := readNumber(file)
	if err == nil && n == 0 {
		err = os.WriteFile(file, []byte("1"), 0)
	}
	if err != nil {
		return fmt.Errorf("enable PCI device %s: %w", filepath.Base(dir), err)
	}
	return nil
}

// ivshmemMemory is where the memory of the PCI device in dir is.
func ivshmemMemory(dir string) (address uint64, size int64, err error) {
	for _, id := range []struct {
		file string
		want uint64
	}{{"vendor", ivshmemVendor}, {"device", ivshmemDevice}} {
		got, err := readHex(filepath.Join(dir, id.file))
		if err != nil {
			return 0, 0, err
		}
		if got != id.want {
			return 0, 0, invalidf("PCI device %s has %s %#x, ivshmem has %#x", filepath.Base(dir), id.file, got, id.want)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "resource"))
	if err != nil {
		return 0, 0, err
	}
	// A line for each BAR: first and last address, flags.
	lines := strings.Split(string(b), "\n")
	if len(lines) <= ivshmemBAR {
		return 0, 0, fmt.Errorf("%s: %d lines, want more than %d", filepath.Join(dir, "resource"), len(lines), ivshmemBAR)
	}
	fields := strings.Fields(lines[ivshmemBAR])
	if len(fields) != 3 {
		return 0, 0, fmt.Errorf("%s: line %q is not understood", filepath.Join(dir, "resource"), lines[ivshmemBAR])
	}
	first, err1 := strconv.ParseUint(fields[0], 0, 64)
	last, err2 := strconv.ParseUint(fields[1], 0, 64)
	if err1 != nil || err2 != nil || last < first {
		return 0, 0, fmt.Errorf("%s: line %q is not understood", filepath.Join(dir, "resource"), lines[ivshmemBAR])
	}
	if first == 0 {
		return 0, 0, invalidf("PCI device %s has no memory: BAR %d is empty", filepath.Base(dir), ivshmemBAR)
	}
	return first, int64(last - first + 1), nil
}
