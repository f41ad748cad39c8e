package daxmem

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// devMem is physical memory as a file. Only its mapping is of use: read and
// write fail beyond the kernel's direct map (drivers/char/mem.c), which is
// where memory lies that is not the kernel's own.
const devMem = "/dev/mem"

// physRegion is a bare range of physical memory, mapped from /dev/mem: cached,
// since it is opened without O_SYNC, as the kernel maps it for its file systems.
// The memory of kernels on one machine is coherent, so that what one has stored
// the others read, in the order of the stores.
type physRegion struct {
	mem  *os.File // holds the owner's lock
	path string
	loc  Location
	ro   bool

	mu sync.RWMutex // held for reading while b is in use, for writing by Close
	b  []byte
}

// openPhys maps the range l of mem, which is called path.
func openPhys(mem, path string, l Location, a access) (Region, error) {
	if err := checkNotRAM(l); err != nil {
		return nil, err
	}
	prot := unix.PROT_READ
	if a == toOwn {
		prot |= unix.PROT_WRITE
	}
	f, err := os.OpenFile(mem, a.mode(), 0)
	if err != nil {
		return nil, explainDevMem(err)
	}
	r := &physRegion{mem: f, path: path, loc: l, ro: a != toOwn}
	if a == toOwn {
		err = lockRange(f, int64(l.Address), l.Size)
	}
	if err == nil {
		r.b, err = unix.Mmap(int(f.Fd()), int64(l.Address), int(l.Size), prot, unix.MAP_SHARED)
		err = explainDevMem(err)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return r, nil
}

// explainDevMem says what a refusal of physical memory means.
func explainDevMem(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("map %s: %w (the range belongs to a driver or to the kernel, or the kernel is locked down)", devMem, err)
	}
	if err != nil {
		return fmt.Errorf("map %s: %w", devMem, err)
	}
	return nil
}

// lockRange locks a range of /dev/mem against owners of any part of it. The
// lock belongs to the open file, not to the process, so that closing another
// descriptor of /dev/mem does not end it.
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
	f, err := os.Open("/proc/iomem")
	if err != nil {
		return err
	}
	defer f.Close()
	return findRAM(f, l)
}

// findRAM looks for System RAM in l in a text such as /proc/iomem's:
//
//	00001000-0009fbff : System RAM
//	  0000a000-0000bfff : one of its parts
//
// Without the right to see addresses they are all zero, and nothing is found.
func findRAM(iomem io.Reader, l Location) error {
	sc := bufio.NewScanner(iomem)
	for sc.Scan() {
		extent, name, ok := strings.Cut(strings.TrimSpace(sc.Text()), " : ")
		first, last, ok2 := strings.Cut(extent, "-")
		if !ok || !ok2 || name != "System RAM" {
			continue
		}
		from, err1 := strconv.ParseUint(first, 16, 64)
		to, err2 := strconv.ParseUint(last, 16, 64)
		if err1 != nil || err2 != nil {
			return fmt.Errorf("/proc/iomem: line %q is not understood", sc.Text())
		}
		if from < l.Address+uint64(l.Size) && to >= l.Address {
			return invalidf("[%#x,+%#x) overlaps System RAM at [%#x,%#x], which the kernel uses", l.Address, l.Size, from, to)
		}
	}
	return sc.Err()
}

// use gives the mapping to do until Close; it is nil after that.
func (r *physRegion) use(what string, do func(b []byte) (int, error)) (int, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.b == nil {
		return 0, fmt.Errorf("%s %s: %w", what, r.path, os.ErrClosed)
	}
	return do(r.b)
}

func (r *physRegion) ReadAt(p []byte, off int64) (int, error) {
	return r.use("read", func(b []byte) (int, error) {
		if off < 0 || off > int64(len(b)) {
			return 0, io.EOF
		}
		n := copy(p, b[off:])
		if n < len(p) {
			return n, io.EOF
		}
		return n, nil
	})
}

func (r *physRegion) WriteAt(p []byte, off int64) (int, error) {
	return r.use("write", func(b []byte) (int, error) {
		if err := r.writable(off, int64(len(p))); err != nil {
			return 0, err
		}
		return copy(b[off:], p), nil
	})
}

// Punch fills with zeros: memory cannot be given back.
func (r *physRegion) Punch(off, n int64) error {
	_, err := r.use("punch", func(b []byte) (int, error) {
		if err := r.writable(off, n); err != nil {
			return 0, err
		}
		clear(b[off : off+n])
		return 0, nil
	})
	return err
}

// writable judges a change of [off, off+n).
func (r *physRegion) writable(off, n int64) error {
	if r.ro {
		return errReadOnly(r)
	}
	if off < 0 || n < 0 || off > r.loc.Size-n {
		return fmt.Errorf("write %s: [%d,+%d) behind the end at %d: %w", r.path, off, n, r.loc.Size, io.ErrShortWrite)
	}
	return nil
}

// Window maps the range once more: only it is writable where the rest is not.
func (r *physRegion) Window(off, n int64, writable bool) (Window, error) {
	mode := os.O_RDONLY
	if writable {
		mode = os.O_RDWR
	}
	f, err := os.OpenFile(r.mem.Name(), mode, 0)
	if err != nil {
		return nil, explainDevMem(err)
	}
	defer f.Close()
	if off < 0 || n < 0 || off > r.loc.Size-n {
		return nil, invalidf("map %s: [%d,+%d) of %d bytes", r.path, off, n, r.loc.Size)
	}
	return mapWindow(int(f.Fd()), int64(r.loc.Address), off, n, writable)
}

func (r *physRegion) Private() bool    { return false }
func (r *physRegion) Persistent() bool { return false }

func (r *physRegion) Size() int64               { return r.loc.Size }
func (r *physRegion) Fixed() bool               { return true }
func (r *physRegion) Address() uint64           { return r.loc.Address }
func (r *physRegion) Kind() string              { return KindPhys }
func (r *physRegion) Path() string              { return r.path }
func (r *physRegion) Allocated() (int64, error) { return r.loc.Size, nil }

// Sync has nothing to do: what is stored is in the memory, or in a cache that
// all kernels of the machine see. It does not outlive a loss of power.
func (r *physRegion) Sync() error { return nil }

func (r *physRegion) Grow(size int64) error { return errFixed(r, size) }

func (r *physRegion) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.b == nil {
		return fmt.Errorf("close %s: %w", r.path, os.ErrClosed)
	}
	err := unix.Munmap(r.b)
	r.b = nil
	return errors.Join(err, r.mem.Close())
}

// errFixed is what Grow of a fixed region returns.
func errFixed(r Region, size int64) error {
	return invalidf("grow %s from %d to %d bytes: memory does not grow", r.Path(), r.Size(), size)
}
