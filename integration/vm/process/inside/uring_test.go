package inside

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// uring is an io_uring for one request at a time (include/uapi/linux/io_uring.h).
type uring struct {
	fd         int
	sq, cq     []byte
	sqes       []byte
	tail, head *uint32
	sqTail     *uint32
	mask       uint32
	cqes       []byte
}

// Operations and flags of io_uring.
const (
	opReadFixed, opWriteFixed, opRead, opWrite = 4, 5, 22, 23

	registerBuffers = 0
	enterGetEvents  = 1
)

func newURing(t *testing.T) *uring {
	t.Helper()
	// struct io_uring_params: sq_entries, cq_entries, flags, sq_thread_cpu,
	// sq_thread_idle, features, wq_fd, resv[3], sq_off, cq_off (40 bytes each)
	var p [120]byte
	fd, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&p[0])), 0)
	if e != 0 {
		t.Fatalf("io_uring_setup: %v", e)
	}
	r := &uring{fd: int(fd)}
	t.Cleanup(func() { unix.Close(r.fd) })
	word := func(at int) int { return int(binary.LittleEndian.Uint32(p[at:])) }
	entries, cqEntries := word(0), word(4)
	const sqOff, cqOff = 40, 80
	sqArray, cqesAt := word(sqOff+24), word(cqOff+20)
	ring := func(at int64, n int) []byte {
		b, err := unix.Mmap(r.fd, at, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		must(t, err)
		t.Cleanup(func() { unix.Munmap(b) })
		return b
	}
	r.sq = ring(0, sqArray+4*entries)
	r.cq = ring(0x8000000, cqesAt+16*cqEntries)
	r.sqes = ring(0x10000000, 64*entries)
	at := func(b []byte, off int) *uint32 { return (*uint32)(unsafe.Pointer(&b[off])) }
	r.sqTail = at(r.sq, word(sqOff+4))
	*at(r.sq, sqArray) = 0 // always the first entry
	r.head, r.tail = at(r.cq, word(cqOff)), at(r.cq, word(cqOff+4))
	r.mask = *at(r.cq, word(cqOff+8))
	r.cqes = r.cq[cqesAt:]
	for i := range entries {
		*at(r.sq, sqArray+4*i) = 0
	}
	return r
}

// do does one request and returns what the system call would have.
func (r *uring) do(op uint8, fd int, b []byte, off int64) (int, error) {
	clear(r.sqes[:64])
	r.sqes[0] = op
	binary.LittleEndian.PutUint32(r.sqes[4:], uint32(fd))
	binary.LittleEndian.PutUint64(r.sqes[8:], uint64(off))
	*(*uintptr)(unsafe.Pointer(&r.sqes[16])) = uintptr(unsafe.Pointer(&b[0]))
	binary.LittleEndian.PutUint32(r.sqes[24:], uint32(len(b)))
	atomic.AddUint32(r.sqTail, 1)
	// A signal, of which Go's runtime sends some, ends the waiting.
	for submit := uintptr(1); atomic.LoadUint32(r.tail) == *r.head; {
		n, _, e := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), submit, 1, enterGetEvents, 0, 0)
		if e != 0 && e != unix.EINTR {
			return 0, e
		}
		if e == 0 {
			submit -= min(submit, n)
		}
	}
	cqe := r.cqes[16*(*r.head&r.mask):]
	res := int32(binary.LittleEndian.Uint32(cqe[8:]))
	atomic.AddUint32(r.head, 1)
	if res < 0 {
		return 0, unix.Errno(-res)
	}
	return int(res), nil
}

// register pins b as buffer 0.
func (r *uring) register(b []byte) error {
	iov := unix.Iovec{Base: &b[0], Len: uint64(len(b))}
	_, _, e := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), registerBuffers, uintptr(unsafe.Pointer(&iov)), 1, 0, 0)
	return result(e)
}

// TestAIO: the older way to read asynchronously.
func TestAIO(t *testing.T) {
	onViews(t, "native v8 nopages overlay", func(t *testing.T, m *mounted) {
		const rel = "data/65536"
		f := m.open(t, rel)
		var ctx uintptr
		if _, _, e := unix.Syscall(unix.SYS_IO_SETUP, 4, uintptr(unsafe.Pointer(&ctx)), 0); e != 0 {
			t.Fatalf("io_setup: %v", e)
		}
		defer unix.Syscall(unix.SYS_IO_DESTROY, ctx, 0, 0)
		b := make([]byte, 10000)
		// struct iocb: data, key, rw_flags, opcode, prio, fd, buf, nbytes, offset
		iocb := struct {
			data         uint64
			key, rwFlags uint32
			opcode, prio uint16
			fd           uint32
			buf          *byte
			n            uint64
			off          int64
			_            [3]uint64
		}{fd: uint32(f.Fd()), buf: &b[0], n: uint64(len(b)), off: 77} // opcode 0: read
		list := []unsafe.Pointer{unsafe.Pointer(&iocb)}
		if n, _, e := unix.Syscall(unix.SYS_IO_SUBMIT, ctx, 1, uintptr(unsafe.Pointer(&list[0]))); n != 1 {
			t.Fatalf("io_submit: %v", e)
		}
		var event struct{ data, obj, res, res2 int64 }
		if n, _, e := unix.Syscall6(unix.SYS_IO_GETEVENTS, ctx, 1, 1, uintptr(unsafe.Pointer(&event)), 0, 0); n != 1 || event.res != int64(len(b)) {
			t.Fatalf("io_getevents: %d, result %d, %v, want 1, %d", n, event.res, e, len(b))
		}
		wantFill(t, "read by aio", b, rel, 77)
	})
}

// TestURing reads a file, and writes out of mappings of it, with O_DIRECT and
// without.
func TestURing(t *testing.T) {
	onViews(t, "native v8 pool nopages overlay", func(t *testing.T, m *mounted) {
		r := newURing(t)
		const rel = "data/65536"
		f := m.open(t, rel)
		b := make([]byte, 10000)
		if n, err := r.do(opRead, int(f.Fd()), b, 5); n != len(b) || err != nil {
			t.Fatalf("read: %d, %v, want %d", n, err, len(b))
		}
		wantFill(t, "read by io_uring", b, rel, 5)

		disk := ext4(t, 64<<20)
		for _, direct := range []int{0, unix.O_DIRECT} {
			for _, k := range bothKinds {
				path := filepath.Join(disk, "out")
				fd, err := unix.Open(path, unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY|direct, 0o600)
				must(t, err)
				defer unix.Close(fd)
				mem := mapPath(t, m.path(rel), unix.PROT_READ, k.flags)
				n, err := r.do(opWrite, fd, mem.b, 0)
				// Without O_DIRECT bytes are copied, by the processor.
				if direct != 0 && !m.reachable(k.flags) {
					if !errors.Is(err, unix.EFAULT) {
						t.Errorf("direct, %s: write: %d, %v, want %v", k.name, n, err, unix.EFAULT)
					}
					continue
				}
				if n != 65536 || err != nil {
					t.Errorf("flags %#x, %s: write: %d, %v, want 65536", direct, k.name, n, err)
				}
				got, err := os.ReadFile(path)
				must(t, err)
				wantFill(t, k.name+" by io_uring", got, rel, 0)
				mem.unmap()
			}
		}

		mem := mapPath(t, m.path(rel), unix.PROT_READ, unix.MAP_SHARED)
		other := m.open(t, "data/8193")
		if n, err := r.do(opRead, int(other.Fd()), mem.b[:100], 0); !errors.Is(err, unix.EFAULT) {
			t.Errorf("read into a shared mapping: %d, %v, want %v", n, err, unix.EFAULT)
		}
		m.wantUnchanged(t, rel)
	})
}

// TestURingBuffers registers mappings as buffers, which pins their pages to be
// written to: shared ones are refused, private ones become copies. 6.1 refuses
// all memory of files but that of tmpfs and hugetlbfs.
func TestURingBuffers(t *testing.T) {
	onViews(t, "native pool nopages overlay", func(t *testing.T, m *mounted) {
		r := newURing(t)
		const rel = "data/65536"
		shared := mapPath(t, m.path(rel), unix.PROT_READ, unix.MAP_SHARED)
		if err := r.register(shared.b); !errors.Is(err, unix.EFAULT) && !errors.Is(err, unix.EOPNOTSUPP) {
			t.Errorf("register a shared mapping: %v, want %v", err, unix.EFAULT)
		}
		mem := mapPath(t, m.path(rel), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
		mem.touch()
		err := r.register(mem.b)
		if config.Kernel == "6.1" {
			if !errors.Is(err, unix.EOPNOTSUPP) {
				t.Errorf("register a private mapping: %v, want %v", err, unix.EOPNOTSUPP)
			}
			return
		}
		if err != nil {
			t.Fatalf("register a private mapping: %v", err)
		}
		wantFill(t, "registered", mem.b, rel, 0)
		if config.FS == "daxfs" {
			for _, pfn := range mem.frames(t) {
				wantPrivate(t, "page of a registered buffer", pfn)
			}
		}
		out := filepath.Join(scratch(t), "out")
		f, err := os.Create(out)
		must(t, err)
		defer f.Close()
		if n, err := r.do(opWriteFixed, int(f.Fd()), mem.b, 0); n != 65536 || err != nil {
			t.Errorf("write from it: %d, %v, want 65536", n, err)
		}
		got, err := os.ReadFile(out)
		must(t, err)
		wantFill(t, "written from a registered buffer", got, rel, 0)
		other := m.open(t, "data/8193")
		if n, err := r.do(opReadFixed, int(other.Fd()), mem.b[:8193], 0); n != 8193 || err != nil {
			t.Errorf("read into it: %d, %v, want 8193", n, err)
		}
		wantFill(t, "read into a registered buffer", mem.b[:8193], "data/8193", 0)
		if want, err := os.ReadFile(m.path("data/8193")); err != nil || !bytes.Equal(mem.b[:8193], want) {
			t.Error("a registered buffer is not what the process sees")
		}
		m.wantUnchanged(t, rel)
	})
}
