package daxmem

import (
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/internal/space"
)

type span struct{ off, size int64 }

// extent is the bytes of one regular file. There can be two with one digest
// (an old layer whose removal a crash undid, and a new one), so an extent's
// identity is its offset; byDigest names the one that imports share.
type extent struct {
	row
	refs int // layers and imports that hold it

	// published: some catalog record has named it since the pool was opened or
	// before. Its bytes must outlive that record on the medium (invariant R).
	published bool
}

// record is the in-memory side of a catalog slot that is not free.
type record struct {
	entry
	slot   int
	spans  []span    // space that it alone owns: the segment, then an image's copies; or what could be reserved of them
	exts   []*extent // of a layer
	layers []*record // of an image or chain
	users  int       // images, published or being built, and chains, that need it
	pins   int
	why    string // quarantined: the reason
}

// selfContained reports whether r is an image with files of its own, which lies
// among the extents.
func (r *record) selfContained() bool { return r.word.kind() == KindImage && len(r.layers) == 0 }

func (r *record) public() *Record {
	return &Record{
		Slot: r.slot, Kind: r.word.kind(), Key: r.key, Digest: r.digest, Below: r.below,
		Generation: r.word.generation(), Sequence: r.seq, Offset: r.off, Size: r.size,
		Entries: r.entries, DataBytes: r.data, Created: unixNano(r.created),
		Durable: r.flags&flagDurable != 0, Quarantined: r.why, Pins: r.pins, Users: r.users,
	}
}

type recordKey struct {
	kind Kind
	key  [32]byte
}

// books is everything about the pool's contents that is derived from the
// region: nothing of it is stored. Pool.mu guards it.
type books struct {
	size  int64 // of the region, as the pool uses it
	sup   *super
	alloc *space.Space

	slots []*record // by slot; nil: FREE on the medium, or reserved by a publisher
	words []word    // by slot: the state word on the medium
	avail []int     // free slots, highest first

	live     map[recordKey]*record // sound and LIVE
	bad      map[*record]struct{}  // quarantined
	leaving  map[*record]struct{}  // RETIRED, but pinned by other kernels
	byOff    map[int64]*extent
	byDigest map[[32]byte]*extent

	seq    uint64 // last sequence given out
	segTop int64  // highest end of a segment so far
}

func newBooks(sup *super, size int64) *books {
	return &books{
		size: size, sup: sup, alloc: space.New(sup.dataStart, size),
		slots: make([]*record, sup.records), words: make([]word, sup.records),
		live: map[recordKey]*record{}, bad: map[*record]struct{}{}, leaving: map[*record]struct{}{},
		byOff: map[int64]*extent{}, byDigest: map[[32]byte]*extent{},
		segTop: sup.dataStart,
	}
}

// metaFloor keeps the lowest 1/64 of the pool for segments: extents never go
// there, so that layers can be published when extents have filled the rest.
func (b *books) metaFloor() int64 {
	return b.sup.dataStart + disk.AlignUp((b.size-b.sup.dataStart)/64, blockSize)
}

// allocExtent takes space for n bytes of data. Above all segments first: an
// extent in a hole between segments could be shared only by layers whose
// segments lie still lower.
func (b *books) allocExtent(n int64) (int64, bool) {
	n = disk.AlignUp(n, blockSize)
	floor := b.metaFloor()
	aligns := []int64{blockSize}
	if n >= disk.HugeSize {
		aligns = []int64{disk.HugeSize, blockSize}
	}
	for _, align := range aligns {
		if off, ok := b.alloc.AllocHighAbove(n, align, max(floor, b.segTop)); ok {
			return off, true
		}
		if off, ok := b.alloc.AllocHighAbove(n, align, floor); ok {
			return off, true
		}
	}
	return 0, false
}

// allocSegment takes space for a segment of n bytes that ends at or below limit.
func (b *books) allocSegment(n, limit int64) (int64, bool) {
	n = disk.AlignUp(n, blockSize)
	off, ok := b.alloc.AllocLowBelow(n, blockSize, limit)
	if ok {
		b.segTop = max(b.segTop, off+n)
	}
	return off, ok
}

// addExtent enters an extent whose space is already taken.
func (b *books) addExtent(w row, refs int) *extent {
	e := &extent{row: w, refs: refs}
	b.byOff[w.off] = e
	if b.byDigest[w.digest] == nil {
		b.byDigest[w.digest] = e
	}
	return e
}

// unref drops one reference. The last one takes the extent out of the books;
// its space is then the caller's to give back.
func (b *books) unref(e *extent) (gone bool) {
	e.refs--
	if e.refs > 0 {
		return false
	}
	delete(b.byOff, e.off)
	if b.byDigest[e.digest] == e {
		delete(b.byDigest, e.digest)
	}
	return true
}

// enter puts a sound record into its slot and the indexes.
func (b *books) enter(r *record) {
	b.slots[r.slot] = r
	b.words[r.slot] = r.word
	b.live[recordKey{r.word.kind(), r.key}] = r
	for _, e := range r.exts {
		e.published = true
	}
	b.seq = max(b.seq, r.seq)
	if len(r.spans) > 0 && !r.selfContained() {
		s := r.spans[0]
		b.segTop = max(b.segTop, s.off+s.size)
	}
}

// quarantine takes a record out of the indexes, and its extents out of sharing
// where suspect says so. Its space stays reserved.
func (b *books) quarantine(r *record, why string, suspect func(*extent) bool) {
	r.why = why
	b.unlist(r)
	b.bad[r] = struct{}{}
	for _, e := range r.exts {
		if suspect != nil && suspect(e) && b.byDigest[e.digest] == e {
			delete(b.byDigest, e.digest)
		}
	}
}

func (b *books) unlist(r *record) {
	k := recordKey{r.word.kind(), r.key}
	if b.live[k] == r {
		delete(b.live, k)
	}
	delete(b.bad, r)
}

// drop takes a record out of the books and returns the space that nothing else
// holds. The slot stays taken until the caller has freed it on the medium.
func (b *books) drop(r *record) []span {
	b.unlist(r)
	b.slots[r.slot] = nil
	spans := r.spans
	for _, e := range r.exts {
		if b.unref(e) {
			spans = append(spans, span{e.off, e.space()})
		}
	}
	for _, l := range r.layers {
		l.users--
	}
	return spans
}
