package daxmem

import (
	"context"
	"fmt"
	"math/bits"

	"github.com/google/uuid"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// Usage is who uses what of a pool, as anybody can see it who can read its
// memory. It is a copy, taken while others were at work: what changed meanwhile
// may be in it, or not.
type Usage struct {
	UUID  uuid.UUID
	Size  int64  // bytes of the pool
	Used  int64  // bytes of superblock, catalog, and all that records name
	Slots int    // records that the catalog has room for
	Owned bool   // else nobody owns the pool now
	Fence uint64 // rises with each takeover
	Seats []*Seat
	Asked []*Asked // by seat
	Uses  []*Use   // by slot
}

// Use is a record that is LIVE, or RETIRED and still pinned.
type Use struct {
	*Record
	Removed bool  // goes when nobody has it pinned any more
	Space   int64 // bytes of its own: segment, and copies of a self-contained image's files
	Data    int64 // bytes of space of the layer's extents, or of those of all the image's layers, or of the chain's layer
	Seats   []int // that have it pinned, lowest first
	Damaged string
}

// Watch looks at a pool again and again. The zero value is ready. It is for one
// goroutine.
type Watch struct {
	pool uuid.UUID
	seen map[int]seenRecord // by slot

	// What follows from seen, and takes long to add up.
	stale   bool
	extents int64         // space of all of them
	data    map[int]int64 // Use.Data by slot
}

// seenRecord is what a segment says, which does not change in its life.
type seenRecord struct {
	life word
	seg  *segment
	bad  string
}

// Look reads catalog and seats of the pool in region, and segments that were not
// there at the last look. It takes no lock and writes nothing; the region stays
// the caller's.
func (w *Watch) Look(ctx context.Context, region Region) (*Usage, error) {
	u, err := w.look(ctx, region)
	if err != nil {
		return nil, fmt.Errorf("look at the pool in %s: %w", region.Path(), err)
	}
	return u, nil
}

func (w *Watch) look(ctx context.Context, region Region) (_ *Usage, err error) {
	sup, own, err := readSuper(region)
	if err != nil {
		return nil, err
	}
	if w.pool != sup.uuid || w.seen == nil {
		w.pool, w.seen, w.stale = sup.uuid, make(map[int]seenRecord), true
	}
	win, err := region.Window(0, sup.dataStart, false)
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := win.Close(); err == nil {
			err = cerr
		}
	}()
	ow, err := loadOwnerWord(win)
	if err != nil {
		return nil, err
	}
	u := &Usage{UUID: sup.uuid, Size: own.size, Slots: sup.records, Owned: ow.state() == owned, Fence: ow.fence()}
	if u.Seats, err = readSeats(win, &sup.geometry, nil); err != nil {
		return nil, err
	}
	for _, s := range u.Seats {
		asked, err := readAsked(win, &sup.geometry, s.Number)
		if err != nil {
			return nil, err
		}
		if asked != nil && s.Held {
			u.Asked = append(u.Asked, asked)
		}
	}
	pins, err := allPins(win, &sup.geometry, u.Seats)
	if err != nil {
		return nil, err
	}
	raw := make([]byte, sup.records*recordSize)
	if _, err := win.ReadAt(raw, catalogStart); err != nil {
		return nil, windowError("read catalog", err)
	}
	for slot := range sup.records {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		e, cond, _ := decodeEntry(raw[slot*recordSize:][:recordSize])
		if cond != condLive && (cond != condRetired || len(pins[slot]) == 0) {
			if _, there := w.seen[slot]; there {
				delete(w.seen, slot)
				w.stale = true
			}
			continue
		}
		r := &record{entry: e, slot: slot}
		seen := w.read(region, r, sup.dataStart, own.size)
		use := &Use{Record: r.public(), Removed: cond == condRetired, Seats: pins[slot], Damaged: seen.bad}
		if e.flags&flagQuarantined != 0 {
			use.Damaged = "found bad before"
		}
		u.Uses = append(u.Uses, use)
	}
	if w.stale {
		w.measure(u.Uses)
		w.stale = false
	}
	u.Used = sup.dataStart + w.extents
	for _, use := range u.Uses {
		use.Space = disk.AlignUp(use.Size, blockSize) + w.seen[use.Slot].seg.copies
		use.Data = w.data[use.Slot]
		u.Used += use.Space
	}
	return u, nil
}

// read returns what the segment of a record says.
func (w *Watch) read(region Region, r *record, dataStart, size int64) seenRecord {
	if seen, ok := w.seen[r.slot]; ok && seen.life == r.word.life() {
		return seen
	}
	seen := seenRecord{life: r.word.life(), seg: &segment{}}
	if r.word.kind() != KindChain {
		b, err := readSegment(region, &r.entry, dataStart, size)
		if err == nil {
			seen.seg, err = parseSegment(b, r.off, size, r.word.kind())
		}
		if err != nil {
			seen.seg, seen.bad = &segment{}, err.Error()
		}
	}
	w.seen[r.slot] = seen
	w.stale = true
	return seen
}

// measure adds up the space of extents. Each counts once, however many layers
// have it.
func (w *Watch) measure(uses []*Use) {
	var all extentSum
	layers := make(map[[32]byte]*segment)
	for _, use := range uses {
		if use.Kind == KindLayer {
			layers[use.Key] = w.seen[use.Slot].seg
			all.add(w.seen[use.Slot].seg)
		}
	}
	w.extents, w.data = all.bytes, make(map[int]int64)
	for _, use := range uses {
		from := w.seen[use.Slot].seg.layers
		switch use.Kind {
		case KindLayer:
			from = [][32]byte{use.Key}
		case KindChain:
			from = [][32]byte{use.Digest}
		}
		var sum extentSum
		for _, k := range from {
			sum.add(layers[k])
		}
		w.data[use.Slot] = sum.bytes
	}
}

// extentSum is the space of distinct extents.
type extentSum struct {
	seen  map[int64]bool // offsets
	bytes int64
}

// add counts a layer's extents; nil: there is no such layer.
func (s *extentSum) add(layer *segment) {
	if layer == nil {
		return
	}
	if s.seen == nil {
		s.seen = make(map[int64]bool, len(layer.rows))
	}
	for _, r := range layer.rows {
		if !s.seen[r.off] {
			s.seen[r.off] = true
			s.bytes += r.space()
		}
	}
}

// allPins returns the seats that have a record pinned, by slot. A seat that is
// being claimed has no pins that count.
func allPins(w Window, g *geometry, seats []*Seat) (map[int][]int, error) {
	pins := make(map[int][]int)
	b := make([]byte, g.pinsSize)
	for _, s := range seats {
		if !s.Held && s.Damaged == "" {
			continue
		}
		if _, err := w.ReadAt(b, g.seat(s.Number)+seatPins); err != nil {
			return nil, windowError(fmt.Sprintf("read pins of seat %d", s.Number), err)
		}
		for i := 0; i < g.records; i += 64 {
			for v := le.Uint64(b[i/8:]); v != 0; v &= v - 1 {
				if slot := i + bits.TrailingZeros64(v); slot < g.records {
					pins[slot] = append(pins[slot], s.Number)
				}
			}
		}
	}
	return pins, nil
}

// Pinned returns the seats that have each record pinned, lowest first, by slot.
// It works on a pool that was opened for inspection too.
func (p *Pool) Pinned() (map[int][]int, error) {
	if err := p.begin(); err != nil {
		return nil, err
	}
	defer p.end()
	seats, err := p.Seats()
	if err != nil {
		return nil, err
	}
	return allPins(p.w, &p.sup.geometry, seats)
}

// Room is how much of a pool is in use. What was removed and waits for a sync
// does not count.
type Room struct {
	Used, Max           int64 // bytes, superblock and catalog included
	Records, MaxRecords int   // of the catalog
}

// Room tells how much of the pool is in use.
func (p *Pool) Room() Room {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := Room{Used: p.usedBytes(), Max: p.limit, Records: len(p.slots) - len(p.avail), MaxRecords: len(p.slots)}
	for _, t := range p.limbo {
		for _, s := range t.spans {
			r.Used -= s.size
		}
		if t.rec != nil {
			r.Records--
		}
	}
	return r
}

// Percent is how full the pool is, 0 to 100: of bytes or of records, whichever
// are shorter.
func (r Room) Percent() float64 {
	return 100 * max(float64(r.Used)/float64(r.Max), float64(r.Records)/float64(r.MaxRecords))
}
