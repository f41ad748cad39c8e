package daxmem

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// memfdRegion is an anonymous file in memory (memfd_create(2)). It lives as long
// as a descriptor of it, in any process, or a mapping. All of it is there from
// the beginning, and no page is ever replaced by another: a dma-buf over it has
// the pages that the file had when it was made.
type memfdRegion struct {
	*mappedRegion
	udmabuf udmabuf
	pages   pageTables
}

// memfdPrefix is what the names of our memfds begin with.
const memfdPrefix = "daxfs-"

// openMemfd opens the memory that some process has a descriptor of. Where there
// is none, its owner makes it.
func openMemfd(path string, l Location, a access) (Region, error) {
	f, err := findMemfd(l, a)
	if errors.Is(err, ErrNoMemory) && a == toOwn {
		f, err = newMemfd(l)
	}
	if err != nil {
		return nil, err
	}
	if a == toOwn {
		if err := lockFile(f); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	r := &mappedRegion{kind: KindMemfd, path: path, ro: a != toOwn, f: f, size: l.Size, unit: disk.BlockSize}
	if err := r.mapAll(); err != nil {
		return nil, err
	}
	return &memfdRegion{r, systemUdmabuf, newPageTables(r.size)}, nil
}

func (r *memfdRegion) WriteAt(p []byte, off int64) (int, error) {
	r.pages.fill(r.mem, off, int64(len(p)))
	return r.mappedRegion.WriteAt(p, off)
}

func (r *memfdRegion) Punch(off, n int64) error {
	r.pages.fill(r.mem, off, n)
	return r.mappedRegion.Punch(off, n)
}

// memfdLink is how /proc shows a descriptor of the memory.
func memfdLink(l Location) string { return "/memfd:" + memfdPrefix + l.Name + " (deleted)" }

// findMemfd looks for the memory in all processes. One of another user does not
// count, whatever its name.
func findMemfd(l Location, a access) (*os.File, error) {
	holders, err := findDescriptors(memfdLink(l))
	if err != nil {
		return nil, err
	}
	var found *os.File
	var where []string
	seen := map[uint64]bool{} // inodes
	for _, h := range holders {
		f, err := os.OpenFile(h.path(), a.mode(), 0)
		if errors.Is(err, os.ErrNotExist) {
			continue // closed meanwhile
		}
		var st unix.Stat_t
		if err == nil {
			err = unix.Fstat(int(f.Fd()), &st)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open memfd %s: %w", h.path(), err), closeAll(f, found))
		}
		if int(st.Uid) != os.Geteuid() || seen[st.Ino] {
			f.Close()
			continue
		}
		seen[st.Ino] = true
		where = append(where, fmt.Sprintf("%d bytes in process %d", st.Size, h.pid))
		if found != nil {
			f.Close()
			continue
		}
		found = f
		if st.Size != l.Size {
			err = invalidf("memfd %s has %d bytes in process %d, want %d", l.Name, st.Size, h.pid, l.Size)
		} else if seals, serr := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0); serr != nil || seals&memfdSeals != memfdSeals {
			err = invalidf("memfd %s in process %d can still change its size: it is not one of ours", l.Name, h.pid)
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	switch len(seen) {
	case 0:
		return nil, fmt.Errorf("no process has a memfd %s%s: %w", memfdPrefix, l.Name, ErrNoMemory)
	case 1:
		return found, nil
	}
	return nil, errors.Join(invalidf("there are %d memfds of that name: %s", len(seen), strings.Join(where, ", ")), found.Close())
}

// memfdSeals keep the size, which mappings rely on and udmabuf asks for.
const memfdSeals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW

// fallocateStep is how much is allocated by one system call.
const fallocateStep = 64 << 20

// closeAll closes those files that are open.
func closeAll(files ...*os.File) error {
	var errs []error
	for _, f := range files {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// newMemfd makes the memory, all of it: without a free page a store through the
// mapping would be a signal, fallocate is ENOSPC.
func newMemfd(l Location) (*os.File, error) {
	fd, err := unix.MemfdCreate(memfdPrefix+l.Name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make memfd %s: %w", l.Name, err)
	}
	f := os.NewFile(uintptr(fd), "memfd "+l.Name)
	for off := int64(0); off < l.Size && err == nil; off += fallocateStep {
		for err = unix.EINTR; errors.Is(err, unix.EINTR); { // which undoes the step
			err = unix.Fallocate(fd, 0, off, min(fallocateStep, l.Size-off))
		}
	}
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, memfdSeals|unix.F_SEAL_SEAL)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make memfd %s of %d bytes: %w", l.Name, l.Size, err), f.Close())
	}
	return f, nil
}

// DmaBuf makes a dma-buf of the memory's own pages. It keeps them, but not their
// name: see memfdRegion.
func (r *memfdRegion) DmaBuf() (buf *os.File, err error) {
	err = r.control(func(fd int) (err error) {
		buf, err = r.udmabuf.make(fd, r.size)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make a dma-buf of %s: %w", r.path, err)
	}
	return buf, nil
}
