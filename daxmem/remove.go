package daxmem

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/log"
)

// Layer returns the layer with that key, or ErrNotFound.
func (p *Pool) Layer(key [32]byte) (*Record, error) { return p.find(KindLayer, key) }

// Image returns the image with that key, or ErrNotFound.
func (p *Pool) Image(key [32]byte) (*Record, error) { return p.find(KindImage, key) }

func (p *Pool) find(kind Kind, key [32]byte) (*Record, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r := p.live[recordKey{kind, key}]; r != nil {
		return r.public(), nil
	}
	return nil, fmt.Errorf("%s: %w", recordName(kind, key), ErrNotFound)
}

// Records returns all layers and images, and what is quarantined, by slot.
func (p *Pool) Records() []*Record {
	return p.list(func(r *record) bool { return r.word.kind() != KindChain || r.why != "" })
}

// Chains returns all chains, by slot: see Chain.
func (p *Pool) Chains() []*Record {
	return p.list(func(r *record) bool { return r.word.kind() == KindChain && r.why == "" })
}

func (p *Pool) list(want func(r *record) bool) (out []*Record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.slots {
		if r != nil && want(r) {
			out = append(out, r.public())
		}
	}
	return out
}

// ReadSegment returns a copy of the record's segment, its digest verified.
//
// Preconditions: the record is pinned, or nobody removes it meanwhile.
func (p *Pool) ReadSegment(rec *Record) ([]byte, error) {
	if err := p.begin(); err != nil {
		return nil, err
	}
	defer p.end()
	e := entry{off: rec.Offset, size: rec.Size, digest: rec.Digest}
	b, err := readSegment(p.region, &e, p.sup.dataStart, p.size)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", rec.Name(), err)
	}
	return b, nil
}

// Pin keeps a record, and what it draws from, until release is called. Pins
// count. In shared memory they belong to this kernel, and outlive the process:
// see ReleaseLeft.
func (p *Pool) Pin(kind Kind, key [32]byte) (rec *Record, release func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.live[recordKey{kind, key}]
	if r == nil {
		return nil, nil, fmt.Errorf("pin %s: %w", recordName(kind, key), ErrNotFound)
	}
	if rec, release, err = p.pin(r); err != nil {
		return nil, nil, fmt.Errorf("pin %s: %w", recordName(kind, key), err)
	}
	return rec, release, nil
}

// PinAt pins the record whose segment begins at off, a quarantined one too: for
// what a kernel was found to have mounted.
func (p *Pool) PinAt(off int64) (rec *Record, release func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.slots {
		if r != nil && r.off == off && r.word.kind() != KindChain {
			if rec, release, err = p.pin(r); err != nil {
				return nil, nil, fmt.Errorf("pin segment at %d: %w", off, err)
			}
			return rec, release, nil
		}
	}
	return nil, nil, fmt.Errorf("pin segment at %d: %w", off, ErrNotFound)
}

// pin counts a pin and makes the first one known to other kernels. Caller holds
// p.mu.
func (p *Pool) pin(r *record) (*Record, func(), error) {
	if p.seat != nil {
		// The owner is here, so nobody removes the record meanwhile.
		if _, err := p.seat.pin(r.slot, func() (bool, error) { return true, nil }); err != nil {
			return nil, nil, err
		}
	}
	r.pins++
	return r.public(), sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		r.pins--
		if p.seat == nil {
			return
		}
		if err := p.seat.unpin(r.slot); err != nil {
			log.L.WithError(err).WithField("record", r.public().Name()).Warn("unpin")
		}
	}), nil
}

// Remove takes a record out of the catalog: the sound one with that key, or
// else the quarantined ones. ErrInUse names what keeps it. Space that nothing
// else holds is free after the next sync.
func (p *Pool) Remove(ctx context.Context, kind Kind, key [32]byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := p.beginWrite(); err != nil {
		return err
	}
	defer p.end()
	p.mu.Lock()
	defer p.mu.Unlock()
	var targets []*record
	if r := p.live[recordKey{kind, key}]; r != nil {
		targets = append(targets, r)
	} else {
		for b := range p.bad {
			if b.word.kind() == kind && b.key == key {
				targets = append(targets, b)
			}
		}
	}
	if len(targets) == 0 {
		return fmt.Errorf("remove %s: %w", recordName(kind, key), ErrNotFound)
	}
	for _, r := range targets {
		if err := p.removeLocked(r); err != nil {
			return fmt.Errorf("remove %s: %w", recordName(kind, key), err)
		}
	}
	return nil
}

func (p *Pool) removeLocked(r *record) error {
	if why, err := p.busy(r, nil); why != "" || err != nil {
		return cmp.Or(err, fmt.Errorf("%s: %w", why, ErrInUse))
	}
	if !r.word.sane() { // damaged beyond having a kind
		if err := p.clearSlot(r); err != nil {
			return err
		}
		delete(p.pending, r)
		p.retire(r, p.drop(r))
		return nil
	}
	step(stepBeforeRetire)
	if err := p.writeWord(r, stateRetired); err != nil {
		return err
	}
	step(stepRecordRetired)
	delete(p.pending, r)
	if err := p.ix.remove(p.ow.copy(), r.slot, r.word.kind(), r.key); err != nil {
		p.fail(err) // a reader may be led astray by the slot's next use
		return err
	}
	step(stepRecordUnlinked)
	p.unlist(r)
	p.leaving[r] = struct{}{}
	p.releaseLeaving()
	return nil
}

// releaseLeaving lets those removed records go that no kernel has pinned. A pin
// that was set before its kernel could see that the record is RETIRED counts.
// Caller holds p.mu.
func (p *Pool) releaseLeaving() {
	for r := range p.leaving {
		pinned, err := pinnedBy(p.w, &p.sup.geometry, r.slot, -1)
		if err != nil {
			p.fail(err)
			return
		}
		if len(pinned) > 0 || r.pins > 0 {
			step(stepRecordKept)
			continue
		}
		delete(p.leaving, r)
		p.retire(r, p.drop(r))
	}
}

// busy says what keeps r, apart from images and chains that go too.
func (p *Pool) busy(r *record, going map[*record]bool) (why string, err error) {
	if r.pins > 0 {
		return fmt.Sprintf("pinned %d times", r.pins), nil
	}
	if p.w != nil {
		seats, err := pinnedBy(p.w, &p.sup.geometry, r.slot, -1)
		if err != nil {
			return "", err
		}
		if len(seats) > 0 {
			return "pinned by " + p.seatNames(seats), nil
		}
	}
	users := r.users
	var names []string
	for img := range going {
		for _, l := range img.layers {
			if l == r {
				users--
			}
		}
	}
	if users <= 0 {
		return "", nil
	}
	for _, img := range p.slots {
		if img != nil && !going[img] && slices.Contains(img.layers, r) && len(names) < 3 {
			names = append(names, recordName(img.word.kind(), img.key))
		}
	}
	return fmt.Sprintf("used by %d others (%s)", users, strings.Join(names, ", ")), nil
}

// seatNames are the holders of seats, for messages.
func (p *Pool) seatNames(seats []int) string {
	var names []string
	for _, n := range seats {
		s, _, ok, err := readSeat(p.w, &p.sup.geometry, n)
		if err != nil || !ok {
			s = &Seat{Number: n}
		}
		names = append(names, s.String())
	}
	return strings.Join(names, ", ")
}

// CollectReport says what Collect removed, or would remove.
type CollectReport struct {
	Removed []Collected
	Bytes   int64 // of all of them
}

// Collected is one record with the bytes that went with it: its segment, and
// extents that nothing else held.
type Collected struct {
	*Record
	Bytes int64
}

// Collect removes images and layers that live does not name, that are not
// pinned and, for layers, not used by an image that stays. Quarantined records
// go unless live names them and no sound record has taken their place. With
// dryRun it only reports.
//
// Preconditions: live does not call the pool.
func (p *Pool) Collect(ctx context.Context, live func(kind Kind, key [32]byte) bool, dryRun bool) (*CollectReport, error) {
	if err := p.begin(); err != nil {
		return nil, err
	}
	defer p.end()
	if p.ro && !dryRun {
		return nil, ErrReadOnly
	}
	rep := &CollectReport{}
	p.mu.Lock()
	defer p.mu.Unlock()
	going := map[*record]bool{}
	shares := map[*extent]int{} // references that go
	for _, kind := range []Kind{KindChain, KindImage, KindLayer, 0} {
		for _, r := range p.slots {
			if r == nil || going[r] || kind != 0 && r.word.kind() != kind {
				continue
			}
			if _, leaving := p.leaving[r]; leaving {
				continue
			}
			if err := ctx.Err(); err != nil {
				return rep, err
			}
			if p.wanted(r, live) {
				continue
			}
			if why, err := p.busy(r, going); why != "" || err != nil {
				if err != nil {
					return rep, err
				}
				continue
			}
			c := Collected{Record: r.public()}
			for _, s := range r.spans {
				c.Bytes += s.size
			}
			for _, e := range r.exts {
				if shares[e]++; shares[e] == e.refs {
					c.Bytes += e.space()
				}
			}
			going[r] = true
			rep.Removed = append(rep.Removed, c)
			rep.Bytes += c.Bytes
		}
	}
	if dryRun {
		return rep, nil
	}
	found := rep.Removed
	rep.Removed, rep.Bytes = nil, 0
	for _, c := range found { // what needs others comes first
		err := p.removeLocked(p.slots[c.Slot])
		if errors.Is(err, ErrInUse) {
			continue // pinned by another kernel in this moment, or needed by what was
		}
		if err != nil {
			return rep, fmt.Errorf("collect %s: %w", c.Name(), err)
		}
		rep.Removed = append(rep.Removed, c)
		rep.Bytes += c.Bytes
	}
	return rep, nil
}

func (p *Pool) wanted(r *record, live func(Kind, [32]byte) bool) bool {
	if !live(r.word.kind(), r.key) {
		return false
	}
	if r.why == "" {
		return true
	}
	return p.live[recordKey{r.word.kind(), r.key}] == nil
}
