// Package space keeps track of which bytes of a range are free. It holds no
// data and does no I/O; its state is derived, never stored.
//
// A Space is not safe for concurrent use: its owner already has a lock.
package space

import (
	"fmt"
	"iter"

	"github.com/google/btree"
)

const degree = 32

// span is one free range. No two free spans touch: neighbours are merged.
type span struct{ off, size int64 }

func (s span) end() int64 { return s.off + s.size }

// Space hands out ranges of [start, end).
//
// Invariants: both indexes hold the same spans; spans are not empty, lie in
// [start, end), and are separated by at least one used byte; free is their sum.
type Space struct {
	start, end int64
	free       int64
	byOff      *btree.BTreeG[span]
	bySize     *btree.BTreeG[span]
}

// New returns a Space in which all of [start, size) is free.
func New(start, size int64) *Space {
	if start < 0 || size < start {
		panic(fmt.Sprintf("space: range [%d,%d)", start, size))
	}
	s := &Space{
		start: start, end: start,
		byOff: btree.NewG(degree, func(a, b span) bool { return a.off < b.off }),
		// Of equal sizes the highest address comes first: AllocHigh takes it.
		bySize: btree.NewG(degree, func(a, b span) bool {
			if a.size != b.size {
				return a.size < b.size
			}
			return a.off > b.off
		}),
	}
	s.Grow(size)
	return s
}

// Grow makes [old end, size) free.
func (s *Space) Grow(size int64) {
	if size < s.end {
		panic(fmt.Sprintf("space: grow from %d to %d", s.end, size))
	}
	old := s.end
	s.end = size
	if size > old {
		s.Free(old, size-old)
	}
}

// AllocLow takes n bytes at the lowest address that is a multiple of align, a
// power of two.
func (s *Space) AllocLow(n, align int64) (off int64, ok bool) {
	return s.AllocLowBelow(n, align, s.end)
}

// AllocLowBelow is AllocLow for a range that ends at or below limit.
func (s *Space) AllocLowBelow(n, align, limit int64) (off int64, ok bool) {
	s.checkArgs(n, align)
	var from span
	s.byOff.Ascend(func(f span) bool {
		at := alignUp(f.off, align)
		if at > limit-n { // every later one is higher still
			return false
		}
		if f.end()-at >= n {
			from, off, ok = f, at, true
			return false
		}
		return true
	})
	if ok {
		s.take(from, off, n)
	}
	return off, ok
}

// AllocHigh takes n bytes from the smallest free range that holds them at a
// multiple of align, a power of two; of equal ranges the highest, and in it the
// highest place, so that what remains lies low.
func (s *Space) AllocHigh(n, align int64) (off int64, ok bool) {
	return s.AllocHighAbove(n, align, s.start)
}

// AllocHighAbove is AllocHigh for a range that starts at or above floor.
func (s *Space) AllocHighAbove(n, align, floor int64) (off int64, ok bool) {
	s.checkArgs(n, align)
	var from span
	s.bySize.AscendGreaterOrEqual(span{off: s.end, size: n}, func(f span) bool {
		at := (f.end() - n) &^ (align - 1)
		if at < f.off || at < floor {
			return true
		}
		from, off, ok = f, at, true
		return false
	})
	if ok {
		s.take(from, off, n)
	}
	return off, ok
}

// Reserve marks [off, off+n) as used. It is an error, and nothing is changed,
// when part of it is used already or outside the space.
func (s *Space) Reserve(off, n int64) error {
	if n <= 0 || off < s.start || off > s.end || n > s.end-off {
		return fmt.Errorf("reserve [%d,+%d): outside [%d,%d)", off, n, s.start, s.end)
	}
	f, ok := s.around(off)
	if !ok || f.end()-off < n {
		return fmt.Errorf("reserve [%d,+%d): overlaps a range in use", off, n)
	}
	s.take(f, off, n)
	return nil
}

// Free gives [off, off+n) back. It panics when part of it is free already: the
// caller's books are wrong, and going on would hand bytes out twice.
func (s *Space) Free(off, n int64) {
	if n <= 0 || off < s.start || off > s.end || n > s.end-off {
		panic(fmt.Sprintf("space: free [%d,+%d) outside [%d,%d)", off, n, s.start, s.end))
	}
	add := span{off, n}
	if prev, ok := s.around(off); ok {
		panic(fmt.Sprintf("space: free [%d,+%d) twice: [%d,+%d) is free", off, n, prev.off, prev.size))
	}
	if next, ok := s.after(off); ok {
		if next.off < off+n {
			panic(fmt.Sprintf("space: free [%d,+%d) twice: [%d,+%d) is free", off, n, next.off, next.size))
		}
		if next.off == off+n {
			s.remove(next)
			add.size += next.size
		}
	}
	if prev, ok := s.around(off - 1); ok {
		s.remove(prev)
		add = span{prev.off, prev.size + add.size}
	}
	s.insert(add)
}

// FreeBytes is the sum of all free ranges.
func (s *Space) FreeBytes() int64 { return s.free }

// Largest is the size of the largest free range.
func (s *Space) Largest() int64 {
	f, _ := s.bySize.Max()
	return f.size
}

// FreeIn yields the free parts of [off, off+n), lowest first. The space must
// not be changed meanwhile.
func (s *Space) FreeIn(off, n int64) iter.Seq2[int64, int64] {
	return func(yield func(off, n int64) bool) {
		end := off + n
		if f, ok := s.around(off); ok && f.off < off {
			if !yield(off, min(f.end(), end)-off) {
				return
			}
		}
		s.byOff.AscendRange(span{off: off}, span{off: end}, func(f span) bool {
			return yield(f.off, min(f.end(), end)-f.off)
		})
	}
}

// All yields every free range, lowest first. The space must not be changed
// meanwhile.
func (s *Space) All() iter.Seq2[int64, int64] { return s.FreeIn(s.start, s.end-s.start) }

func (s *Space) checkArgs(n, align int64) {
	if n <= 0 || align <= 0 || align&(align-1) != 0 {
		panic(fmt.Sprintf("space: allocate %d bytes aligned to %d", n, align))
	}
}

// around returns the free span that holds the byte at off.
func (s *Space) around(off int64) (f span, ok bool) {
	s.byOff.DescendLessOrEqual(span{off: off}, func(p span) bool {
		f, ok = p, p.end() > off
		return false
	})
	return f, ok
}

// after returns the first free span that starts at or behind off.
func (s *Space) after(off int64) (f span, ok bool) {
	s.byOff.AscendGreaterOrEqual(span{off: off}, func(n span) bool {
		f, ok = n, true
		return false
	})
	return f, ok
}

// take cuts [off, off+n) out of f.
func (s *Space) take(f span, off, n int64) {
	s.remove(f)
	if off > f.off {
		s.insert(span{f.off, off - f.off})
	}
	if end := off + n; end < f.end() {
		s.insert(span{end, f.end() - end})
	}
}

func (s *Space) insert(f span) {
	s.byOff.ReplaceOrInsert(f)
	s.bySize.ReplaceOrInsert(f)
	s.free += f.size
}

func (s *Space) remove(f span) {
	s.byOff.Delete(f)
	s.bySize.Delete(f)
	s.free -= f.size
}

func alignUp(n, align int64) int64 { return (n + align - 1) &^ (align - 1) }
