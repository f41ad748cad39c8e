package daxmem

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
)

// ownerView audits the books under the lock and returns what to read without.
func (c *checker) ownerView() ([]subject, []job, error) {
	p := c.p
	p.mu.Lock()
	defer p.mu.Unlock()
	raw := make([]byte, p.sup.records*recordSize)
	if _, err := p.region.ReadAt(raw, catalogStart); err != nil {
		return nil, nil, fmt.Errorf("read catalog: %w", err)
	}
	retiring := map[int]bool{}
	for _, t := range p.limbo {
		if t.rec != nil {
			retiring[t.rec.slot] = true
		}
	}
	for slot, r := range p.slots {
		b := raw[slot*recordSize:][:recordSize]
		w := word(le.Uint64(b))
		name := fmt.Sprintf("catalog record %d", slot)
		switch {
		case r == nil && w.state() == stateWriting: // left by a write that failed; it names nothing
		case r == nil && w.state() != stateFree && (!retiring[slot] || w.state() != stateRetired):
			c.bad(name, slotOffset(slot), recordSize, "FREE", "%v", w)
		case r != nil && r.why == "" && !bytes.Equal(b, r.encode()):
			c.bad(name, slotOffset(slot), recordSize, r.public().Name()+", "+r.word.String(), "%v, other bytes", w)
		}
	}
	c.tile(p.owners())
	held := map[*extent]int{}
	for imp := range p.imports {
		for _, e := range imp.held {
			held[e]++
		}
	}
	subjects, jobs := c.view(p.books, held)
	return subjects, jobs, nil
}

const viewAttempts = 5

// readOnlyView loads the pool anew. When its owner changed the catalog during
// that, it tries again; what changes too fast is left out.
func (c *checker) readOnlyView(ctx context.Context) ([]subject, []job, error) {
	for attempt := 1; ; attempt++ {
		l, err := load(ctx, c.p.region, c.p.w, c.p.sup, c.p.size, false)
		if err != nil {
			return nil, nil, err
		}
		if attempt < viewAttempts && c.anyChanged(l) {
			continue
		}
		c.tile(l.owners())
		subjects, jobs := c.view(l.books, map[*extent]int{})
		return subjects, jobs, nil
	}
}

func (c *checker) anyChanged(l *loader) bool {
	raw := make([]byte, len(l.words)*recordSize)
	if _, err := c.p.region.ReadAt(raw, catalogStart); err != nil {
		return true
	}
	for slot, w := range l.words {
		if word(le.Uint64(raw[slot*recordSize:])) != w {
			return true
		}
	}
	return false
}

// view checks counts and indexes of the books, and lists what to read.
func (c *checker) view(b *books, held map[*extent]int) (subjects []subject, jobs []job) {
	users := map[*record]int{}
	drawing := map[*record][]*Record{} // images and chains, by layer
	byExtent := map[*extent][]subject{}
	for _, r := range b.slots {
		if r == nil {
			continue
		}
		for _, e := range r.exts {
			held[e]++
		}
		for _, l := range r.layers {
			users[l]++
			drawing[l] = append(drawing[l], r.public())
		}
		s := subject{entry: r.entry, rec: r}
		if _, leaving := b.leaving[r]; leaving {
			continue
		}
		if r.why != "" {
			if !c.p.ro || !c.changed(s) { // the owner's lock is held
				c.rep.Quarantined = append(c.rep.Quarantined, r.public())
			}
			continue
		}
		subjects = append(subjects, s)
		if b.live[recordKey{r.word.kind(), r.key}] != r {
			c.bad(r.public().Name(), slotOffset(r.slot), recordSize, "in the index", "it is not")
		}
	}
	for i := range subjects {
		s := &subjects[i]
		s.users = drawing[s.rec]
		for _, e := range s.rec.exts {
			byExtent[e] = append(byExtent[e], *s)
		}
	}
	for _, e := range b.byOff {
		if held[e] != e.refs || e.refs <= 0 {
			c.bad(extentName(e), e.off, e.size, fmt.Sprintf("%d references", held[e]), "count %d", e.refs)
		}
		if by := byExtent[e]; len(by) > 0 {
			jobs = append(jobs, job{e, by})
		}
		delete(held, e)
	}
	for e := range held {
		c.bad(extentName(e), e.off, e.size, "in the index", "it is not")
	}
	for r, n := range users {
		if r.users < n { // images being built count too
			c.bad(r.public().Name(), slotOffset(r.slot), recordSize, fmt.Sprintf("%d images use it", n), "count %d", r.users)
		}
	}
	slices.SortFunc(jobs, func(a, b job) int { return cmp.Compare(a.off, b.off) })
	return subjects, jobs
}

func extentName(e *extent) string { return fmt.Sprintf("extent %x", e.digest[:8]) }

// tile checks that owners cover the pool without gap or overlap.
func (c *checker) tile(owners []Owner) {
	slices.SortFunc(owners, func(a, b Owner) int { return cmp.Compare(a.Offset, b.Offset) })
	at := int64(0)
	for _, o := range owners {
		if o.Offset != at {
			c.bad(string(o.Kind), o.Offset, o.Size, fmt.Sprintf("to begin at %d, where the range before ends", at), "%d", o.Offset)
		}
		at = o.Offset + o.Size
	}
	if at != c.p.size {
		c.bad("pool", 0, c.p.size, fmt.Sprintf("owners up to %d", c.p.size), "up to %d", at)
	}
}
