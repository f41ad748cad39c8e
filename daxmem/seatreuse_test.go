package daxmem

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// What the owner has told a seat's former holder is no answer to the next one.
func TestAskAtUsedSeat(t *testing.T) {
	p := newShared(t, 64*mib, manual)
	ctx, stop := context.WithCancel(bg)
	var serving sync.WaitGroup
	defer serving.Wait()
	defer stop()
	var answered atomic.Int64
	serving.Go(func() {
		if err := p.Serve(ctx, func(context.Context, *Request) error { answered.Add(1); return nil }); err != nil {
			t.Error(err)
		}
	})
	number := 7
	for n := range 3 {
		opts := asKernel(byte(n + 1))
		opts.Seat = &number
		r, err := Attach(bg, unlocked(t, p.path, toAttach), opts)
		if err != nil {
			t.Fatal(err)
		}
		for range n + 1 {
			before := answered.Load()
			asking, done := context.WithTimeout(bg, 10*time.Second)
			if err := r.Ask(asking, &Request{Kind: AskFlatten, Chain: key("chain")}); err != nil {
				t.Error(err)
			}
			done()
			if answered.Load() == before {
				t.Errorf("holder %d was answered, and nobody was asked", n)
			}
		}
		var w Watch
		u := look(t, &w, p.path)
		if len(u.Asked) != 1 || u.Asked[0].Number != number || u.Asked[0].Times != uint32(n+1) || u.Asked[0].Outcome != "done" || u.Asked[0].Chain != key("chain") {
			t.Errorf("asked %+v", u.Asked)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
