package daxmem

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// fileRegion is a sparse file, read and written with pread and pwrite: a store
// through a mapping would turn a full disk into SIGBUS.
type fileRegion struct {
	f    *os.File
	path string
	size atomic.Int64
	ro   bool // but for windows

	memory bool // the file system keeps it in memory
}

func (r *fileRegion) ReadAt(b []byte, off int64) (int, error)  { return r.f.ReadAt(b, off) }
func (r *fileRegion) Size() int64                              { return r.size.Load() }
func (r *fileRegion) Fixed() bool                              { return false }
func (r *fileRegion) Address() uint64                          { return 0 }
func (r *fileRegion) WriteAt(b []byte, off int64) (int, error) {
	if r.ro {
		return 0, errReadOnly(r)
	}
	return r.f.WriteAt(b, off)
}

// errReadOnly is what writes fail with in a region that is not its owner's.
func errReadOnly(r Region) error { return fmt.Errorf("write %s: %w", r.Path(), os.ErrPermission) }

// Private: only a file in memory is given to guests. On a disk it would be the
// host's page cache that they share, and nothing says that it stays.
func (r *fileRegion) Private() bool    { return !r.memory }
func (r *fileRegion) Persistent() bool { return !r.memory }

func (r *fileRegion) Window(off, n int64, writable bool) (w Window, err error) {
	err = r.control("map", func(fd int) (err error) {
		w, err = mapWindow(fd, 0, off, n, writable)
		return err
	})
	return w, err
}

func (r *fileRegion) Kind() string                             { return KindFile }
func (r *fileRegion) Path() string                             { return r.path }
func (r *fileRegion) Close() error                             { return r.f.Close() }

// Sync also drops the file's clean pages from the page cache: whoever mounts an
// image has a copy of what it reads there, and one is enough. On tmpfs, where
// the page cache is the file, it does nothing.
func (r *fileRegion) Sync() error {
	if err := r.control("fdatasync", func(fd int) error { return unix.Fdatasync(fd) }); err != nil {
		return err
	}
	return r.control("fadvise", func(fd int) error { return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) })
}

func (r *fileRegion) Punch(off, n int64) error {
	if r.ro {
		return errReadOnly(r)
	}
	err := r.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return writeZeros(r, off, n) // costs the space, keeps the promise
	}
	return err
}

func (r *fileRegion) Allocated() (int64, error) {
	var st unix.Stat_t
	err := r.control("stat", func(fd int) error { return unix.Fstat(fd, &st) })
	return st.Blocks * 512, err
}

func (r *fileRegion) Grow(size int64) error {
	if size < r.Size() {
		return invalidf("grow %s from %d to %d bytes", r.path, r.Size(), size)
	}
	if err := r.f.Truncate(size); err != nil {
		return err
	}
	r.size.Store(size)
	return nil
}

// Refresh notices that the owner has made the file longer.
func (r *fileRegion) Refresh() error {
	st, err := r.f.Stat()
	if err != nil {
		return err
	}
	r.size.Store(st.Size())
	return nil
}

func (r *fileRegion) fallocate(mode uint32, off, n int64) error {
	return r.control("fallocate", func(fd int) error { return unix.Fallocate(fd, mode, off, n) })
}

// control runs a system call on the descriptor, which stays open meanwhile
// even when another goroutine closes the region.
func (r *fileRegion) control(what string, call func(fd int) error) error {
	c, err := r.f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := c.Control(func(fd uintptr) {
		for {
			if err = call(int(fd)); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
	if cerr != nil {
		return fmt.Errorf("%s %s: %w", what, r.path, cerr)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, r.path, err)
	}
	return nil
}

var zeroChunk [64 << 10]byte

func writeZeros(r Region, off, n int64) error {
	for n > 0 {
		c := min(n, int64(len(zeroChunk)))
		if _, err := r.WriteAt(zeroChunk[:c], off); err != nil {
			return err
		}
		off, n = off+c, n-c
	}
	return nil
}
