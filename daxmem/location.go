package daxmem

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// Location says where a region is. Which fields are set depends on the kind;
// Kinds has all of them.
type Location struct {
	// Path of a file, of a pmem block device or of a DAX device (/dev/dax0.0),
	// absolute; empty for all other kinds.
	Path string
	// Scheme is the kind of what has no path: KindPhys and so on. Empty means
	// KindPhys where Path is empty.
	Scheme string
	// Name is what is looked for or made: a resource of /proc/iomem (phys,
	// lazy-cma), a PCI device (ivshmem), a memfd, or a heap (dma-heap).
	Name string
	// Address of physical memory without a name, a multiple of 2 MiB.
	Address uint64
	// Size in bytes, a multiple of 2 MiB; 0: that of what is found.
	Size int64
}

const physPrefix = KindPhys + ":"

// maxPhysical is the end of what a physical address can be: 52 bits on x86-64
// and arm64.
const maxPhysical = 1 << 52

// form is how locations of a kind are written behind "KIND:".
type form struct {
	text string         // for people
	name *regexp.Regexp // of Name
	size sizeRule
	// fallback is the name where none is written, "" if one is needed.
	fallback string
}

type sizeRule int

const (
	noSize sizeRule = iota
	maySize
	mustSize
)

// resourceName is a name in /proc/iomem. One that does not begin with a letter
// is an address.
var (
	resourceName     = regexp.MustCompile(`^[A-Za-z][^,]*$`)
	beginsWithLetter = regexp.MustCompile(`^[A-Za-z]`)
)

var forms = map[string]form{
	KindPhys:    {"ADDRESS,size=SIZE or phys:NAME[,size=SIZE]", resourceName, maySize, ""},
	KindIvshmem: {"DOMAIN:BUS:DEVICE.FUNCTION, as 0000:00:05.0", regexp.MustCompile(`^[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`), noSize, ""},
	KindMemfd:   {"[NAME,]size=SIZE", regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`), mustSize, "pool"},
	KindDmaHeap: {"HEAP,size=SIZE", regexp.MustCompile(`^[A-Za-z0-9_-]+$`), mustSize, ""},
	// The driver cuts names at 63 bytes.
	KindLazyCMA: {"NAME[,size=SIZE]", regexp.MustCompile(`^[A-Za-z][^,]{0,62}$`), maySize, ""},
}

// ParseLocation reads the text form of a location: an absolute path, or
// "KIND:…" as Kinds has it. Numbers are decimal or hexadecimal with 0x; a size
// may have a unit ("4GiB").
func ParseLocation(s string) (Location, error) {
	if filepath.IsAbs(s) {
		return Location{Path: s}, nil
	}
	kind, rest, ok := strings.Cut(s, ":")
	f, known := forms[kind]
	if !ok || !known {
		return Location{}, invalidf("%q is neither an absolute path nor phys:ADDRESS,size=SIZE nor another of %s", s, strings.Join(schemes(), ", "))
	}
	if kind == KindPhys && !beginsWithLetter.MatchString(rest) {
		return parsePhys(s, rest)
	}
	l := Location{Scheme: kind, Name: rest}
	name, size, sized := strings.Cut(","+rest, ",size=")
	if sized {
		l.Name = strings.TrimPrefix(name, ",")
	}
	if l.Name == "" {
		l.Name = f.fallback
	}
	var err error
	switch {
	case sized && f.size == noSize, !sized && f.size == mustSize, !f.name.MatchString(l.Name):
		return Location{}, invalidf("%q: want %s:%s", s, kind, f.text)
	case sized:
		l.Size, err = parseSize(s, size)
	}
	if err != nil {
		return Location{}, err
	}
	return l, nil
}

// parsePhys reads ADDRESS,size=SIZE.
func parsePhys(s, rest string) (Location, error) {
	address, size, ok := strings.Cut(rest, ",size=")
	if !ok {
		return Location{}, invalidf("%q: want phys:ADDRESS,size=SIZE", s)
	}
	var l Location
	var err error
	if l.Address, err = strconv.ParseUint(address, 0, 64); err != nil {
		return Location{}, invalidf("%q: address %q: want a number, as 0x140000000", s, address)
	}
	// The page structs of a range are made and taken down in units of 2 MiB.
	if l.Address == 0 || l.Address%disk.HugeSize != 0 {
		return Location{}, invalidf("%q: address %#x is not a positive multiple of 2 MiB (%#x)", s, l.Address, disk.HugeSize)
	}
	if l.Size, err = parseSize(s, size); err != nil {
		return Location{}, err
	}
	if l.Address >= maxPhysical || uint64(l.Size) > maxPhysical-l.Address {
		return Location{}, invalidf("%q: [%#x,+%#x) is beyond the last physical address %#x", s, l.Address, l.Size, uint64(maxPhysical-1))
	}
	return l, nil
}

// parseSize reads the size in the text form s of a location.
func parseSize(s, size string) (int64, error) {
	n, err := strconv.ParseInt(size, 0, 64)
	if err != nil {
		if n, err = units.RAMInBytes(size); err != nil {
			return 0, invalidf("%q: size %q: want a number of bytes with an optional unit such as MiB or GiB", s, size)
		}
	}
	if n <= 0 || n%disk.HugeSize != 0 {
		return 0, invalidf("%q: size %d is not a positive multiple of 2 MiB (%d)", s, n, disk.HugeSize)
	}
	return n, nil
}

// Lock is what an owner of the region locks: a whole file or device (flock,
// size 0), or a range of one (a lock of the open file). An empty file: nothing,
// as nobody else can have that memory (dma-heap), or it is not there.
func (l Location) Lock() (file string, off, size int64) {
	switch l.scheme() {
	case "":
		return l.Path, 0, 0
	case KindIvshmem:
		return filepath.Join(sysPCI, l.Name, "resource2"), 0, 0
	case KindMemfd:
		if all, err := findDescriptors(memfdLink(l)); err == nil && len(all) > 0 {
			return all[0].path(), 0, 0
		}
		return "", 0, 0
	case KindPhys:
		if l.Name != "" {
			all, err := readIomem()
			if err == nil {
				l, err = findNamed(all, l)
			}
			if err != nil {
				return "", 0, 0
			}
		}
		return devMem, int64(l.Address), l.Size
	case KindLazyCMA:
		all, err := readIomem()
		if err != nil {
			return "", 0, 0
		}
		if l, err = findLazyCMA(all, l); err != nil {
			return "", 0, 0
		}
		return devLazyCMA, int64(l.Address), l.Size
	}
	return "", 0, 0
}

// Made reports whether an owner makes the memory where there is none.
func (l Location) Made() bool {
	switch l.scheme() {
	case "":
		return filepath.Dir(l.Path) != "/dev"
	case KindMemfd, KindDmaHeap:
		return true
	case KindLazyCMA:
		return l.Size > 0
	}
	return false
}

// scheme is the kind of what has no path.
func (l Location) scheme() string {
	if l.Path == "" && l.Scheme == "" {
		return KindPhys
	}
	return l.Scheme
}

// String is the canonical text form.
func (l Location) String() string {
	switch {
	case l.Path != "":
		return l.Path
	case l.Name == "":
		return fmt.Sprintf("%s%#x,size=%d", physPrefix, l.Address, l.Size)
	case l.Size == 0:
		return l.scheme() + ":" + l.Name
	}
	return fmt.Sprintf("%s:%s,size=%d", l.scheme(), l.Name, l.Size)
}
