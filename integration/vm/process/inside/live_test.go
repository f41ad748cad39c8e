package inside

import (
	"encoding/binary"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestLive: what the host writes to the pool is seen at once, by mappings and
// by read, and nobody sees it before or after another.
func TestLive(t *testing.T) {
	daxfsOnly(t)
	onViews(t, "native pool nopages overlay", func(t *testing.T, m *mounted) {
		f := m.open(t, Live)
		shared := mapFile(t, f, unix.PROT_READ, unix.MAP_SHARED)
		private := mapFile(t, f, unix.PROT_READ, unix.MAP_PRIVATE)
		load := func(mem *mapping) uint64 { return atomic.LoadUint64((*uint64)(unsafe.Pointer(&mem.b[0]))) }
		first := load(shared)
		copied := load(private)
		seen := map[uint64]bool{}
		b := make([]byte, 8)
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end) && len(seen) < 20; {
			before := load(shared)
			n, err := unix.Pread(int(f.Fd()), b, 0)
			if n != 8 || err != nil {
				t.Fatalf("read: %d, %v", n, err)
			}
			read := binary.LittleEndian.Uint64(b)
			other := load(private)
			after := load(shared)
			if read < before || after < read {
				t.Fatalf("read says %d, the mapping %d before and %d after", read, before, after)
			}
			if !m.nopages() && (other < read || after < other) {
				t.Fatalf("the private mapping says %d, read %d before, the shared mapping %d after", other, read, after)
			}
			seen[after] = true
		}
		if len(seen) < 20 {
			t.Errorf("saw %d numbers in 20 seconds, from %d on; the host writes one each %v", len(seen), first, LivePeriod)
		}
		if m.nopages() && load(private) != copied {
			t.Error("a private mapping without page structs is not the copy that it was")
		}
		// What a process has written to is its own from then on.
		mine := mapFile(t, f, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
		mine.b[100] = 1
		kept := load(mine)
		time.Sleep(10 * LivePeriod)
		if load(mine) != kept {
			t.Error("a page that the process has written to still changes")
		}
	})
}
