package daxmem

import (
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// hugetlbRegion is a file on hugetlbfs, which has read(2) but no write(2)
// (fs/hugetlbfs/inode.c: hugetlbfs_file_operations has read_iter only), so
// bytes are stored through a mapping.
//
// Every huge page is fallocated before the first store into it: without a free
// page the store would be SIGBUS, fallocate is ENOSPC.
type hugetlbRegion struct {
	*fileRegion
	page int64

	// mu is held for reading while the mapping is in use, and for writing
	// while it or backed changes.
	mu     sync.RWMutex
	mem    []byte
	backed []bool // by huge page: fallocated by us; false means "not known"
}

func newHugetlb(f *fileRegion, page int64) (Region, error) {
	r := &hugetlbRegion{fileRegion: f, page: page}
	return r, r.remap()
}

// remap maps the file at its present size. Caller holds mu, or is alone.
func (r *hugetlbRegion) remap() error {
	if r.mem != nil {
		if err := unix.Munmap(r.mem); err != nil {
			return fmt.Errorf("unmap %s: %w", r.path, err)
		}
		r.mem = nil
	}
	size := r.Size()
	if size == 0 || r.ro {
		return nil
	}
	err := r.control("mmap", func(fd int) (err error) {
		// NORESERVE: the region is sparse; pages come from fallocate.
		r.mem, err = unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
		return err
	})
	r.backed = append(r.backed, make([]bool, size/r.page-int64(len(r.backed)))...)
	return err
}

func (r *hugetlbRegion) WriteAt(b []byte, off int64) (int, error) {
	if r.ro {
		return 0, errReadOnly(r)
	}
	if off < 0 || off > r.Size()-int64(len(b)) {
		return 0, fmt.Errorf("write %s: [%d,+%d) behind the end at %d: %w", r.path, off, len(b), r.Size(), io.ErrShortWrite)
	}
	if len(b) == 0 {
		return 0, nil
	}
	if err := r.back(off, int64(len(b))); err != nil {
		return 0, err
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.mem == nil {
		return 0, fmt.Errorf("write %s: %w", r.path, os.ErrClosed)
	}
	return copy(r.mem[off:], b), nil
}

// back makes sure that all huge pages under [off, off+n) exist.
func (r *hugetlbRegion) back(off, n int64) error {
	first, last := off/r.page, (off+n-1)/r.page
	r.mu.RLock()
	missing := false
	for p := first; p <= last; p++ {
		missing = missing || !r.backed[p]
	}
	r.mu.RUnlock()
	if !missing {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := first; p <= last; p++ {
		if r.backed[p] {
			continue
		}
		if err := r.fallocate(0, p*r.page, r.page); err != nil {
			return err
		}
		r.backed[p] = true
	}
	return nil
}

// Punch gives whole huge pages back and zeroes the rest, where it is backed.
// A neighbour may be storing into the same huge page, but not into [off, +n),
// so pages at the edges are never given back.
func (r *hugetlbRegion) Punch(off, n int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mem == nil {
		return fmt.Errorf("punch %s: %w", r.path, os.ErrClosed)
	}
	for end := off + n; off < end; {
		p := off / r.page
		to := min(end, (p+1)*r.page)
		if to-off == r.page {
			if err := r.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, r.page); err != nil {
				return err
			}
			r.backed[p] = false
		} else {
			// Not known to be backed: a load or store could be SIGBUS, so ask
			// for the page first. It may be one that was a hole.
			if !r.backed[p] {
				if hole, err := r.isHole(off, to-off); err != nil || hole {
					if err != nil {
						return err
					}
					off = to
					continue
				}
				if err := r.fallocate(0, p*r.page, r.page); err != nil {
					return err
				}
				r.backed[p] = true
			}
			clear(r.mem[off:to])
		}
		off = to
	}
	return nil
}

// isHole reports whether [off, off+n) reads as zeros, by read(2), which does
// not allocate.
func (r *hugetlbRegion) isHole(off, n int64) (bool, error) {
	b := make([]byte, min(n, int64(len(zeroChunk))))
	for n > 0 {
		b = b[:min(n, int64(len(b)))]
		if _, err := r.ReadAt(b, off); err != nil {
			return false, err
		}
		if !isZero(b) {
			return false, nil
		}
		off, n = off+int64(len(b)), n-int64(len(b))
	}
	return true, nil
}

// Window makes sure that its huge pages are there: without one, using it would
// be a fault.
func (r *hugetlbRegion) Window(off, n int64, writable bool) (Window, error) {
	if !r.ro { // else its owner has
		if err := r.back(off, n); err != nil {
			return nil, err
		}
	}
	// A mapping begins and ends with a huge page.
	first := off / r.page * r.page
	return r.fileRegion.Window(first, (off+n-first+r.page-1)/r.page*r.page, writable)
}

// Grow rounds up: hugetlbfs refuses other sizes.
func (r *hugetlbRegion) Grow(size int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.fileRegion.Grow((size + r.page - 1) / r.page * r.page); err != nil {
		return err
	}
	return r.remap()
}

func (r *hugetlbRegion) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var err error
	if r.mem != nil {
		err = unix.Munmap(r.mem)
		r.mem = nil
	}
	if cerr := r.fileRegion.Close(); err == nil {
		err = cerr
	}
	return err
}
