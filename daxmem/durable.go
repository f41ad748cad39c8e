package daxmem

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/log"
)

// retired is space that a record named until it was removed, and the record. A
// crash can bring the record back as long as its RETIRED word is not on the
// medium, so until a sync has passed the space keeps its bytes (invariant R).
type retired struct {
	rec   *record // nil: extents whose last holder was an import
	spans []span
}

// retire puts space and record into limbo. Caller holds p.mu.
func (p *Pool) retire(r *record, spans []span) {
	if r != nil || len(spans) > 0 {
		p.limbo = append(p.limbo, retired{r, spans})
		p.wake()
	}
}

const defaultSyncDelay = 200 * time.Millisecond

func (p *Pool) startSyncer() {
	delay := p.opts.SyncDelay
	if delay < 0 {
		return
	}
	if delay == 0 {
		delay = defaultSyncDelay
	}
	p.syncer.Add(2)
	go p.beat()
	go func() {
		defer p.syncer.Done()
		for {
			select {
			case <-p.stop:
				return
			case <-p.kick:
			}
			select {
			case <-p.stop:
				return
			case <-time.After(delay):
			}
			if err := p.syncOnce(); err != nil {
				log.L.WithError(err).WithField("region", p.region.Path()).Error("sync pool")
				return // the error is sticky
			}
		}
	}()
	if len(p.pending) > 0 {
		p.wake()
	}
}

func (p *Pool) wake() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// Sync waits until everything published so far survives a loss of power, and
// gives back the space of what was removed.
func (p *Pool) Sync(ctx context.Context) error {
	if err := p.beginWrite(); err != nil {
		return err
	}
	defer p.end()
	return p.flush(ctx)
}

// flush is syncOnce for callers that can be cancelled: the sync goes on then.
func (p *Pool) flush(ctx context.Context) error {
	done := make(chan error, 1)
	p.ops.Add(1) // the caller holds one, so Close has not passed Wait
	go func() {
		defer p.ops.Done()
		done <- p.syncOnce()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// syncOnce syncs the region, then marks as durable what was published before,
// and frees what was retired before.
//
// Only one runs at a time, so the head of limbo that it works on stays.
func (p *Pool) syncOnce() error {
	p.syncs <- struct{}{}
	defer func() { <-p.syncs }()

	p.mu.Lock()
	if p.syncErr != nil {
		defer p.mu.Unlock()
		return p.syncErr
	}
	if err := p.mayWrite(); err != nil {
		p.fail(err)
		defer p.mu.Unlock()
		return p.syncErr
	}
	p.releaseLeaving()
	batch := make([]*record, 0, len(p.pending))
	for r := range p.pending {
		batch = append(batch, r)
	}
	limbo := p.limbo[:len(p.limbo):len(p.limbo)]
	p.mu.Unlock()

	if err := p.region.Sync(); err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.fail(err)
		return p.syncErr
	}
	step(stepRegionSynced)
	var spans []span
	for _, t := range limbo {
		spans = append(spans, t.spans...)
	}
	for _, run := range merge(spans) {
		err := p.mayWrite()
		if err == nil {
			err = p.region.Punch(run.off, run.size)
		}
		if err != nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.fail(err)
			return p.syncErr
		}
	}
	if len(spans) > 0 {
		step(stepSpacePunched)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range limbo {
		if t.rec == nil {
			continue
		}
		if err := p.clearSlot(t.rec); err != nil {
			p.fail(err)
			return p.syncErr
		}
		if !p.withheld[t.rec.slot] {
			p.avail = append(p.avail, t.rec.slot)
		}
	}
	for _, run := range merge(spans) {
		p.alloc.Free(run.off, run.size)
	}
	p.limbo = p.limbo[len(limbo):]
	for _, r := range batch {
		if _, still := p.pending[r]; !still {
			continue // removed meanwhile
		}
		if err := p.setFlags(&r.entry, r.slot, r.flags|flagDurable); err != nil {
			p.fail(err)
			return p.syncErr
		}
		delete(p.pending, r)
		step(stepRecordDurable)
	}
	return nil
}

// setFlags changes the flags of a record and its checksum by one store.
func (p *Pool) setFlags(e *entry, slot int, flags uint32) error {
	old := e.flagWord()
	now := *e
	now.flags = flags
	ok, err := p.w.CompareAndSwap(slotOffset(slot)+8, old, now.flagWord())
	if err == nil && !ok {
		err = p.sameFlags(slot, now.flagWord())
	}
	if err != nil {
		return fmt.Errorf("write flags of catalog record %d: %w", slot, err)
	}
	e.flags = flags
	return nil
}

// sameFlags tells why flags are not what they were: another owner, damage, or
// nil when they are what they shall be, by the last write of a former owner.
func (p *Pool) sameFlags(slot int, want uint64) error {
	if err := p.mayWrite(); err != nil {
		return err
	}
	there, err := p.w.Load(slotOffset(slot) + 8)
	if err == nil && there != want {
		err = corruptf("flags are %#x, want %#x", uint32(there), uint32(want))
	}
	return err
}

// fail records that the medium's state is not known any more: after a failed
// sync the kernel forgets which pages it could not write. Nothing becomes
// durable or reusable until the pool has been opened, and proved, anew. Caller
// holds p.mu.
func (p *Pool) fail(cause error) {
	if p.syncErr != nil {
		return
	}
	p.syncErr = fmt.Errorf("pool %s: sync failed, nothing is made durable until it is opened again: %w", p.region.Path(), cause)
	if errors.Is(cause, ErrFenced) {
		return // it is another's superblock
	}
	p.own.state = ownerSuspect
	if err := p.writeOwner(); err != nil {
		log.L.WithError(err).WithField("region", p.region.Path()).Error("mark pool as suspect")
	}
}
