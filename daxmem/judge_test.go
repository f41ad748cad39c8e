package daxmem

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
)

// interSuper is that of the pools of explorations: few records, so that slots
// and chains of the index are used again at once.
var interSuper = func() *super {
	g := geometryFor(4)
	return &super{
		geometry: g, uuid: uuid.MustParse("8d3a6e0f-4e0b-4a52-9d0e-3f1f6b7c2a11"),
		createdSize: g.dataStart + 32*blockSize, created: 1,
	}
}()

// bootOf is the boot ID of the n-th kernel.
func bootOf(n int) [16]byte { return [16]byte{0xb, byte(n)} }

// named returns the n-th name whose layer is in the chain of a head.
func named(head, n int) string {
	ix := newIndex(nil, &interSuper.geometry, interSuper.uuid)
	for i := 0; ; i++ {
		s := fmt.Sprintf("layer %d", i)
		if ix.headOf(KindLayer, key(s)) == head {
			if n--; n < 0 {
				return s
			}
		}
	}
}

// Layers of the base: both in one chain, gone in front.
var (
	stays = named(0, 0)
	gone  = named(0, 1)
	fresh = named(0, 2) // not there yet, in the same chain
	apart = named(3, 0) // not there yet, in another one
)

func filesOf(name string) []byte {
	return randomBytes(uint64(len(name))<<16|uint64(name[len(name)-1]), 5000)
}

// interBase is a pool of kernel 0 with the layers stays and gone; kernel 0 sits
// in seat 0, and its process has ended.
var interBase = func() *arena {
	m := newArena(interSuper.createdSize)
	own := owner{seq: 0, size: interSuper.createdSize, boot: bootOf(0), state: ownerOpen}
	m.write(own.encode(), own.offset())
	m.write(interSuper.encode(), 0)
	w := &world{mem: m, g: &interSuper.geometry, sup: interSuper}
	p := w.actor("maker", anOwner).open(0)
	for _, name := range []string{stays, gone} {
		if _, err := tryLayer(p, key(name), filesOf(name)); err != nil {
			panic(err)
		}
	}
	if err := p.Sync(bg); err != nil {
		panic(err)
	}
	return m
}()

func (a *actor) region(wrap func(Window) Window) Region { return actorRegion{actorWindow{a}, wrap} }

// open makes the actor the owner, on kernel n.
func (a *actor) open(n int) *Pool {
	if err := a.tryOpen(n, nil); err != nil {
		panic(err)
	}
	return a.pool
}

func (a *actor) tryOpen(n int, wrap func(Window) Window) (err error) {
	a.pool, err = open(bg, a.region(wrap), boot(bootOf(n)), false)
	return err
}

// reader adds a kernel that reads, in its seat.
func (w *world) reader(n int, wrap func(Window) Window) (*actor, *Reader) {
	a := w.actor(fmt.Sprintf("reader %d", n), aReader)
	region := a.region(wrap)
	win, _ := region.Window(0, 0, false)
	s, err := claimSeat(win, w.g, Identity{Boot: bootOf(n)}, -1, false)
	if err != nil {
		panic(err)
	}
	a.seat = s
	r := &Reader{
		region: region, sup: w.sup, w: win, seat: s,
		ix: newIndex(win, w.g, w.sup.uuid), verified: map[int]word{},
	}
	r.size.Store(w.sup.createdSize)
	return a, r
}

// judge holds each write, and what actors say that they have, against the
// invariants of docs/memory-model.md.
type judge struct {
	w       *world
	words   []word
	payload [][]byte // of LIVE records
	pins    []*held
	seat    [seatCount]uint64 // word
	claimer [seatCount]*actor // who has changed it last
	taken   bool              // a takeover has fenced the catalog
	tainted bool              // the one write that a former owner may finish hit data
}

// held is a record that a reader has pinned, as it says.
type held struct {
	a     *actor
	rec   *Record
	bytes []byte
}

func (j *judge) begin() {
	j.words = make([]word, j.w.g.records)
	j.payload = make([][]byte, j.w.g.records)
	for n := range j.seat {
		j.seat[n] = j.w.mem.load(j.w.g.seat(n))
	}
	for slot := range j.words {
		j.words[slot] = word(j.w.mem.load(slotOffset(slot)))
		j.payload[slot] = j.w.mem.bytes(slotOffset(slot)+16, recordSize-16)
	}
}

func (j *judge) ow() ownerWord { return ownerWord(j.w.mem.load(ownerWordAt)) }

// fenced reports whether a's ownership is over.
func (j *judge) fenced(a *actor) bool {
	return a.role == anOwner && a.pool != nil && a.pool.ow.fence() < j.ow().fence()
}

func violates(invariant, format string, args ...any) error {
	return fmt.Errorf("violates %s: "+format, append([]any{invariant}, args...)...)
}

// after judges the write that a has just made.
func (j *judge) after(a *actor, c touch) error {
	switch g := j.w.g; {
	case c.off >= g.dataStart:
		return j.data(a, c)
	case c.off >= g.seats:
		return j.seats(a, c)
	case a.role != anOwner && (a.role != anOperator || c.off != ownerWordAt):
		return violates("W", "%s: %v", a.name, c)
	case c.off < catalogStart && c.off != ownerWordAt && j.fenced(a):
		return j.late(a, c)
	}
	if err := j.catalog(a); err != nil {
		return err
	}
	return j.index()
}

// late counts what a former owner writes beside words.
func (j *judge) late(a *actor, c touch) error {
	if !c.rest {
		a.lateData++
	}
	if a.lateData > 1 {
		return violates("F", "%s, a former owner, writes more than the one thing that it was at: %v", a.name, c)
	}
	j.tainted = true
	return nil
}

func (j *judge) catalog(a *actor) error {
	for slot, old := range j.words {
		now := word(j.w.mem.load(slotOffset(slot)))
		b := j.w.mem.bytes(slotOffset(slot), recordSize)
		if now != old {
			j.words[slot] = now
			if err := j.transition(a, slot, old, now, b); err != nil {
				return err
			}
		} else if now.state() == stateLive && !bytes.Equal(b[16:], j.payload[slot]) {
			return violates("I", "%s changed record %d, which is LIVE", a.name, slot)
		}
		j.payload[slot] = b[16:]
	}
	return nil
}

func (j *judge) transition(a *actor, slot int, old, now word, b []byte) error {
	if j.fenced(a) && j.taken {
		return violates("F", "%s, a former owner, made %v of %v", a.name, now, old)
	}
	if old.state() == now.state() && old.life() == now.life() {
		return nil // another fence
	}
	ok := false
	switch same := old.generation() == now.generation(); old.state() {
	case stateFree:
		ok = now.state() == stateWriting && now.generation() == old.generation()+1
	case stateWriting:
		ok = same && (now.state() == stateLive && now.kind() == old.kind() || now.state() == stateFree)
	case stateLive:
		ok = same && now.state() == stateRetired && now.kind() == old.kind()
	case stateRetired:
		ok = same && now.state() == stateFree
	}
	if !ok {
		return violates("G", "%s: record %d from %v to %v", a.name, slot, old, now)
	}
	if now.state() == stateLive {
		e, cond, why := decodeEntry(b)
		if cond != condLive {
			return violates("P", "record %d is LIVE without its payload: %s", slot, why)
		}
		if d := hashBytes(j.w.mem.bytes(e.off, e.size)); !j.tainted && d != e.digest {
			return violates("P", "record %d is LIVE without its segment", slot)
		}
	}
	if now.state() == stateFree {
		for _, h := range j.pins {
			if h.rec.Slot == slot && h.rec.Generation == old.generation() && h.counts() {
				return violates("K", "record %d is FREE, and %s has it pinned", slot, h.a.name)
			}
		}
	}
	return nil
}

// index: every LIVE record is in the copy that counts.
func (j *judge) index() error {
	ix := newIndex(memWindow{j.w.mem}, j.w.g, j.w.sup.uuid)
	copy := j.ow().copy()
	for slot, w := range j.words {
		if w.state() != stateLive {
			continue
		}
		found, whole, err := ix.walk(copy, ix.headOf(w.kind(), [32]byte(j.payload[slot][16:48])), func(n int) (bool, error) { return n == slot, nil })
		if err != nil || !whole || !found {
			return violates("X", "record %d is LIVE and not in copy %d of the index (%v)", slot, copy, err)
		}
	}
	return nil
}

// memWindow reads the truth.
type memWindow struct{ m *arena }

func (w memWindow) Load(off int64) (uint64, error) { return w.m.load(off), nil }
func (w memWindow) Store(off int64, v uint64) error {
	w.m.write(le.AppendUint64(nil, v), off)
	return nil
}
func (w memWindow) CompareAndSwap(off int64, old, v uint64) (bool, error) {
	if w.m.load(off) != old {
		return false, nil
	}
	return true, w.Store(off, v)
}
func (w memWindow) Atomic() bool { return true }
func (w memWindow) Close() error { return nil }
func (w memWindow) ReadAt(p []byte, off int64) (int, error) {
	w.m.read(p, off)
	return len(p), nil
}
func (w memWindow) WriteAt(p []byte, off int64) (int, error) {
	w.m.write(p, off)
	return len(p), nil
}

// seats: each kernel writes its own.
func (j *judge) seats(a *actor, c touch) error {
	g := j.w.g
	n := int((c.off - g.seats) / g.seatSize)
	at := c.off - g.seat(n)
	if at == 0 {
		if c.what != "cas" {
			return violates("W", "%s: %v of the word of seat %d", a.name, c, n)
		}
		if now := j.w.mem.load(c.off); now != j.seat[n] {
			j.seat[n], j.claimer[n] = now, a
		}
		return nil
	}
	if at >= seatPins+g.pinsSize { // reply
		if a.role != anOwner {
			return violates("W", "%s writes the reply to seat %d", a.name, n)
		}
		return nil
	}
	mine := a.seat
	if a.role == anOwner && a.pool != nil {
		mine = a.pool.seat
	}
	switch now := seatWord(j.w.mem.load(g.seat(n))); {
	case mine == nil: // at a claim
		if j.claimer[n] != a {
			return violates("W", "%s writes into seat %d, which it does not claim", a.name, n)
		}
	case mine.number != n:
		return violates("W", "%s, in seat %d, writes into seat %d", a.name, mine.number, n)
	case now != mine.word:
		if !c.rest {
			a.lateSeat++
		}
		if a.lateSeat > 1 {
			return violates("W", "%s writes more than the one word that it was at into seat %d, which is another's", a.name, n)
		}
	}
	return nil
}

// data: what a LIVE record names does not change, nor what is pinned.
func (j *judge) data(a *actor, c touch) error {
	if j.fenced(a) {
		return j.late(a, c)
	}
	if j.tainted {
		return nil
	}
	for slot, w := range j.words {
		if w.state() != stateLive {
			continue
		}
		e, _, _ := decodeEntry(j.w.mem.bytes(slotOffset(slot), recordSize))
		if e.off < c.off+c.n && c.off < e.off+e.size && hashBytes(j.w.mem.bytes(e.off, e.size)) != e.digest {
			return violates("I", "%s: %v changed the segment of record %d", a.name, c, slot)
		}
	}
	return j.pinned()
}

// pinned: the bytes of what is pinned are there.
func (j *judge) pinned() error {
	for _, h := range j.pins {
		if h.counts() && !bytes.Equal(h.bytes, contentOf(j.w.mem, h.rec)) {
			return violates("K", "bytes of record %d, which %s has pinned, have changed", h.rec.Slot, h.a.name)
		}
	}
	return nil
}

// counts reports whether its holder has its seat still.
func (h *held) counts() bool {
	s := h.a.seat
	return seatWord(h.a.w.mem.load(s.g.seat(s.number))) == s.word
}

// contentOf is a layer's segment and its files.
func contentOf(m *arena, rec *Record) []byte {
	b := m.bytes(rec.Offset, rec.Size)
	seg, err := parseSegment(b, rec.Offset, interSuper.createdSize, rec.Kind)
	if err != nil {
		return nil
	}
	for _, r := range seg.rows {
		b = append(b, m.bytes(r.off, r.size)...)
	}
	return b
}

// pin is what a reader's script does: pin, look, unpin.
func (j *judge) pin(a *actor, r *Reader, name string) (found bool, release func(), err error) {
	late := a.lateSeat
	rec, unpin, err := r.Pin(KindLayer, key(name))
	if errors.Is(err, ErrCorrupt) {
		return false, nil, violates("K", "%s has pinned %s, and its bytes are not there: %v", a.name, name, err)
	}
	if err != nil {
		return false, func() {}, err
	}
	if a.lateSeat > late {
		return true, unpin, violates("K", "%s has a pin in seat %d, which is another's", a.name, a.seat.number)
	}
	h := &held{a, rec, contentOf(j.w.mem, rec)}
	j.pins = append(j.pins, h)
	if h.counts() && hashBytes(h.bytes[:rec.Size]) != rec.Digest {
		return true, unpin, violates("K", "%s has pinned record %d, and its bytes are not there", a.name, rec.Slot)
	}
	return true, func() {
		j.pins = slices.DeleteFunc(j.pins, func(o *held) bool { return o == h })
		unpin()
	}, nil
}

// end judges what all have left behind.
func (j *judge) end(killed bool) error {
	if err := j.index(); err != nil || j.tainted {
		return err
	}
	if !killed {
		return j.checked(j.w.mem, -1)
	}
	// A later process of the owner's kernel opens the pool, or another kernel.
	for _, n := range []int{int(j.bootOfOwner()[1]), 9} {
		if err := j.checked(j.w.mem.clone(), n); err != nil {
			return fmt.Errorf("kernel %d opens what was left: %w", n, err)
		}
	}
	return nil
}

func (j *judge) bootOfOwner() [16]byte {
	s, _, _, err := readSeat(memWindow{j.w.mem}, j.w.g, j.ow().seat())
	if err != nil {
		panic(err)
	}
	return s.Boot
}

// checked opens the pool, for inspection (-1) or as owner on kernel n, checks it,
// and works on.
func (j *judge) checked(m *arena, n int) error {
	w := &world{mem: m, g: j.w.g, sup: j.w.sup}
	a := w.actor("later", anOwner)
	if n < 0 {
		p, err := open(bg, a.region(nil), Options{SyncDelay: -1}, true)
		if err != nil {
			return err
		}
		return checkPool(p)
	}
	if ow := j.ow(); n == 9 {
		s, word, there, err := readSeat(memWindow{m}, w.g, ow.seat())
		if err != nil {
			return err
		}
		if there && s.Boot != bootOf(n) {
			if err := evictSeat(memWindow{m}, w.g, ow.seat(), word); err != nil {
				return err
			}
		}
	}
	if err := a.tryOpen(n, nil); err != nil {
		return err
	}
	p := a.pool
	if err := checkPool(p); err != nil {
		return err
	}
	for _, h := range j.pins {
		if h.counts() && seatWord(m.load(w.g.seat(h.a.seat.number))) == h.a.seat.word && !bytes.Equal(h.bytes, contentOf(m, h.rec)) {
			return violates("K", "record %d, which %s has pinned, has gone in the open", h.rec.Slot, h.a.name)
		}
	}
	if _, err := tryLayer(p, key("another"), randomBytes(77, 3000)); err != nil && !errors.Is(err, ErrFull) {
		return fmt.Errorf("work on: %w", err)
	}
	for range 2 {
		if err := p.Sync(bg); err != nil {
			return fmt.Errorf("work on: %w", err)
		}
	}
	return checkPool(p)
}

func checkPool(p *Pool) error {
	rep, err := p.Check(bg, CheckOptions{Data: true})
	if err != nil {
		return err
	}
	if !rep.OK() {
		return fmt.Errorf("check: %v, quarantined %v", rep.Problems, rep.Quarantined)
	}
	return nil
}
