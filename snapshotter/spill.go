package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/log"

	"github.com/daxfs/containerd-daxfs/daxmem"
)

// spillDelay is how long the spill waits for company after a change.
const spillDelay = time.Second

// spill is a pool on disk with copies of the layers that snapshots need, for a
// pool in memory. Images are not in it: they are made from layers in
// milliseconds. One goroutine keeps the copies up to date.
//
// A layer counts as kept when it is in the spill's catalog, which is durable
// about a second later. A nil spill does nothing.
type spill struct {
	*store
	pool *daxmem.Pool
	kick chan struct{}
}

func newSpill(pool *daxmem.Pool) *spill {
	return &spill{store: &store{catalog: pool}, pool: pool, kick: make(chan struct{}, 1)}
}

// wake tells the spill that snapshots have come or gone.
func (p *spill) wake() {
	if p == nil {
		return
	}
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// has reports whether there is a copy of a layer.
func (p *spill) has(k key) bool {
	if p == nil {
		return false
	}
	_, err := p.Layer(k)
	return err == nil
}

// keepSpill keeps the spill up to date until ctx ends.
func (s *Snapshotter) keepSpill(ctx context.Context) {
	for {
		if err := s.spillLayers(ctx); err != nil && ctx.Err() == nil {
			log.G(ctx).WithError(err).WithField("spill", s.spill.pool.Region().Path()).Warn("spill layers to disk")
		}
		select {
		case <-ctx.Done():
			return
		case <-s.spill.kick:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(spillDelay):
		}
	}
}

// spillLayers copies the layers to disk that snapshots need and that are not
// there, and removes those that no snapshot needs any more. It goes on to the
// next layer after an error.
func (s *Snapshotter) spillLayers(ctx context.Context) error {
	live, err := Live(ctx, s.ms)
	if err != nil {
		return err
	}
	if _, err := s.spill.pool.Collect(ctx, live.Has, false); err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	var errs []error
	for k := range live.layers {
		if err := ctx.Err(); err != nil {
			return err
		}
		// Lost here: it is what the spill is for, or too late.
		if err := copyLayer(ctx, s.images.own, s.spill.pool, k); err != nil && !errors.Is(err, ErrLayerLost) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
