package daxmem

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync"

	"golang.org/x/sys/unix"
)

// Window is a part of a region that several kernels use at the same time, word
// by word (docs/memory-model.md). Offsets are those of the region. Methods are
// safe for concurrent use. A fault of the memory behind it (a device that is
// gone, a file that was cut short) is an error.
type Window interface {
	// Load and Store move one little-endian word at a multiple of 8, in one
	// piece. Where CAS is supported they are sequentially consistent.
	Load(off int64) (uint64, error)
	Store(off int64, v uint64) error
	// CompareAndSwap stores v where old is, and reports whether it was.
	CompareAndSwap(off int64, old, v uint64) (bool, error)
	// Atomic reports whether CompareAndSwap decides between writers of several
	// kernels.
	Atomic() bool

	io.ReaderAt
	io.WriterAt
	Close() error
}

// mappedWindow is a window over a shared mapping.
type mappedWindow struct {
	off int64 // of b in the region

	mu sync.RWMutex // held for reading while b is in use, for writing by Close
	b  []byte
}

// mapWindow maps [off, off+n) of fd, which is at base in it.
func mapWindow(fd int, base, off, n int64, writable bool) (Window, error) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		return nil, fmt.Errorf("map [%d,+%d): this processor stores the high byte of a word first: %w", off, n, ErrUnsupported)
	}
	if off%blockSize != 0 || n <= 0 {
		return nil, invalidf("map [%d,+%d): want whole blocks", off, n)
	}
	prot := unix.PROT_READ
	if writable {
		prot |= unix.PROT_WRITE
	}
	b, err := unix.Mmap(fd, base+off, int(n), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map [%d,+%d): %w", off, n, err)
	}
	return &mappedWindow{off: off, b: b}, nil
}

// at gives the mapping from off on, n bytes, to do. Reading memory that is gone
// is a fault, which Go turns into a panic here.
func (w *mappedWindow) at(off, n int64, do func(b []byte)) (err error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.b == nil {
		return os.ErrClosed
	}
	i := off - w.off
	if i < 0 || n < 0 || i > int64(len(w.b))-n {
		return fmt.Errorf("[%d,+%d) is outside the window [%d,+%d): %w", off, n, w.off, len(w.b), io.ErrUnexpectedEOF)
	}
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(interface{ Addr() uintptr }); !ok {
				panic(r)
			}
			err = fmt.Errorf("[%d,+%d): the memory is gone: %w", off, n, ErrFault)
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	do(w.b[i : i+n])
	return nil
}

func (w *mappedWindow) Load(off int64) (v uint64, err error) {
	err = w.at(off, 8, func(b []byte) { v = loadWord(b) })
	return v, err
}

func (w *mappedWindow) Store(off int64, v uint64) error {
	return w.at(off, 8, func(b []byte) { storeWord(b, v) })
}

func (w *mappedWindow) CompareAndSwap(off int64, old, v uint64) (swapped bool, err error) {
	err = w.at(off, 8, func(b []byte) { swapped = casWord(b, old, v) })
	return swapped, err
}

func (w *mappedWindow) Atomic() bool { return true }

func (w *mappedWindow) ReadAt(p []byte, off int64) (int, error) {
	if err := w.at(off, int64(len(p)), func(b []byte) { copy(p, b) }); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (w *mappedWindow) WriteAt(p []byte, off int64) (int, error) {
	if err := w.at(off, int64(len(p)), func(b []byte) { copy(b, p) }); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (w *mappedWindow) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.b == nil {
		return nil
	}
	err := unix.Munmap(w.b)
	w.b = nil
	return err
}

// directWindow is a window over memory that can only be read and written. Its
// compare-and-swap holds against this process only.
type directWindow struct {
	io.ReaderAt
	io.WriterAt
	swap sync.Mutex
}

func (w *directWindow) Load(off int64) (uint64, error) {
	var b [8]byte
	if _, err := w.ReadAt(b[:], off); err != nil {
		return 0, err
	}
	return le.Uint64(b[:]), nil
}

func (w *directWindow) Store(off int64, v uint64) error {
	_, err := w.WriteAt(le.AppendUint64(nil, v), off)
	return err
}

func (w *directWindow) CompareAndSwap(off int64, old, v uint64) (bool, error) {
	w.swap.Lock()
	defer w.swap.Unlock()
	now, err := w.Load(off)
	if err != nil || now != old {
		return false, err
	}
	return true, w.Store(off, v)
}

func (w *directWindow) Atomic() bool { return false }
func (w *directWindow) Close() error { return nil }

// windowError adds what a window was used for.
func windowError(what string, err error) error {
	if err == nil || errors.Is(err, os.ErrClosed) {
		return err
	}
	return fmt.Errorf("%s: %w", what, err)
}
