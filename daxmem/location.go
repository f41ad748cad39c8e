package daxmem

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// Location says where a region is: in a file, on a pmem block device, or in a
// bare range of physical memory.
type Location struct {
	// Path of the file or block device, absolute; empty for physical memory.
	Path string
	// Address and Size of physical memory, bytes, multiples of 2 MiB.
	Address uint64
	Size    int64
}

const physPrefix = "phys:"

// maxPhysical is the end of what a physical address can be: 52 bits on x86-64
// and arm64.
const maxPhysical = 1 << 52

// ParseLocation reads the text form of a location: an absolute path, or
// "phys:ADDRESS,size=SIZE". Numbers are decimal or hexadecimal with 0x; a size
// may have a unit ("4GiB").
func ParseLocation(s string) (Location, error) {
	rest, ok := strings.CutPrefix(s, physPrefix)
	if !ok {
		if !filepath.IsAbs(s) {
			return Location{}, invalidf("%q is neither an absolute path nor phys:ADDRESS,size=SIZE", s)
		}
		return Location{Path: s}, nil
	}
	address, size, ok := strings.Cut(rest, ",size=")
	if !ok {
		return Location{}, invalidf("%q: want phys:ADDRESS,size=SIZE", s)
	}
	var l Location
	var err error
	if l.Address, err = strconv.ParseUint(address, 0, 64); err != nil {
		return Location{}, invalidf("%q: address %q: want a number, as 0x140000000", s, address)
	}
	if l.Size, err = strconv.ParseInt(size, 0, 64); err != nil {
		if l.Size, err = units.RAMInBytes(size); err != nil {
			return Location{}, invalidf("%q: size %q: want a number of bytes with an optional unit such as MiB or GiB", s, size)
		}
	}
	// The page structs of a range are made and taken down in units of 2 MiB.
	switch {
	case l.Address == 0 || l.Address%disk.HugeSize != 0:
		return Location{}, invalidf("%q: address %#x is not a positive multiple of 2 MiB (%#x)", s, l.Address, disk.HugeSize)
	case l.Size <= 0 || l.Size%disk.HugeSize != 0:
		return Location{}, invalidf("%q: size %d is not a positive multiple of 2 MiB (%d)", s, l.Size, disk.HugeSize)
	case l.Address >= maxPhysical || uint64(l.Size) > maxPhysical-l.Address:
		return Location{}, invalidf("%q: [%#x,+%#x) is beyond the last physical address %#x", s, l.Address, l.Size, uint64(maxPhysical-1))
	}
	return l, nil
}

// LockFile is what an owner of the region locks: the whole file or device, or
// of /dev/mem the range.
func (l Location) LockFile() string {
	if l.Path != "" {
		return l.Path
	}
	return devMem
}

// String is the canonical text form.
func (l Location) String() string {
	if l.Path != "" {
		return l.Path
	}
	return fmt.Sprintf("%s%#x,size=%d", physPrefix, l.Address, l.Size)
}
