package daxmem

import "context"

// SetReclaim has f called when there is no room for something, without locks:
// f removes what can be missed, with Remove or Collect, and reports whether it
// removed anything. It is called until there is room, or nothing is left to
// remove; only then is it ErrFull. nil: nothing can be missed.
//
// f may be called by several goroutines at once, inside any call that stores
// something, with the context of that call.
func (p *Pool) SetReclaim(f func(ctx context.Context) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reclaim = f
}

// makeRoom is what a call does that finds no room: it waits for what was
// removed to become free, or has something removed. full is what it would fail
// with, and the error when nothing helps; nil: it is to try again.
func (p *Pool) makeRoom(ctx context.Context, full error) error {
	if p.removals() {
		return p.flush(ctx)
	}
	p.mu.Lock()
	reclaim := p.reclaim
	p.mu.Unlock()
	if reclaim != nil && reclaim(ctx) {
		return nil
	}
	// Another call may have removed the last that could go, after this one had
	// looked.
	if p.removals() {
		return p.flush(ctx)
	}
	return full
}

// removals reports whether something was removed that a sync makes free.
func (p *Pool) removals() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.limbo) > 0
}
