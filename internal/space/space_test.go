package space

import (
	"math/rand/v2"
	"testing"
)

// bitmap is the naive model: one bool per unit.
type bitmap []bool // true: used

func (m bitmap) fits(off, n int) bool {
	if off < 0 || off+n > len(m) {
		return false
	}
	for _, u := range m[off : off+n] {
		if u {
			return false
		}
	}
	return true
}

func (m bitmap) set(off, n int, used bool) {
	for i := range m[off : off+n] {
		m[off+i] = used
	}
}

func (m bitmap) low(n, align, limit int) (int, bool) {
	for off := 0; off+n <= min(len(m), limit); off += align {
		if m.fits(off, n) {
			return off, true
		}
	}
	return 0, false
}

// high is best fit by the size of the whole free range, then highest.
func (m bitmap) high(n, align, floor int) (best int, ok bool) {
	size := 0
	for off := 0; off < len(m); {
		if m[off] {
			off++
			continue
		}
		end := off
		for end < len(m) && !m[end] {
			end++
		}
		at := (end - n) / align * align
		if end-off >= n && at >= off && at >= floor && (!ok || end-off <= size) {
			best, ok, size = at, true, end-off
		}
		off = end
	}
	return best, ok
}

func (m bitmap) stats() (free, largest int64) {
	run := int64(0)
	for _, u := range m {
		if u {
			run = 0
			continue
		}
		run++
		free++
		largest = max(largest, run)
	}
	return free, largest
}

func TestAgainstBitmap(t *testing.T) {
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		size := 64 + rnd.IntN(400)
		m, s := make(bitmap, size), New(0, int64(size))
		type block struct{ off, n int }
		var used []block
		for step := range 2000 {
			n := 1 + rnd.IntN(20)
			align := 1 << rnd.IntN(6)
			switch rnd.IntN(7) {
			case 0, 1:
				limit := rnd.IntN(len(m) + 40)
				want, wok := m.low(n, align, limit)
				got, ok := s.AllocLowBelow(int64(n), int64(align), int64(limit))
				if ok != wok || ok && got != int64(want) {
					t.Fatalf("seed %d step %d: AllocLowBelow(%d,%d,%d) = %d %v, want %d %v", seed, step, n, align, limit, got, ok, want, wok)
				}
				if ok {
					m.set(want, n, true)
					used = append(used, block{want, n})
				}
			case 2, 3:
				floor := 0
				if rnd.IntN(2) == 0 {
					floor = rnd.IntN(len(m))
				}
				want, wok := m.high(n, align, floor)
				got, ok := s.AllocHighAbove(int64(n), int64(align), int64(floor))
				if ok != wok || ok && got != int64(want) {
					t.Fatalf("seed %d step %d: AllocHighAbove(%d,%d,%d) = %d %v, want %d %v", seed, step, n, align, floor, got, ok, want, wok)
				}
				if ok {
					m.set(want, n, true)
					used = append(used, block{want, n})
				}
			case 4:
				off := rnd.IntN(len(m)+10) - 5
				want := m.fits(off, n)
				if err := s.Reserve(int64(off), int64(n)); (err == nil) != want {
					t.Fatalf("seed %d step %d: Reserve(%d,%d) = %v, want ok %v", seed, step, off, n, err, want)
				}
				if want {
					m.set(off, n, true)
					used = append(used, block{off, n})
				}
			case 5:
				if len(used) > 0 {
					i := rnd.IntN(len(used))
					b := used[i]
					used[i] = used[len(used)-1]
					used = used[:len(used)-1]
					s.Free(int64(b.off), int64(b.n))
					m.set(b.off, b.n, false)
				}
			case 6:
				if rnd.IntN(50) == 0 {
					m = append(m, make(bitmap, n)...)
					s.Grow(int64(len(m)))
				}
			}
			compare(t, s, m)
		}
	}
}

func compare(t *testing.T, s *Space, m bitmap) {
	t.Helper()
	free, largest := m.stats()
	if s.FreeBytes() != free || s.Largest() != largest {
		t.Fatalf("free %d largest %d, want %d and %d", s.FreeBytes(), s.Largest(), free, largest)
	}
	if s.byOff.Len() != s.bySize.Len() {
		t.Fatalf("indexes hold %d and %d ranges", s.byOff.Len(), s.bySize.Len())
	}
	got := make(bitmap, len(m))
	got.set(0, len(got), true)
	last := int64(-1)
	for off, n := range s.All() {
		if off <= last {
			t.Fatalf("range at %d touches the one before, which ends at %d", off, last)
		}
		got.set(int(off), int(n), false)
		last = off + n
	}
	for i := range m {
		if got[i] != m[i] {
			t.Fatalf("byte %d: used %v, want %v", i, got[i], m[i])
		}
	}
}

func TestFreeIn(t *testing.T) {
	s := New(0, 100)
	for _, off := range []int64{10, 30, 50} {
		if err := s.Reserve(off, 10); err != nil {
			t.Fatal(err)
		}
	}
	var got [][2]int64
	for off, n := range s.FreeIn(5, 50) {
		got = append(got, [2]int64{off, n})
	}
	want := [][2]int64{{5, 5}, {20, 10}, {40, 10}}
	if len(got) != len(want) || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Fatalf("got %v, want %v", got, want)
	}
}

func TestHugeAlignment(t *testing.T) {
	const mib = 1 << 20
	s := New(4096, 64*mib)
	off, ok := s.AllocHigh(3*mib, 2*mib)
	if !ok || off != 60*mib {
		t.Fatalf("got %d %v, want %d", off, ok, 60*mib)
	}
	// What is left above fits a small block, which must take it (best fit).
	off, ok = s.AllocHigh(4096, 4096)
	if !ok || off != 64*mib-4096 {
		t.Fatalf("got %d %v, want the last block", off, ok)
	}
}

func TestDoubleFreePanics(t *testing.T) {
	for name, r := range map[string][2]int64{
		"same": {10, 10}, "head": {5, 6}, "tail": {19, 5}, "inside": {12, 2}, "around": {5, 30}, "outside": {95, 10},
	} {
		t.Run(name, func(t *testing.T) {
			s := New(0, 100)
			if err := s.Reserve(0, 100); err != nil {
				t.Fatal(err)
			}
			s.Free(10, 10)
			defer func() {
				if recover() == nil {
					t.Fatal("no panic")
				}
			}()
			s.Free(r[0], r[1])
		})
	}
}

func BenchmarkAllocFree(b *testing.B) {
	s := New(0, 1<<36)
	rnd := rand.New(rand.NewPCG(1, 1))
	var used [][2]int64
	for range 100000 {
		n := int64(1+rnd.IntN(16)) << 12
		off, _ := s.AllocHigh(n, 4096)
		used = append(used, [2]int64{off, n})
	}
	for b.Loop() {
		i := rnd.IntN(len(used))
		s.Free(used[i][0], used[i][1])
		n := int64(1+rnd.IntN(16)) << 12
		off, _ := s.AllocHigh(n, 4096)
		used[i] = [2]int64{off, n}
	}
}
