package daxmem

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"
)

// A full pool has things removed until there is room, and no more; for what
// would not fit into an empty one, nothing.
func TestReclaim(t *testing.T) {
	p, _ := newPool(t, 16*mib, manual)
	n, calls := 0, 0
	for ; ; n++ {
		if _, err := tryLayer(p, key(fmt.Sprint(n)), randomBytes(uint64(n), mib)); errors.Is(err, ErrFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	oldest := 0
	p.SetReclaim(func(ctx context.Context) bool {
		calls++
		if oldest == n {
			return false
		}
		if err := p.Remove(ctx, KindLayer, key(fmt.Sprint(oldest))); err != nil {
			t.Error(err)
		}
		oldest++
		return true
	})
	if _, err := tryLayer(p, key("too large"), randomBytes(1, 16*mib)); !errors.Is(err, ErrFull) || calls != 0 {
		t.Errorf("larger than the pool: %v, %d calls", err, calls)
	}
	addLayer(t, p, "three", randomBytes(1000, 3*mib))
	if oldest < 3 || oldest > 4 || calls != oldest {
		t.Errorf("%d layers of 1 MiB went in %d calls for 3 MiB", oldest, calls)
	}
	mustCheck(t, p)
	// Nothing is left to remove.
	p.SetReclaim(func(context.Context) bool { calls = -1; return false })
	for i := 0; calls >= 0; i++ {
		if _, err := tryLayer(p, key(fmt.Sprint("more", i)), randomBytes(uint64(2000+i), mib)); calls < 0 && !errors.Is(err, ErrFull) {
			t.Errorf("nothing to remove: %v, want %v", err, ErrFull)
		}
	}
	mustCheck(t, p)
}

// The same for records of the catalog.
func TestReclaimRecords(t *testing.T) {
	p, _ := newPool(t, 16*mib, manual)
	addLayer(t, p, "a", randomBytes(1, 100))
	chain := func(n int) [32]byte { return key(fmt.Sprint("chain", n)) }
	n := 0
	for ; ; n++ {
		if _, err := p.PublishChain(bg, chain(n), key("a"), [32]byte{}); errors.Is(err, ErrFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	p.SetReclaim(func(ctx context.Context) bool { return p.Remove(ctx, KindChain, chain(0)) == nil })
	if _, err := p.PublishChain(bg, chain(n), key("a"), [32]byte{}); err != nil {
		t.Error(err)
	}
	if _, err := p.PublishChain(bg, chain(n+1), key("a"), [32]byte{}); !errors.Is(err, ErrFull) {
		t.Errorf("no more to remove: %v, want %v", err, ErrFull)
	}
	mustCheck(t, p)
}

// Many imports at once, in a pool that holds few of them.
func TestReclaimConcurrent(t *testing.T) {
	p, _ := newPool(t, 32*mib, manual)
	p.SetReclaim(func(ctx context.Context) bool {
		rep, err := p.Collect(ctx, func(Kind, [32]byte) bool { return false }, false)
		if err != nil {
			t.Error(err)
		}
		return len(rep.Removed) > 0
	})
	var g errgroup.Group
	var imported atomic.Int64
	for w := range 4 {
		g.Go(func() error {
			for i := range 25 {
				seed := uint64(w*100 + i)
				_, err := tryLayer(p, key(fmt.Sprint(seed)), randomBytes(seed, 2*mib), randomBytes(seed+1, 5000))
				if err != nil {
					return err
				}
				imported.Add(1)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil || imported.Load() != 100 {
		t.Errorf("%d imports, %v", imported.Load(), err)
	}
	mustCheck(t, p)
}
