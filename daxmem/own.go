package daxmem

import (
	"fmt"
	"time"

	"github.com/containerd/log"
)

// acquire takes a seat and the right to change the pool, which p.ow says from
// then on. The index that counts is still the former owner's: see serve.
func (p *Pool) acquire(sup *super, own *owner, boot [16]byte) error {
	g := &sup.geometry
	id := Identity{Boot: boot, Instance: p.opts.Instance, Holder: HolderName(p.opts.Holder)}
	// In a private region whoever else was there went with an earlier boot.
	alone := p.region.Private()
	former, err := loadOwnerWord(p.w)
	if err != nil {
		return err
	}
	holder, _, there, err := readSeat(p.w, g, former.seat())
	if err != nil {
		return err
	}
	gone := !there || alone || id.Instance != "" && holder.Instance == id.Instance && holder.Damaged == ""
	if former.state() != ownedByNobody && holder.Boot != boot && !gone {
		return fmt.Errorf("the pool is %v, %v, last heard of %v; if that kernel is gone, evict its seat: %w", former, holder, holder.Heartbeat.Format(time.RFC3339), ErrOwned)
	}
	fixed := p.opts.seat()
	if fixed < 0 && !p.w.Atomic() {
		fixed = 0 // the owner's, where seats are given by configuration
	}
	if p.seat, err = claimSeat(p.w, g, id, fixed, alone); err != nil {
		return err
	}
	step(stepSeatTaken)
	fence := former.fence()
	if former.state() == ownedByNobody || alone || former.state() == owned && there && holder.Boot == boot && own.boot == boot {
		// The former owner has let go, or its process has ended: the region's
		// lock is ours. A takeover that was cut short is begun again; and who
		// sits in the owner's seat need not have been the owner.
		if err := p.swapOwner(former, makeOwnerWord(owned, p.seat.number, former.copy(), fence)); err != nil {
			return err
		}
		step(stepPoolAcquired)
		return nil
	}
	if err := p.swapOwner(former, makeOwnerWord(beingTaken, p.seat.number, former.copy(), fence+1)); err != nil {
		return err
	}
	step(stepTakeoverBegun)
	return p.fenceWords(g)
}

// swapOwner changes the owner word.
func (p *Pool) swapOwner(old, now ownerWord) error {
	ok, err := p.w.CompareAndSwap(ownerWordAt, uint64(old), uint64(now))
	if err != nil {
		return windowError("change owner word", err)
	}
	if !ok {
		return fmt.Errorf("change owner word from %v to %v: somebody else changed it: %w", old, now, ErrOwned)
	}
	p.ow = now
	return nil
}

// fenceWords gives every state word the new fence, so that what the former owner
// may still do fails. Slots whose payload it may be writing at this moment are
// not used by this owner.
func (p *Pool) fenceWords(g *geometry) error {
	for slot := range g.records {
		for {
			v, err := p.w.Load(slotOffset(slot))
			if err != nil {
				return windowError("fence catalog", err)
			}
			ok, err := p.w.CompareAndSwap(slotOffset(slot), v, uint64(word(v).fenced(p.ow.fence())))
			if err != nil {
				return windowError("fence catalog", err)
			}
			if ok {
				if st := word(v).state(); st != stateFree && st != stateLive {
					p.withheld[slot] = true
				}
				break
			}
		}
	}
	step(stepCatalogFenced)
	return nil
}

// serve builds the index in the copy that does not count, and makes it count.
func (p *Pool) serve() error {
	copy := 1 - p.ow.copy()
	if err := p.ix.build(copy, p.indexed()); err != nil {
		return err
	}
	step(stepIndexBuilt)
	if err := p.swapOwner(p.ow, makeOwnerWord(owned, p.seat.number, copy, p.ow.fence())); err != nil {
		return err
	}
	step(stepPoolOwned)
	return nil
}

// indexed are the records that can be found, by slot.
func (p *Pool) indexed() []*record {
	out := make([]*record, len(p.slots))
	for _, r := range p.live {
		out[r.slot] = r
	}
	return out
}

// beat says that this kernel is there, and looks after removed records that
// other kernels had pinned.
func (p *Pool) beat() {
	defer p.syncer.Done()
	for {
		if err := p.seat.beat(time.Now()); err != nil {
			log.L.WithError(err).WithField("region", p.region.Path()).Error("heartbeat")
			return
		}
		p.mu.Lock()
		if len(p.leaving) > 0 {
			p.wake()
		}
		p.mu.Unlock()
		select {
		case <-p.stop:
			return
		case <-time.After(heartbeat):
		}
	}
}

// ReleaseLeft takes back the pins that an earlier process of this kernel has
// left and that this one has not taken again by now. Until then they count.
func (p *Pool) ReleaseLeft() (n int, err error) {
	if err := p.beginWrite(); err != nil {
		return 0, err
	}
	defer p.end()
	return releaseLeft(p.seat)
}

// Seats lists the kernels at the pool.
func (p *Pool) Seats() ([]*Seat, error) { return readSeats(p.w, &p.sup.geometry, p.seat) }

// giveUp lets go of what acquire has taken, after an open that failed: another
// kernel may do better. A takeover stays begun, so that whoever comes fences the
// former owner.
func (p *Pool) giveUp() error {
	if p.seat == nil {
		return nil
	}
	if p.ow.state() == owned {
		if err := p.swapOwner(p.ow, makeOwnerWord(ownedByNobody, p.seat.number, p.ow.copy(), p.ow.fence())); err != nil {
			return err
		}
	}
	return p.seat.leave()
}

// disown lets go of a pool that was closed, and of the seat if nothing is pinned.
func (p *Pool) disown() error {
	if err := p.swapOwner(p.ow, makeOwnerWord(ownedByNobody, p.seat.number, p.ow.copy(), p.ow.fence())); err != nil {
		return err
	}
	step(stepPoolDisowned)
	return p.seat.leave()
}
