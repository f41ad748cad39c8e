package daxmem

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/log"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// allocate takes space by try, which runs with p.mu held. When the pool is
// full, room is made as far as that can be done.
func (p *Pool) allocate(ctx context.Context, what string, n int64, try func() (int64, bool)) (int64, error) {
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if err := p.mayWrite(); err != nil {
			return 0, err
		}
		p.mu.Lock()
		need := disk.AlignUp(n, blockSize)
		if need > 0 && need <= p.limit-p.usedBytes() {
			if off, ok := try(); ok {
				p.inflight[off] = need
				p.mu.Unlock()
				return off, nil
			}
		}
		full := p.full(what, n, nil)
		p.mu.Unlock()
		if need > p.limit-p.sup.dataStart {
			return 0, full // an empty pool would not do
		}
		if err := p.makeRoom(ctx, full); errors.Is(err, ErrFull) {
			return 0, full
		} else if err != nil {
			return 0, errors.Join(full, err)
		}
	}
}

func (p *Pool) full(what string, n int64, cause error) error {
	return &FullError{
		Path: p.region.Path(), What: what, Wanted: n,
		Free: min(p.alloc.FreeBytes(), p.limit-p.usedBytes()), Largest: p.alloc.Largest(),
		Maximum: p.limit, Cause: cause,
	}
}

// writeFailed turns a full file system into ErrFull.
func (p *Pool) writeFailed(what string, n int64, err error) error {
	if !isNoSpace(err) {
		return fmt.Errorf("write %s: %w", what, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.full(what, n, err)
}

// giveBack returns space that allocate gave and that no record ever named. It
// does nothing when the space has been declared lost meanwhile.
func (p *Pool) giveBack(ctx context.Context, off int64) {
	p.mu.Lock()
	n, ok := p.inflight[off]
	p.mu.Unlock()
	if ok {
		p.release(ctx, []span{{off, n}})
	}
}

// release zeroes spans that are in flight and gives them to the allocator. It
// runs to its end whatever ctx says: leaving half way would leak.
func (p *Pool) release(ctx context.Context, spans []span) {
	bad := map[span]bool{}
	for _, run := range merge(spans) {
		err := p.mayWrite() // else it may be another owner's data by now
		if err == nil {
			err = p.region.Punch(run.off, run.size)
		}
		if err != nil {
			log.G(ctx).WithError(err).WithField("offset", run.off).WithField("size", run.size).Error("give space back to the region")
			bad[run] = true
		}
	}
	if len(spans) > 0 {
		step(stepSpaceGivenBack)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range spans {
		delete(p.inflight, s.off)
	}
	for _, run := range merge(spans) {
		if bad[run] {
			p.lost = append(p.lost, run)
			continue
		}
		p.alloc.Free(run.off, run.size)
	}
}

// merge returns spans in order, neighbours joined.
func merge(spans []span) []span {
	sorted := slices.SortedFunc(slices.Values(spans), func(a, b span) int { return cmp.Compare(a.off, b.off) })
	var out []span
	for _, s := range sorted {
		if n := len(out); n > 0 && out[n-1].off+out[n-1].size == s.off {
			out[n-1].size += s.size
			continue
		}
		out = append(out, s)
	}
	return out
}
