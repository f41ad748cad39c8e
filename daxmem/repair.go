package daxmem

import (
	"context"

	"github.com/containerd/log"
)

// repair makes the medium agree with what was loaded.
func (p *Pool) repair(ctx context.Context, l *loader, clean, lossy bool) error {
	if err := p.writeOwner(); err != nil {
		return err
	}
	step(stepPoolOpen)
	for _, r := range l.drops {
		if r.word.state() != stateLive {
			continue // WRITING or RETIRED already
		}
		if err := p.writeWord(r, stateRetired); err != nil {
			return err
		}
	}
	if !clean {
		// What this process finds retired may be so in the page cache only.
		if err := p.region.Sync(); err != nil {
			return err
		}
	}
	for _, r := range l.drops {
		log.G(ctx).WithField("record", r.slot).WithField("word", r.word).Info("drop unfinished catalog record")
		if err := p.clearSlot(r); err != nil {
			return err
		}
	}
	for r := range p.bad {
		log.G(ctx).WithField("record", recordName(r.word.kind(), r.key)).WithField("slot", r.slot).
			WithField("reason", r.why).Warn("quarantine catalog record")
		if err := p.markBad(r); err != nil {
			return err
		}
	}
	if !clean {
		// Imports that died left bytes behind, and so did records whose place is
		// not known any more (invariant Z).
		for off, n := range p.alloc.All() {
			if err := p.region.Punch(off, n); err != nil {
				return err
			}
		}
	}
	for _, r := range p.live {
		if r.flags&flagDurable == 0 {
			p.pending[r] = struct{}{}
		}
	}
	if lossy {
		p.own.state = ownerOpen
		return p.writeOwner()
	}
	return nil
}

// markBad makes a quarantine last: what failed under suspicion once must not
// be believed by an Open that has no reason to hash. A record whose own
// checksum is wrong says so itself.
func (p *Pool) markBad(r *record) error {
	b := make([]byte, recordSize)
	if _, err := p.region.ReadAt(b, slotOffset(r.slot)); err != nil {
		return err
	}
	e, cond, _ := decodeEntry(b)
	if cond != condLive || e.flags&flagQuarantined != 0 {
		return nil
	}
	err := p.setFlags(&e, r.slot, e.flags|flagQuarantined)
	r.flags = e.flags
	step(stepRecordQuarantined)
	return err
}
