package inside

import (
	"encoding/binary"
	"fmt"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// framesOf maps a file for reading, touches all of its pages and returns their
// physical addresses.
func framesOf(t *testing.T, path string, flags int) []uint64 {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	fi, err := f.Stat()
	must(t, err)
	b, err := unix.Mmap(int(f.Fd()), 0, int(fi.Size()), unix.PROT_READ, flags)
	must(t, err)
	// A mapping keeps its mount.
	defer func() { must(t, unix.Munmap(b)) }()
	for i := 0; i < len(b); i += 4096 {
		touched += b[i]
	}
	return frames(t, b)
}

var touched byte // keeps the compiler from leaving the loads out

// frames returns the physical addresses of a mapping's pages (Documentation/
// admin-guide/mm/pagemap.rst).
func frames(t *testing.T, b []byte) []uint64 {
	t.Helper()
	f, err := os.Open("/proc/self/pagemap")
	must(t, err)
	defer f.Close()
	pages := (len(b) + 4095) / 4096
	raw := make([]byte, 8*pages)
	_, err = f.ReadAt(raw, int64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))/4096*8))
	must(t, err)
	out := make([]uint64, pages)
	for i := range out {
		v := binary.LittleEndian.Uint64(raw[8*i:])
		if v&(1<<63) == 0 {
			t.Fatalf("page %d of %d is not there: %#x", i, pages, v)
		}
		out[i] = v & (1<<55 - 1) * 4096
	}
	return out
}

// wantFrames demands that a file's pages are the region's own, in one run, both
// for shared and private mappings, and returns their offset in the region.
func wantFrames(t *testing.T, path string, size int64) int64 {
	t.Helper()
	var first int64
	for _, flags := range []int{unix.MAP_SHARED, unix.MAP_PRIVATE} {
		got := framesOf(t, path, flags)
		if got[0] < address || got[0] >= address+uint64(size) {
			t.Fatalf("%s is mapped from %#x, the region is [%#x,+%#x)", path, got[0], address, size)
		}
		for i, at := range got {
			if at != got[0]+uint64(i)*4096 {
				t.Fatalf("%s: page %d is at %#x, the first at %#x", path, i, at, got[0])
			}
		}
		first = int64(got[0] - address)
	}
	return first
}

// cached is how many bytes the page cache of this kernel holds.
func cached(t *testing.T) int64 {
	t.Helper()
	f, err := os.Open("/proc/meminfo")
	must(t, err)
	defer f.Close()
	var sum, n int64
	var name, unit string
	for {
		if _, err := fmt.Fscanf(f, "%s %d %s\n", &name, &n, &unit); err != nil {
			break
		}
		if name == "Cached:" || name == "Buffers:" {
			sum += n << 10
		}
	}
	return sum
}
