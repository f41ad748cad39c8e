package daxmem

import (
	"errors"
	"fmt"
	"io"
	"os"

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

	// Kind is a short word for the sort of memory ("file"), Path names it for
	// people.
	Kind() string
	Path() string

	// Sync returns when everything written and punched so far survives a loss
	// of power, as far as this kind of memory can.
	Sync() error

	// Punch makes [off, off+n) read as zeros and gives the memory behind it
	// back where it can. off and n are multiples of the block size.
	Punch(off, n int64) error

	// Allocated is how many bytes are really backed by memory or disk.
	Allocated() (int64, error)

	// Grow extends the region; the new bytes read as zeros.
	Grow(size int64) error

	Close() error
}

// CreateFile makes a sparse file of size bytes and takes ownership of it. On
// hugetlbfs size is rounded up to whole huge pages. A file that exists already
// is an error.
func CreateFile(path string, size int64) (Region, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create region: %w", err)
	}
	r, err := newFile(f, path, false)
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
func OpenFile(path string) (Region, error) { return openFile(path, os.O_RDWR) }

// OpenFileReadOnly opens a region for inspection. It takes no lock, so its
// owner may be writing meanwhile.
func OpenFileReadOnly(path string) (Region, error) { return openFile(path, os.O_RDONLY) }

func openFile(path string, mode int) (Region, error) {
	f, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, fmt.Errorf("open region: %w", err)
	}
	r, err := newFile(f, path, mode == os.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("open region: %w", errors.Join(err, f.Close()))
	}
	return r, nil
}

// newFile judges what f is and locks it.
func newFile(f *os.File, path string, readOnly bool) (Region, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, invalidf("%s: %v, want a regular file", path, fi.Mode().Type())
	}
	if !readOnly {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", path, ErrOwned)
		}
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("statfs %s: %w", path, err)
	}
	fr := &fileRegion{f: f, path: path}
	fr.size.Store(fi.Size())
	if st.Type == unix.HUGETLBFS_MAGIC {
		return newHugetlb(fr, int64(st.Bsize), readOnly) //nolint:unconvert // 32 bits on other architectures
	}
	return fr, nil
}
