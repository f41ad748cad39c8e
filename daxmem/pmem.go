package daxmem

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// pmemRegion is a block device over persistent memory. It is read and written
// with O_DIRECT: what goes through the page cache, a mapping of the device
// included, is this kernel's copy and not the memory that others share.
type pmemRegion struct {
	f       *os.File
	path    string
	size    int64
	address uint64
	sector  int64 // unit of direct I/O, bytes, a power of two
	ro      bool

	buffers sync.Pool  // of directSize bytes, aligned
	partial sync.Mutex // held while a sector is read, changed and written
}

// directSize is the most that one system call moves; directAlign suits the
// memory alignment that any driver asks for.
const (
	directSize  = 1 << 20
	directAlign = 4096
)

func openPmem(path string, a access) (Region, error) {
	f, err := os.OpenFile(path, a.mode()|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	r := &pmemRegion{f: f, path: path, ro: a != toOwn}
	r.buffers.New = func() any { b := alignedBytes(directSize, directAlign); return &b }
	err = r.inspect()
	if err == nil && a == toOwn {
		err = lockFile(f)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return r, nil
}

// inspect finds out what the device is, and refuses one that cannot be mapped.
func (r *pmemRegion) inspect() error {
	var st unix.Stat_t
	if err := unix.Fstat(int(r.f.Fd()), &st); err != nil {
		return fmt.Errorf("stat %s: %w", r.path, err)
	}
	sys := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	if dax, err := os.ReadFile(filepath.Join(sys, "queue/dax")); err != nil || strings.TrimSpace(string(dax)) != "1" {
		return invalidf("%s is a block device without DAX: a pool on a disk is a file in a file system, and pmem in another mode than raw or fsdax, or a partition, cannot be used", r.path)
	}
	sector, err := unix.IoctlGetInt(int(r.f.Fd()), unix.BLKSSZGET)
	if err != nil {
		return fmt.Errorf("sector size of %s: %w", r.path, err)
	}
	r.sector = int64(sector)
	size, err := r.f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	r.size = size &^ (disk.BlockSize - 1)
	// Needed by some only.
	r.address, _ = readHex(filepath.Join(sys, "device/resource"))
	return nil
}

// readHex reads a number such as 0x140000000 from a file.
func readHex(file string) (uint64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(b)), 0, 64)
}

func (r *pmemRegion) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > r.size {
		return 0, io.EOF
	}
	short := int64(len(p)) > r.size-off
	if short {
		p = p[:r.size-off]
	}
	buf := r.buffers.Get().(*[]byte)
	defer r.buffers.Put(buf)
	n := 0
	for n < len(p) {
		start, skip, whole := r.sectors(off+int64(n), len(p)-n)
		if _, err := r.f.ReadAt((*buf)[:whole], start); err != nil {
			return n, err
		}
		n += copy(p[n:], (*buf)[skip:whole])
	}
	if short {
		return n, io.EOF
	}
	return n, nil
}

func (r *pmemRegion) WriteAt(p []byte, off int64) (int, error) {
	if r.ro {
		return 0, errReadOnly(r)
	}
	return r.write(p, off)
}

func (r *pmemRegion) write(p []byte, off int64) (int, error) {
	if off < 0 || off > r.size-int64(len(p)) {
		return 0, fmt.Errorf("write %s: [%d,+%d) behind the end at %d: %w", r.path, off, len(p), r.size, io.ErrShortWrite)
	}
	buf := r.buffers.Get().(*[]byte)
	defer r.buffers.Put(buf)
	n := 0
	for n < len(p) {
		start, skip, whole := r.sectors(off+int64(n), len(p)-n)
		w, err := r.writeSectors((*buf)[:whole], start, skip, p[n:])
		n += w
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// sectors returns the whole sectors around the next part of [off, off+n) that a
// buffer holds: where they start, where in them off is, and their bytes.
func (r *pmemRegion) sectors(off int64, n int) (start int64, skip, whole int) {
	start = off &^ (r.sector - 1)
	skip = int(off - start)
	whole = int(min(disk.AlignUp(int64(skip)+int64(n), r.sector), directSize))
	return start, skip, whole
}

// writeSectors writes as much of p as fits behind buf[skip] to the sectors at
// start, and returns how much that is. What is beside it in the first and the
// last sector keeps its bytes.
func (r *pmemRegion) writeSectors(buf []byte, start int64, skip int, p []byte) (int, error) {
	n := min(len(p), len(buf)-skip)
	if end := skip + n; skip > 0 || end < len(buf) {
		r.partial.Lock()
		defer r.partial.Unlock()
		edges := [][2]int{{0, int(r.sector)}, {len(buf) - int(r.sector), len(buf)}}
		for _, e := range edges {
			if _, err := r.f.ReadAt(buf[e[0]:e[1]], start+int64(e[0])); err != nil {
				return 0, err
			}
		}
	}
	copy(buf[skip:], p[:n])
	_, err := r.f.WriteAt(buf, start)
	return n, err
}

// Punch fills with zeros: memory cannot be given back.
func (r *pmemRegion) Punch(off, n int64) error { return writeZeros(r, off, n) }

// Window goes through the device: a mapping of it is the page cache.
func (r *pmemRegion) Window(off, n int64, writable bool) (Window, error) {
	if !writable {
		return &directWindow{ReaderAt: r, WriterAt: writer(func([]byte, int64) (int, error) { return 0, errReadOnly(r) })}, nil
	}
	return &directWindow{ReaderAt: r, WriterAt: writer(func(p []byte, at int64) (int, error) {
		if at < off || at > off+n-int64(len(p)) {
			return 0, fmt.Errorf("write %s: [%d,+%d) is outside the window [%d,+%d): %w", r.path, at, len(p), off, n, os.ErrPermission)
		}
		return r.write(p, at)
	})}, nil
}

// writer is an io.WriterAt made of a function.
type writer func(p []byte, off int64) (int, error)

func (w writer) WriteAt(p []byte, off int64) (int, error) { return w(p, off) }

func (r *pmemRegion) Private() bool    { return false }
func (r *pmemRegion) Persistent() bool { return true }

func (r *pmemRegion) Size() int64               { return r.size }
func (r *pmemRegion) Fixed() bool               { return true }
func (r *pmemRegion) Address() uint64           { return r.address }
func (r *pmemRegion) Kind() string              { return KindPmem }
func (r *pmemRegion) Path() string              { return r.path }
func (r *pmemRegion) Allocated() (int64, error) { return r.size, nil }
func (r *pmemRegion) Grow(size int64) error     { return errFixed(r, size) }
func (r *pmemRegion) Close() error              { return r.f.Close() }

// Sync makes the device flush, which for memory of a virtual machine is the
// host's business.
func (r *pmemRegion) Sync() error { return r.f.Sync() }
