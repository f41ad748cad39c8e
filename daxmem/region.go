package daxmem

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Region is the range of bytes that a pool lives in. Offsets are bytes from
// its start, whatever its address. Methods are safe for concurrent use on
// ranges that do not overlap.
type Region interface {
	io.ReaderAt
	// WriteAt stores b or fails; a full medium is ENOSPC, never a signal. A
	// write of 8 bytes at a multiple of 8 is not torn.
	io.WriterAt

	Size() int64

	// Window gives [off, off+n), whole blocks, for words that several kernels
	// use. It ends with Close of its own.
	Window(off, n int64, writable bool) (Window, error)

	// Private reports whether no other kernel can have the region: its owner's
	// end by a reboot is then the end of all that used it.
	Private() bool

	// Persistent reports whether the region outlives a loss of power, but for
	// writes since the last Sync.
	Persistent() bool

	// Fixed reports whether the region is as large as it will ever be: Grow
	// fails. Such a region is memory, and begins with whatever was in it.
	Fixed() bool

	// Address is the physical address of the first byte, and so of all, in this
	// kernel. 0: there is none, or it is not known.
	Address() uint64

	// Kind is the sort of memory, KindFile and so on. Path is the text form of
	// its Location.
	Kind() string
	Path() string

	// Sync returns when everything written and punched so far survives a loss
	// of power, as far as this kind of memory can.
	Sync() error

	// Punch makes [off, off+n) read as zeros and gives the memory behind it
	// back where it can; a fixed region cannot. off and n are multiples of the
	// block size.
	Punch(off, n int64) error

	// Allocated is how many bytes are really backed by memory or disk.
	Allocated() (int64, error)

	// Grow extends the region; the new bytes read as zeros.
	Grow(size int64) error

	Close() error
}

// ErrNoMemory: the memory that a location names is not there. It is not
// os.ErrNotExist, which for a file means that it can be made.
var ErrNoMemory = fmt.Errorf("daxmem: no such memory: %w", errdefs.ErrNotFound)

// access is what a region is opened for.
type access int

const (
	toInspect access = iota // no lock, nothing is written
	toAttach                // no lock; writable windows, and else nothing is written
	toOwn                   // lock
)

// mode is how the file or device of a region is opened.
func (a access) mode() int {
	if a == toInspect {
		return os.O_RDONLY
	}
	return os.O_RDWR
}

// OpenRegion opens the region at a location, in its text form, for its owner:
// there is one at a time in this kernel, until Close or the end of the process.
// ErrOwned tells that there is another. Owners in other kernels are not seen.
func OpenRegion(location string) (Region, error) { return openRegion(location, toOwn) }

// OpenRegionShared opens a region for a reader: it is mapped read-only, but for
// windows. It takes no lock.
func OpenRegionShared(location string) (Region, error) { return openRegion(location, toAttach) }

// OpenRegionReadOnly opens a region for inspection. It takes no lock, so its
// owner may be writing meanwhile.
func OpenRegionReadOnly(location string) (Region, error) { return openRegion(location, toInspect) }

func openRegion(location string, a access) (Region, error) {
	l, err := ParseLocation(location)
	if err != nil {
		return nil, fmt.Errorf("open region: %w", err)
	}
	if l.Path == "" {
		r, err := openMemory(location, l, a)
		if errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("%v: %w", err, ErrNoMemory) //nolint:errorlint // hides os.ErrNotExist
		}
		if err != nil {
			return nil, fmt.Errorf("open region %s: %w", location, err)
		}
		return r, nil
	}
	fi, err := os.Stat(l.Path)
	if err != nil {
		return nil, fmt.Errorf("open region: %w", err)
	}
	var open func(path string, a access) (Region, error)
	switch fi.Mode().Type() {
	case os.ModeDevice:
		open = openPmem
	case os.ModeDevice | os.ModeCharDevice:
		open = openDevdax
	case 0:
		return openFile(l.Path, a)
	default:
		return nil, invalidf("open region: %s: %v, want a regular file, a pmem block device or a DAX device", l.Path, fi.Mode().Type())
	}
	r, err := open(l.Path, a)
	if err != nil {
		return nil, fmt.Errorf("open region %s: %w", location, err)
	}
	return r, nil
}

// openMemory opens a region that has no path.
func openMemory(location string, l Location, a access) (Region, error) {
	switch l.scheme() {
	case KindIvshmem:
		return openIvshmem(sysPCI, location, l.Name, a)
	case KindMemfd:
		return openMemfd(location, l, a)
	case KindDmaHeap:
		return openDmaHeap(devDmaHeap, location, l, a)
	case KindLazyCMA:
		return lazyCMA{device: devLazyCMA, iomem: readIomem, alloc: allocLazyCMA}.open(location, l, a)
	}
	if l.Name != "" {
		return openPhysNamed(location, l, a)
	}
	return openPhys(devMem, location, l, a)
}

// CreateFile makes a sparse file of size bytes and takes ownership of it. On
// hugetlbfs size is rounded up to whole huge pages. A file that exists already
// is an error.
func CreateFile(path string, size int64) (Region, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create region: %w", err)
	}
	r, err := newFile(f, path, toOwn)
	if err == nil {
		err = r.Grow(size)
	}
	if err != nil {
		return nil, fmt.Errorf("create region: %w", errors.Join(err, f.Close(), os.Remove(path)))
	}
	return r, nil
}

// OpenFile opens a region for its owner: there is one at a time, until Close
// or the end of the process. ErrOwned tells that there is another.
func OpenFile(path string) (Region, error) { return openFile(path, toOwn) }

// OpenFileReadOnly opens a region for inspection. It takes no lock, so its
// owner may be writing meanwhile.
func OpenFileReadOnly(path string) (Region, error) { return openFile(path, toInspect) }

func openFile(path string, a access) (Region, error) {
	f, err := os.OpenFile(path, a.mode(), 0)
	if err != nil {
		return nil, fmt.Errorf("open region: %w", err)
	}
	r, err := newFile(f, path, a)
	if err != nil {
		return nil, fmt.Errorf("open region: %w", errors.Join(err, f.Close()))
	}
	return r, nil
}

// newFile judges what f is and locks it.
func newFile(f *os.File, path string, a access) (Region, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, invalidf("%s: %v, want a regular file", path, fi.Mode().Type())
	}
	if a == toOwn {
		if err := lockFile(f); err != nil {
			return nil, err
		}
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("statfs %s: %w", path, err)
	}
	fr := &fileRegion{f: f, path: path, ro: a != toOwn, memory: st.Type == unix.HUGETLBFS_MAGIC || st.Type == unix.TMPFS_MAGIC}
	fr.size.Store(fi.Size())
	if st.Type == unix.HUGETLBFS_MAGIC {
		return newHugetlb(fr, int64(st.Bsize)) //nolint:unconvert // 32 bits on other architectures
	}
	return fr, nil
}

// lockFile takes the owner's lock, which ends with the descriptor.
func lockFile(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%s: %w", f.Name(), ErrOwned)
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return nil
}
