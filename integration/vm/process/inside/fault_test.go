package inside

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFaultsInOrder: 64 MiB read in order cost at most 40 faults.
func TestFaultsInOrder(t *testing.T) {
	daxfsOnly(t)
	const most = 40
	onViews(t, "native v8 pool overlay", func(t *testing.T, m *mounted) {
		for _, flags := range []int{unix.MAP_SHARED, unix.MAP_PRIVATE} {
			mem := mapPath(t, m.path(Big), unix.PROT_READ, flags)
			if n := minorFaults(t, mem.touch); n > most {
				t.Errorf("flags %#x: %d faults, want at most %d", flags, n, most)
			} else {
				t.Logf("flags %#x: %d faults", flags, n)
			}
			// The second time there are none.
			if n := minorFaults(t, mem.touch); n > 0 {
				t.Errorf("flags %#x: %d faults when everything is mapped", flags, n)
			}
			mem.unmap()
			// Advised, fewer: 2 MiB at a time from the beginning.
			mem = mapPath(t, m.path(Big), unix.PROT_READ, flags)
			must(t, mem.madvise(0, BigSize, unix.MADV_SEQUENTIAL))
			if n := minorFaults(t, mem.touch); n > BigSize>>21+2 {
				t.Errorf("flags %#x, MADV_SEQUENTIAL: %d faults, want at most %d", flags, n, BigSize>>21+2)
			}
			mem.unmap()
		}
	})
}

// TestFaultsAtRandom: one byte touched maps 64 KiB and never 2 MiB.
func TestFaultsAtRandom(t *testing.T) {
	daxfsOnly(t)
	onViews(t, "native v8 pool overlay", func(t *testing.T, m *mounted) {
		for _, c := range []struct {
			what   string
			advice int
			flags  int
		}{
			{"shared", unix.MADV_NORMAL, unix.MAP_SHARED},
			{"private", unix.MADV_NORMAL, unix.MAP_PRIVATE},
			{"advised", unix.MADV_RANDOM, unix.MAP_SHARED},
		} {
			mem := mapPath(t, m.path(Big), unix.PROT_READ, c.flags)
			must(t, mem.madvise(0, BigSize, c.advice))
			const touches = 100
			at := 12345
			for range touches {
				at = (at*1103515245 + 12345) & (BigSize - 1)
				sink += mem.b[at]
			}
			rss := smaps(t, os.Getpid(), mem.addr)["Rss"]
			if rss > touches*64<<10 || rss < pageSize {
				t.Errorf("%s: %d bytes are mapped after %d touches, want at most %d for each", c.what, rss, touches, 64<<10)
			}
			mem.unmap()
		}
	})
}

// TestFaultsBackwards: access that goes down does not fault at each page.
func TestFaultsBackwards(t *testing.T) {
	daxfsOnly(t)
	onViews(t, "native pool", func(t *testing.T, m *mounted) {
		mem := mapPath(t, m.path(Big), unix.PROT_READ, unix.MAP_SHARED)
		n := minorFaults(t, func() {
			for i := BigSize - pageSize; i >= 0; i -= pageSize {
				sink += mem.b[i]
			}
		})
		if most := int64(BigSize/(64<<10) + 16); n > most {
			t.Errorf("%d faults, want at most %d: one for each 64 KiB", n, most)
		}
	})
}

// TestFaultsOfThreads: threads that fault on the same pages at once all get
// them.
func TestFaultsOfThreads(t *testing.T) {
	onViews(t, "native v8 nopages overlay", func(t *testing.T, m *mounted) {
		rel := FillName(3<<20 + 123)
		for range 5 {
			f := m.open(t, rel)
			mem := mapFile(t, f, unix.PROT_READ, unix.MAP_SHARED)
			done := make(chan byte)
			for range 4 {
				go func() {
					var sum byte
					for i := 0; i < len(mem.b); i += pageSize {
						sum += mem.b[i]
					}
					done <- sum
				}()
			}
			first := <-done
			for range 3 {
				if sum := <-done; sum != first {
					t.Errorf("threads have read different bytes: sums %d and %d", first, sum)
				}
			}
			wantFill(t, "after the threads", mem.b, rel, 0)
			if m.inPlace() {
				m.wantFrames(t, rel, 0, mem.frames(t))
			}
			mem.unmap()
			f.Close()
		}
	})
}
