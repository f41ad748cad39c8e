package daxmem

import (
	"context"
	"io"
	"time"
)

// paceSlack is how far reading may run ahead of its rate, and how much of a
// pause it may make up for: sleeping for less costs more than it gives.
const paceSlack = 10 * time.Millisecond

// pace bounds how fast bytes are read. It is for one goroutine.
type pace struct {
	rate int64     // bytes per second; 0: unbounded
	due  time.Time // when all that was taken so far may have been read
}

// wait returns when n more bytes may be read, or with ctx's error.
func (p *pace) wait(ctx context.Context, n int64) error {
	if p.rate <= 0 {
		return ctx.Err()
	}
	now := time.Now()
	if oldest := now.Add(-paceSlack); p.due.Before(oldest) {
		p.due = oldest
	}
	p.due = p.due.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	ahead := p.due.Sub(now)
	if ahead <= paceSlack {
		return ctx.Err()
	}
	t := time.NewTimer(ahead)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pacedReader is one call's way to read at a pace.
type pacedReader struct {
	io.ReaderAt
	wait func(n int64) error
	done func(n int64)
}

func (r pacedReader) ReadAt(b []byte, off int64) (int, error) {
	if err := r.wait(int64(len(b))); err != nil {
		return 0, err
	}
	n, err := r.ReaderAt.ReadAt(b, off)
	r.done(int64(n))
	return n, err
}
