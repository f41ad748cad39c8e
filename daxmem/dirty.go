package daxmem

// dirtySet is where a region was written, a bit for each dirtyUnit bytes: as
// small as it is however the writes are scattered, so that flushing takes as
// long as what was written, and not as what lies between.
type dirtySet []uint64

// dirtyUnit makes the set of a region of 1 TiB 2 MiB, and a write of a few bytes
// a flush of 1,024 cache lines at most.
const dirtyUnit = 64 << 10

// add enters [off, off+n).
func (d *dirtySet) add(off, n int64) {
	if n == 0 {
		return
	}
	first, last := off/dirtyUnit, (off+n-1)/dirtyUnit
	for int64(len(*d)) <= last/64 {
		*d = append(*d, 0)
	}
	for i := first; i <= last; i++ {
		(*d)[i/64] |= 1 << (i % 64)
	}
}

// join enters all that is in e.
func (d *dirtySet) join(e dirtySet) {
	for len(*d) < len(e) {
		*d = append(*d, 0)
	}
	for i, w := range e {
		(*d)[i] |= w
	}
}

// spans are the ranges in order, neighbours joined, in a region of size bytes.
func (d dirtySet) spans(size int64) (out []span) {
	for i, w := range d {
		for bit := 0; w != 0 && bit < 64; bit++ {
			if w&(1<<bit) == 0 {
				continue
			}
			off := (int64(i)*64 + int64(bit)) * dirtyUnit
			n := min(dirtyUnit, size-off)
			if l := len(out); l > 0 && out[l-1].off+out[l-1].size == off {
				out[l-1].size += n
				continue
			}
			out = append(out, span{off, n})
		}
	}
	return out
}
