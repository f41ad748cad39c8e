package inside

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const pageSize = 4096

// mapping is a range of this process's memory, unmapped when the test ends.
type mapping struct {
	b    []byte
	addr uintptr
}

// mapFile maps the whole pages of an open file.
func mapFile(t *testing.T, f *os.File, prot, flags int) *mapping {
	t.Helper()
	st, err := f.Stat()
	must(t, err)
	m, err := tryMap(f, 0, int(st.Size()), prot, flags)
	if err != nil {
		t.Fatalf("mmap %s, %d bytes, prot %d, flags %#x: %v", f.Name(), st.Size(), prot, flags, err)
	}
	t.Cleanup(m.unmap)
	return m
}

// mapPath maps the file at path.
func mapPath(t *testing.T, path string, prot, flags int) *mapping {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	return mapFile(t, f, prot, flags)
}

func tryMap(f *os.File, off int64, n, prot, flags int) (*mapping, error) {
	p, err := unix.MmapPtr(int(f.Fd()), off, nil, uintptr(n), prot, flags)
	if err != nil {
		return nil, err
	}
	return &mapping{unsafe.Slice((*byte)(p), n), uintptr(p)}, nil
}

func (m *mapping) unmap() {
	if m.b == nil {
		return
	}
	unix.MunmapPtr(unsafe.Pointer(&m.b[0]), uintptr(len(m.b)))
	m.b = nil
}

func (m *mapping) pages() int { return (len(m.b) + pageSize - 1) / pageSize }

var sink byte

// touch reads a byte of each page.
func (m *mapping) touch() {
	for i := 0; i < len(m.b); i += pageSize {
		sink += m.b[i]
	}
}

func (m *mapping) frames(t *testing.T) []uint64 {
	t.Helper()
	return frames(t, os.Getpid(), m.addr, m.pages())
}

// madvise and mprotect take a range in bytes.
func (m *mapping) madvise(off, n, advice int) error {
	return unix.Madvise(m.b[off:off+n], advice)
}

func (m *mapping) mprotect(off, n, prot int) error {
	return unix.Mprotect(m.b[off:off+n], prot)
}

// frames returns the page frame numbers of n pages of a process, 0 for a page
// that is not there (Documentation/admin-guide/mm/pagemap.rst).
func frames(t *testing.T, pid int, addr uintptr, n int) []uint64 {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	must(t, err)
	defer f.Close()
	b := make([]byte, 8*n)
	if _, err := f.ReadAt(b, int64(addr/pageSize*8)); err != nil {
		t.Fatalf("read pagemap of %d pages at %#x: %v", n, addr, err)
	}
	out := make([]uint64, n)
	for i := range out {
		e := binary.LittleEndian.Uint64(b[8*i:])
		if e>>63 == 1 {
			out[i] = e & (1<<55 - 1)
			if out[i] == 0 {
				t.Fatal("pagemap hides frame numbers: not root?")
			}
		}
	}
	return out
}

// resident counts the pages that are there.
func resident(pfns []uint64) int {
	n := 0
	for _, f := range pfns {
		if f != 0 {
			n++
		}
	}
	return n
}

// wantFrames checks that all pages of a file are the pool's own, in order; pfns
// begin with the file's page first.
func (m *mounted) wantFrames(t *testing.T, rel string, first int, pfns []uint64) {
	t.Helper()
	for i, got := range pfns {
		if want := m.frame(t, rel, first+i); got != want {
			t.Errorf("%s: page %d has frame %#x, want %#x, which the pool has there (first of %d pages)", rel, first+i, got, want, len(pfns))
			return
		}
	}
}

// inPool reports whether a frame is the pool's.
func inPool(pfn uint64) bool {
	return pfn >= config.Phys/pageSize && pfn < (config.Phys+config.Size)/pageSize
}

// wantPrivate checks that a page is there and not of the pool.
func wantPrivate(t *testing.T, what string, pfn uint64) {
	t.Helper()
	if pfn == 0 {
		t.Errorf("%s: no page is there", what)
	} else if inPool(pfn) {
		t.Errorf("%s: frame %#x is the pool's, want a copy", what, pfn)
	}
}

// wantFill checks that b is what the file has at off.
func wantFill(t *testing.T, what string, b []byte, rel string, off int64) {
	t.Helper()
	want := make([]byte, len(b))
	Fill(want, rel, off)
	if bytes.Equal(b, want) {
		return
	}
	for i := range b {
		if b[i] != want[i] {
			t.Errorf("%s: byte %d of %s is %#x, want %#x (%d bytes from %d on)", what, off+int64(i), rel, b[i], want[i], len(b), off)
			return
		}
	}
}

// wantUnchanged checks by read(2) that a file still is what it was, which goes
// to the pool's bytes.
func (m *mounted) wantUnchanged(t *testing.T, rel string) {
	t.Helper()
	b, err := os.ReadFile(m.base + "/" + rel)
	must(t, err)
	wantFill(t, "pool afterwards", b, rel, 0)
}

// faulted runs f and returns the signal-like panic of a memory fault, or nil.
func faulted(f func()) (fault error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		if r := recover(); r != nil {
			err, ok := r.(error)
			if !ok {
				panic(r)
			}
			fault = err
		}
	}()
	f()
	return nil
}

// minorFaults counts those of f, which must not allocate.
func minorFaults(t *testing.T, f func()) int64 {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, after unix.Rusage
	must(t, unix.Getrusage(unix.RUSAGE_THREAD, &before))
	f()
	must(t, unix.Getrusage(unix.RUSAGE_THREAD, &after))
	return after.Minflt - before.Minflt
}

// smaps are the fields of the mapping of a process that begins at addr, in
// bytes.
func smaps(t *testing.T, pid int, addr uintptr) map[string]int64 {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	must(t, err)
	defer f.Close()
	s := bufio.NewScanner(f)
	var out map[string]int64
	for s.Scan() {
		words := strings.Fields(s.Text())
		if !strings.HasSuffix(words[0], ":") {
			if out != nil {
				break
			}
			if start, _, ok := strings.Cut(words[0], "-"); ok && start == strconv.FormatUint(uint64(addr), 16) {
				out = map[string]int64{}
			}
			continue
		}
		if out != nil && len(words) == 3 && words[2] == "kB" {
			n, err := strconv.ParseInt(words[1], 10, 64)
			must(t, err)
			out[strings.TrimSuffix(words[0], ":")] = n << 10
		}
	}
	must(t, s.Err())
	if out == nil {
		t.Fatalf("process %d has no mapping that begins at %#x", pid, addr)
	}
	return out
}

// region is a line of /proc/PID/maps.
type region struct {
	start, end uintptr
	perms      string
	off        int64
	path       string
}

func (r region) pages() int { return int(r.end-r.start) / pageSize }

// maps returns the mappings of a process whose path ends in suffix.
func maps(t *testing.T, pid int, suffix string) []region {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	must(t, err)
	var out []region
	for _, line := range strings.Split(string(b), "\n") {
		w := strings.Fields(line)
		if len(w) < 6 || !strings.HasSuffix(w[5], suffix) {
			continue
		}
		var r region
		if _, err := fmt.Sscanf(w[0], "%x-%x", &r.start, &r.end); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if r.off, err = strconv.ParseInt(w[2], 16, 64); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		r.perms, r.path = w[1], w[5]
		out = append(out, r)
	}
	return out
}

// tryMapAnon maps memory of nobody's file.
func tryMapAnon(n, prot int) (*mapping, error) {
	p, err := unix.MmapPtr(-1, 0, nil, uintptr(n), prot, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	return &mapping{unsafe.Slice((*byte)(p), n), uintptr(p)}, nil
}

// anon maps writable memory until the test ends.
func anon(t *testing.T, n int) *mapping {
	t.Helper()
	m, err := tryMapAnon(n, unix.PROT_READ|unix.PROT_WRITE)
	must(t, err)
	t.Cleanup(m.unmap)
	return m
}

// meminfo is /proc/meminfo in bytes.
func meminfo(t *testing.T) map[string]int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/meminfo")
	must(t, err)
	out := map[string]int64{}
	for _, line := range strings.Split(string(b), "\n") {
		var name string
		var n int64
		if c, _ := fmt.Sscanf(line, "%s %d kB", &name, &n); c == 2 {
			out[strings.TrimSuffix(name, ":")] = n << 10
		}
	}
	return out
}
