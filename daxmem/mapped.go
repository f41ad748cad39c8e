package daxmem

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// mappedRegion is memory of a fixed size behind a shared mapping: of a device,
// or of a descriptor that is memory. What one kernel has stored the others read,
// in the order of the stores: the memory of one machine is coherent. Memory that
// is gone (a device that was removed, a page that the hardware gave up) is
// ErrFault.
type mappedRegion struct {
	kind, path string
	address    uint64 // physical, 0: none, or not known
	persistent bool
	ro         bool // but for windows

	f    *os.File
	lock *os.File // holds the owner's lock; nil: f does
	base int64    // of the region in f
	size int64
	unit int64 // mappings begin and end at multiples of it; 0: they begin with the region

	mem *mappedWindow // all of it
}

// mapAll maps the region, and takes f and lock over: when it fails, it closes
// them.
func (r *mappedRegion) mapAll() error {
	prot := unix.PROT_READ
	if !r.ro {
		prot |= unix.PROT_WRITE
	}
	var err error
	if r.size < disk.BlockSize || r.size%disk.BlockSize != 0 {
		err = invalidf("%s is memory of %d bytes, want whole blocks", r.path, r.size)
	} else {
		err = r.control(func(fd int) error {
			b, err := unix.Mmap(fd, r.base, int(r.size), prot, unix.MAP_SHARED)
			r.mem = &mappedWindow{b: b}
			return err
		})
	}
	if err == nil {
		return nil
	}
	return errors.Join(err, r.closeFiles())
}

func (r *mappedRegion) closeFiles() error {
	err := r.f.Close()
	if r.lock != nil {
		err = errors.Join(err, r.lock.Close())
	}
	return err
}

// control runs a system call on the descriptor that is mapped, which stays open
// meanwhile.
func (r *mappedRegion) control(call func(fd int) error) error {
	c, err := r.f.SyscallConn()
	if err != nil {
		return fmt.Errorf("map %s: %w", r.f.Name(), err)
	}
	cerr := c.Control(func(fd uintptr) { err = call(int(fd)) })
	if cerr != nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("map %s: %w", r.f.Name(), err)
	}
	return nil
}

func (r *mappedRegion) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > r.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), r.size-off))
	if _, err := r.mem.ReadAt(p[:n], off); err != nil {
		return 0, fmt.Errorf("read %s: %w", r.path, err)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (r *mappedRegion) WriteAt(p []byte, off int64) (int, error) {
	if err := r.writable(off, int64(len(p))); err != nil {
		return 0, err
	}
	if _, err := r.mem.WriteAt(p, off); err != nil {
		return 0, fmt.Errorf("write %s: %w", r.path, err)
	}
	return len(p), nil
}

// Punch fills with zeros: memory cannot be given back.
func (r *mappedRegion) Punch(off, n int64) error {
	if err := r.writable(off, n); err != nil {
		return err
	}
	if err := r.mem.at(off, n, func(b []byte) { clear(b) }); err != nil {
		return fmt.Errorf("punch %s: %w", r.path, err)
	}
	return nil
}

// writable judges a change of [off, off+n).
func (r *mappedRegion) writable(off, n int64) error {
	if r.ro {
		return errReadOnly(r)
	}
	if off < 0 || n < 0 || off > r.size-n {
		return fmt.Errorf("write %s: [%d,+%d) behind the end at %d: %w", r.path, off, n, r.size, io.ErrShortWrite)
	}
	return nil
}

// Window maps a part once more: only it is writable where the rest is not, as
// far as the memory can be mapped in such parts.
func (r *mappedRegion) Window(off, n int64, writable bool) (Window, error) {
	if off < 0 || n <= 0 || off > r.size-n {
		return nil, invalidf("map %s: [%d,+%d) of %d bytes", r.path, off, n, r.size)
	}
	from, to := int64(0), off+n
	if r.unit > 0 {
		from, to = off/r.unit*r.unit, min((off+n+r.unit-1)/r.unit*r.unit, r.size)
	}
	var w Window
	err := r.control(func(fd int) (err error) {
		w, err = mapWindow(fd, r.base, from, to-from, writable)
		return err
	})
	if err != nil {
		return nil, err
	}
	if from != off || to != off+n {
		w = &partWindow{Window: w, off: off, n: n}
	}
	return w, nil
}

func (r *mappedRegion) Private() bool    { return false }
func (r *mappedRegion) Persistent() bool { return r.persistent }

func (r *mappedRegion) Size() int64               { return r.size }
func (r *mappedRegion) Fixed() bool               { return true }
func (r *mappedRegion) Address() uint64           { return r.address }
func (r *mappedRegion) Kind() string              { return r.kind }
func (r *mappedRegion) Path() string              { return r.path }
func (r *mappedRegion) Allocated() (int64, error) { return r.size, nil }
func (r *mappedRegion) Grow(size int64) error     { return errFixed(r, size) }

// Sync has nothing to do: what is stored is in the memory, or in a cache that
// all kernels of the machine see. It does not outlive a loss of power.
func (r *mappedRegion) Sync() error { return nil }

func (r *mappedRegion) Close() error {
	err := r.mem.Close()
	if cerr := r.closeFiles(); cerr != nil {
		err = errors.Join(err, fmt.Errorf("close %s: %w", r.path, cerr))
	}
	return err
}

// errFixed is what Grow of a fixed region returns.
func errFixed(r Region, size int64) error {
	return invalidf("grow %s from %d to %d bytes: memory does not grow", r.Path(), r.Size(), size)
}

// partWindow is [off, off+n) of a window that had to be larger.
type partWindow struct {
	Window
	off, n int64
}

func (w *partWindow) check(off, n int64) error {
	if off < w.off || off > w.off+w.n-n {
		return fmt.Errorf("[%d,+%d) is outside the window [%d,+%d): %w", off, n, w.off, w.n, io.ErrUnexpectedEOF)
	}
	return nil
}

func (w *partWindow) Load(off int64) (uint64, error) {
	if err := w.check(off, 8); err != nil {
		return 0, err
	}
	return w.Window.Load(off)
}

func (w *partWindow) Store(off int64, v uint64) error {
	if err := w.check(off, 8); err != nil {
		return err
	}
	return w.Window.Store(off, v)
}

func (w *partWindow) CompareAndSwap(off int64, old, v uint64) (bool, error) {
	if err := w.check(off, 8); err != nil {
		return false, err
	}
	return w.Window.CompareAndSwap(off, old, v)
}

func (w *partWindow) ReadAt(p []byte, off int64) (int, error) {
	if err := w.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	return w.Window.ReadAt(p, off)
}

func (w *partWindow) WriteAt(p []byte, off int64) (int, error) {
	if err := w.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	return w.Window.WriteAt(p, off)
}
