package daxmem

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// dmaHeapRegion is a dma-buf that a heap of the kernel has allocated, cached
// and, on machines where devices see the processor's caches, coherent. It lives
// as long as a descriptor of it, a mapping, or a driver that uses it.
type dmaHeapRegion struct{ *mappedRegion }

// devDmaHeap has a device for each heap (CONFIG_DMABUF_HEAPS, Linux 5.6).
const devDmaHeap = "/dev/dma_heap"

// Of include/uapi/linux/dma-heap.h and dma-buf.h. DMA_HEAP_IOCTL_ALLOC takes
// struct dma_heap_allocation_data: length (64 bits), descriptor (32, out), its
// flags (32), flags of the heap (64).
const (
	dmaHeapAlloc  = 0xc0184800
	dmaBufSetName = 0x40086201 // DMA_BUF_SET_NAME_B: the name, at most 31 bytes
	dmaBufNameMax = 31
)

// hostOrder is how the kernel's structures are stored.
var hostOrder = binary.NativeEndian

// openDmaHeap allocates memory of a heap for its owner. Others find it in the
// owner's process.
func openDmaHeap(devices, path string, l Location, a access) (Region, error) {
	var f *os.File
	var err error
	if a == toOwn {
		f, err = allocDmaHeap(filepath.Join(devices, l.Name), l)
	} else {
		f, err = findDmaHeap(l)
	}
	if err != nil {
		return nil, err
	}
	r := &mappedRegion{kind: KindDmaHeap, path: path, ro: a != toOwn, f: f, size: l.Size, unit: disk.BlockSize}
	if err := r.mapAll(); err != nil {
		return nil, err
	}
	return &dmaHeapRegion{r}, nil
}

func allocDmaHeap(device string, l Location) (*os.File, error) {
	heap, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer heap.Close()
	arg := dmaHeapArgument(l.Size)
	if _, err := ioctl(int(heap.Fd()), dmaHeapAlloc, arg); err != nil {
		return nil, fmt.Errorf("allocate %d bytes of %s: %w", l.Size, device, err)
	}
	f := os.NewFile(uintptr(hostOrder.Uint32(arg[8:])), "dma-buf of "+device)
	if _, err := ioctl(int(f.Fd()), dmaBufSetName, append([]byte(dmaHeapName(l)), 0)); err != nil {
		return nil, errors.Join(fmt.Errorf("name the dma-buf of %s: %w", device, err), f.Close())
	}
	return f, nil
}

func dmaHeapArgument(size int64) []byte {
	b := hostOrder.AppendUint64(nil, uint64(size))
	b = hostOrder.AppendUint32(b, 0)
	b = hostOrder.AppendUint32(b, unix.O_RDWR|unix.O_CLOEXEC)
	return hostOrder.AppendUint64(b, 0)
}

// dmaHeapName is what a dma-buf is called, in /proc too.
func dmaHeapName(l Location) string {
	name := memfdPrefix + l.Name
	return name[:min(len(name), dmaBufNameMax)]
}

// findDmaHeap takes the dma-buf from the process that has it, which asks for the
// right to trace that process.
func findDmaHeap(l Location) (*os.File, error) {
	holders, err := findDescriptors("/dmabuf:" + dmaHeapName(l))
	if err != nil {
		return nil, err
	}
	var found *os.File
	seen := map[uint64]bool{} // inodes
	for _, h := range holders {
		f, err := takeDescriptor(h)
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EBADF) {
			continue // closed meanwhile
		}
		var st unix.Stat_t
		if err == nil {
			err = unix.Fstat(int(f.Fd()), &st)
		}
		var size int64
		if err == nil {
			size, err = f.Seek(0, io.SeekEnd) // a dma-buf tells its size
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("take descriptor %d of process %d: %w", h.fd, h.pid, err), closeAll(f, found))
		}
		if size != l.Size || found != nil {
			f.Close()
		} else {
			found = f
		}
		if size == l.Size {
			seen[st.Ino] = true
		}
	}
	switch len(seen) {
	case 0:
		return nil, fmt.Errorf("no process has a dma-buf %s of %d bytes: %w", dmaHeapName(l), l.Size, ErrNoMemory)
	case 1:
		return found, nil
	}
	return nil, errors.Join(invalidf("there are %d dma-bufs %s of %d bytes", len(seen), dmaHeapName(l), l.Size), found.Close())
}

// takeDescriptor returns a descriptor for what h refers to.
func takeDescriptor(h holder) (*os.File, error) {
	p, err := unix.PidfdOpen(h.pid, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(p) }()
	fd, err := unix.PidfdGetfd(p, h.fd, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), h.path()), nil
}

// DmaBuf returns another descriptor of the memory.
func (r *dmaHeapRegion) DmaBuf() (buf *os.File, err error) {
	err = r.control(func(fd int) error {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err == nil {
			buf = os.NewFile(uintptr(n), r.f.Name())
		}
		return err
	})
	return buf, err
}
