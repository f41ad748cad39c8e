package inside

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel reaches a process's pages in other ways than the processor does.
// Mappings of a nopages mount without page structs cannot be reached: shared
// ones give EFAULT, private ones are copies, which can.

// reachable reports whether the kernel can get the pages of a mapping.
func (m *mounted) reachable(flags int) bool {
	return !m.nopages() || flags&unix.MAP_SHARED == 0
}

var bothKinds = []struct {
	name  string
	flags int
}{{"shared", unix.MAP_SHARED}, {"private", unix.MAP_PRIVATE}}

// TestProcessVM: another process's memory is read, whether it has touched it or
// not, and written where it is private.
func TestProcessVM(t *testing.T) {
	onViews(t, "native v8 pool nopages overlay", func(t *testing.T, m *mounted) {
		const rel = "data/65536"
		for _, k := range bothKinds {
			s := m.subject(t, "subject-static", "map", m.path(rel), k.name)
			addr := s.addresses()[0]
			b := make([]byte, 20000)
			n, err := readVM(s.pid(), addr+100, b)
			if !m.reachable(k.flags) {
				if !errors.Is(err, unix.EFAULT) {
					t.Errorf("%s: process_vm_readv: %d, %v, want %v", k.name, n, err, unix.EFAULT)
				}
			} else if n != len(b) || err != nil {
				t.Errorf("%s: process_vm_readv: %d, %v, want %d", k.name, n, err, len(b))
			} else {
				wantFill(t, k.name+" by process_vm_readv", b, rel, 100)
			}
			// The mapping is not writable.
			if n, err := writeVM(s.pid(), addr, []byte("x")); !errors.Is(err, unix.EFAULT) {
				t.Errorf("%s: process_vm_writev to a read-only mapping: %d, %v, want %v", k.name, n, err, unix.EFAULT)
			}
			s.end()
		}

		s := m.subject(t, "subject-static", "map", m.path(rel), "private", "write")
		addr := s.addresses()[0]
		text := []byte("written by another process")
		at := addr + 2*pageSize - 5 // across a border
		if n, err := writeVM(s.pid(), at, text); n != len(text) || err != nil {
			t.Errorf("process_vm_writev: %d, %v, want %d", n, err, len(text))
		}
		b := make([]byte, len(text))
		if n, err := readVM(s.pid(), at, b); n != len(b) || !bytes.Equal(b, text) {
			t.Errorf("process_vm_readv afterwards: %q, %v, want %q", b[:max(n, 0)], err, text)
		}
		if config.FS == "daxfs" {
			for i, pfn := range frames(t, s.pid(), addr, 3) {
				wantPrivate(t, fmt.Sprintf("page %d, written", i), pfn)
			}
		}
		s.end()
		m.wantUnchanged(t, rel)
	})
}

// TestProcessVMFirstTouch: process_vm_readv faults in what nobody has touched.
func TestProcessVMFirstTouch(t *testing.T) {
	onViews(t, "native v8 pool overlay", func(t *testing.T, m *mounted) {
		const rel = "data/65536"
		for _, k := range bothKinds {
			mem := mapPath(t, m.path(rel), unix.PROT_READ, k.flags)
			b := make([]byte, 65536)
			if n, err := readVM(os.Getpid(), mem.addr, b); n != len(b) || err != nil {
				t.Errorf("%s: %d, %v, want %d", k.name, n, err, len(b))
			}
			wantFill(t, k.name, b, rel, 0)
			if config.FS == "daxfs" {
				m.wantFrames(t, rel, 0, mem.frames(t))
			}
		}
	})
}

// TestProcMem: /proc/PID/mem reads all, and writes, as a debugger does, to
// private copies and to nothing else.
func TestProcMem(t *testing.T) {
	onViews(t, "native v8 pool nopages overlay", func(t *testing.T, m *mounted) {
		const rel = "data/65536"
		for _, k := range bothKinds {
			s := m.subject(t, "subject-static", "map", m.path(rel), k.name)
			addr := int64(s.addresses()[0])
			f, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", s.pid()), os.O_RDWR, 0)
			must(t, err)
			defer f.Close()
			b := make([]byte, 10000)
			n, err := f.ReadAt(b, addr+4000)
			if !m.reachable(k.flags) {
				if n != 0 || err == nil {
					t.Errorf("%s: read: %d, %v, want an error", k.name, n, err)
				}
			} else if n != len(b) || err != nil {
				t.Errorf("%s: read: %d, %v, want %d", k.name, n, err, len(b))
			} else {
				wantFill(t, k.name+" by /proc/PID/mem", b, rel, 4000)
			}
			// Kernels with CONFIG_PROC_MEM_FORCE_PTRACE take it from a debugger only.
			s.debugged(func() { n, err = f.WriteAt([]byte("breakpoint"), addr+8190) })
			if k.flags == unix.MAP_SHARED {
				if n != 0 || err == nil {
					t.Errorf("shared: write: %d, %v, want an error", n, err)
				}
				s.end()
				continue
			}
			if n != 10 || err != nil {
				t.Errorf("private: write: %d, %v, want 10", n, err)
			}
			want := make([]byte, 65536)
			Fill(want, rel, 0)
			copy(want[8190:], "breakpoint")
			b = make([]byte, 65536)
			if n, err := f.ReadAt(b, addr); n != len(b) || !bytes.Equal(b, want) {
				t.Errorf("private: %d bytes, %v, are not the file's with what was written", n, err)
			}
			if config.FS == "daxfs" {
				for i, pfn := range frames(t, s.pid(), uintptr(addr), 4) {
					if i == 1 || i == 2 {
						wantPrivate(t, fmt.Sprintf("page %d, written", i), pfn)
					} else if m.inPlace() {
						m.wantFrames(t, rel, i, []uint64{pfn})
					}
				}
			}
			s.end()
		}
		m.wantUnchanged(t, rel)
	})
}

// TestDirectFromMapping writes with O_DIRECT out of a mapping to another file
// system, which takes the pages themselves.
func TestDirectFromMapping(t *testing.T) {
	onViews(t, "native v8 pool nopages overlay", func(t *testing.T, m *mounted) {
		disk := ext4(t, 64<<20)
		rel := FillName(2 << 20)
		for _, k := range bothKinds {
			for _, touch := range []bool{false, true} {
				if touch && !m.reachable(k.flags) {
					continue
				}
				mem := mapPath(t, m.path(rel), unix.PROT_READ, k.flags)
				if touch {
					mem.touch()
				}
				out := filepath.Join(disk, "out")
				fd, err := unix.Open(out, unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY|unix.O_DIRECT, 0o600)
				must(t, err)
				n, err := unix.Write(fd, mem.b[pageSize:])
				unix.Close(fd)
				if !m.reachable(k.flags) {
					if !errors.Is(err, unix.EFAULT) {
						t.Errorf("%s: write: %d, %v, want %v", k.name, n, err, unix.EFAULT)
					}
					continue
				}
				if n != 2<<20-pageSize || err != nil {
					t.Errorf("%s: write: %d, %v, want %d", k.name, n, err, 2<<20-pageSize)
				}
				b, err := os.ReadFile(out)
				must(t, err)
				wantFill(t, k.name+" by O_DIRECT", b, rel, pageSize)
				mem.unmap()
			}
		}

		// And reads into one, which makes copies of private pages.
		out := filepath.Join(disk, "in")
		must(t, os.WriteFile(out, bytes.Repeat([]byte{0xee}, 4*pageSize), 0o600))
		fd, err := unix.Open(out, unix.O_RDONLY|unix.O_DIRECT, 0)
		must(t, err)
		defer unix.Close(fd)
		mem := mapPath(t, m.path(rel), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
		mem.touch()
		if n, err := unix.Pread(fd, mem.b[pageSize:5*pageSize], 0); n != 4*pageSize || err != nil {
			t.Errorf("read into a private mapping: %d, %v, want %d", n, err, 4*pageSize)
		}
		if !bytes.Equal(mem.b[pageSize:5*pageSize], bytes.Repeat([]byte{0xee}, 4*pageSize)) {
			t.Error("what was read into a private mapping is not there")
		}
		wantFill(t, "around it", mem.b[:pageSize], rel, 0)
		wantFill(t, "around it", mem.b[5*pageSize:], rel, 5*pageSize)
		shared := mapPath(t, m.path(rel), unix.PROT_READ, unix.MAP_SHARED)
		if n, err := unix.Pread(fd, shared.b[:pageSize], 0); err != unix.EFAULT {
			t.Errorf("read into a shared mapping: %d, %v, want %v", n, err, unix.EFAULT)
		}
		m.wantUnchanged(t, rel)
	})
}

// TestVmsplice: pages of a mapping in a pipe.
func TestVmsplice(t *testing.T) {
	onViews(t, "native v8 pool nopages overlay", func(t *testing.T, m *mounted) {
		const rel = "data/65536"
		for _, k := range bothKinds {
			mem := mapPath(t, m.path(rel), unix.PROT_READ, k.flags)
			r, w := pipe(t)
			n, err := vmsplice(w, mem.b[10:8200])
			if !m.reachable(k.flags) {
				if !errors.Is(err, unix.EFAULT) {
					t.Errorf("%s: %d, %v, want %v", k.name, n, err, unix.EFAULT)
				}
				continue
			}
			if n != 8190 || err != nil {
				t.Errorf("%s: %d, %v, want 8190", k.name, n, err)
				continue
			}
			mem.unmap() // what the pipe has is its own
			b := make([]byte, n)
			if _, err := r.Read(b); err != nil {
				t.Error(err)
			}
			wantFill(t, k.name+" by vmsplice", b, rel, 10)
		}
	})
}

func vmsplice(w *os.File, b []byte) (int, error) {
	return unix.Vmsplice(int(w.Fd()), []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}, 0)
}

// TestPinsOutliveMount: pages in a pipe stay what they are when the mount is
// gone; the region waits for them, can be mounted again meanwhile, and goes
// away with the last.
func TestPinsOutliveMount(t *testing.T) {
	daxfsOnly(t)
	const rel = "data/65536"
	m := native(t)
	wantRegions(t, 1)
	mem := mapPath(t, m.path(rel), unix.PROT_READ, unix.MAP_SHARED)
	r, w := pipe(t)
	if n, err := vmsplice(w, mem.b); n != len(mem.b) || err != nil {
		t.Fatalf("vmsplice: %d, %v, want %d", n, err, len(mem.b))
	}
	mem.unmap()
	must(t, unix.Unmount(m.root, 0))

	if lines := regions(t); len(lines) != 1 {
		t.Fatalf("regions while pages are pinned: %q, want one", lines)
	}
	if err := unix.DeleteModule("daxfs", 0); err == nil {
		t.Error("the module could be removed while pages are pinned")
	}
	again := native(t)
	again.wantUnchanged(t, rel)
	other := mapPath(t, again.path(rel), unix.PROT_READ, unix.MAP_PRIVATE)
	other.touch()
	again.wantFrames(t, rel, 0, other.frames(t))
	other.unmap()
	must(t, unix.Unmount(again.root, 0))

	time.Sleep(time.Second)
	if lines := regions(t); len(lines) != 1 {
		t.Errorf("regions a second later: %q, want one", lines)
	}
	b := make([]byte, 65536)
	for got := 0; got < len(b); {
		n, err := r.Read(b[got:])
		must(t, err)
		got += n
	}
	wantFill(t, "pipe after unmounting", b, rel, 0)
	wantRegions(t, 0)
}

// regions are the lines of /sys/fs/daxfs/regions.
func regions(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("/sys/fs/daxfs/regions")
	must(t, err)
	return strings.FieldsFunc(string(b), func(r rune) bool { return r == '\n' })
}

// wantRegions waits until there are n regions.
func wantRegions(t *testing.T, n int) {
	t.Helper()
	var lines []string
	for range 200 {
		if lines = regions(t); len(lines) == n {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("regions after 20 s: %q, want %d", lines, n)
}

// TestFutex: private futexes, which are known by their address, work on a mapped
// page. Shared ones are known by the inode of a page cache, which the pool's
// pages have not got: the kernel says EFAULT.
func TestFutex(t *testing.T) {
	onViews(t, "native pool overlay", func(t *testing.T, m *mounted) {
		mem := mapPath(t, m.path("data/65536"), unix.PROT_READ, unix.MAP_SHARED)
		word := (*uint32)(unsafe.Pointer(&mem.b[0]))
		wait := func(value uint32, flags int) error {
			timeout := unix.Timespec{Nsec: 1000}
			_, _, e := unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), uintptr(flags), uintptr(value), uintptr(unsafe.Pointer(&timeout)), 0, 0)
			return result(e)
		}
		const private = 128
		shared := []error{unix.EAGAIN, unix.ETIMEDOUT}
		if config.FS == "daxfs" {
			shared = []error{unix.EFAULT, unix.EFAULT}
		}
		for _, c := range []struct {
			what  string
			value uint32
			flags int
			want  error
		}{
			{"private, another value", *word + 1, private, unix.EAGAIN},
			{"private, this value", *word, private, unix.ETIMEDOUT},
			{"shared, another value", *word + 1, 0, shared[0]},
			{"shared, this value", *word, 0, shared[1]},
		} {
			if err := wait(c.value, c.flags); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", c.what, err, c.want)
			}
		}
	})
}
