package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/daxfs/containerd-daxfs/daxmem"
)

// spillDelay is how long the spill waits for company after a change.
const spillDelay = time.Second

// spill is a pool on disk with copies of the layers that snapshots need, for a
// pool in memory. Images are not in it: they are made from layers in
// milliseconds. One goroutine, begun by start, first brings back what the pool
// has lost, and then keeps the copies up to date.
//
// A layer counts as kept when it is in the spill's catalog, which is durable
// about a second later. A nil spill does nothing.
type spill struct {
	*store
	pool *daxmem.Pool
	kick chan struct{}
	stop context.CancelFunc
	done sync.WaitGroup
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

func (p *spill) start(ctx context.Context, s *Snapshotter) {
	ctx, p.stop = context.WithCancel(context.WithoutCancel(ctx))
	p.done.Go(func() {
		s.restore(ctx)
		for {
			if err := s.spillLayers(ctx); err != nil && ctx.Err() == nil {
				log.G(ctx).WithError(err).WithField("spill", p.pool.Region().Path()).Warn("spill layers to disk")
			}
			select {
			case <-ctx.Done():
				return
			case <-p.kick:
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(spillDelay):
			}
		}
	})
}

// end waits for the goroutine, which gives up a copy that it is at.
func (p *spill) end() {
	p.stop()
	p.done.Wait()
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

// restore brings layers back that snapshots need and the pool has lost: those
// that containers stand on first. Who needs one before its turn gets it at once
// (images.flatten).
func (s *Snapshotter) restore(ctx context.Context) {
	start := time.Now()
	layers, chains, err := s.wantedLayers(ctx)
	if err != nil {
		log.G(ctx).WithError(err).Error("restore layers from the spill")
		return
	}
	restored, bytes := 0, uint64(0)
	for _, k := range layers {
		if _, err := s.pool.Layer(k); err == nil {
			continue
		}
		err := copyLayer(ctx, s.spill.store, s.pool, k)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			log.G(ctx).WithError(err).WithField("layer", k).Error("restore layer from the spill")
			continue
		}
		if rec, err := s.pool.Layer(k); err == nil {
			restored, bytes = restored+1, bytes+rec.DataBytes
		}
	}
	for _, c := range chains {
		if _, err := s.pool.PublishChain(ctx, c.id, c.layer, c.below); err != nil && !errdefs.IsNotFound(err) {
			log.G(ctx).WithError(err).WithField("chain", key(c.id)).Warn("publish chain of a restored layer")
		}
	}
	if restored > 0 {
		log.G(ctx).WithField("layers", restored).WithField("bytes", bytes).WithField("took", time.Since(start)).Info("layers restored from the spill")
	}
}

// chainRecord is what a chain record says.
type chainRecord struct{ id, layer, below [32]byte }

// wantedLayers lists the layers of all snapshots, those of active ones and views
// first, each from the bottom up, and the chains that committed ones are.
func (s *Snapshotter) wantedLayers(ctx context.Context) (layers chain, chains []chainRecord, err error) {
	var first, rest chain
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			if k, ok, _ := staged(info); ok {
				first = append(first, k)
			}
			if info.Kind != snapshots.KindCommitted {
				if c, err := chainOf(ctx, info.Parent); err == nil {
					first = append(first, c...)
				}
				return nil
			}
			k, err := layerOf(info)
			if err != nil {
				return nil // recover has reported it
			}
			rest = append(rest, k)
			id, ok := chainID(info.Name)
			below, okBelow := chainID(info.Parent)
			if ok && (info.Parent == "" || okBelow) {
				chains = append(chains, chainRecord{id, k, below})
			}
			return nil
		})
	})
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, nil, fmt.Errorf("walk snapshots: %w", err)
	}
	seen := make(map[key]bool)
	for _, k := range append(first, rest...) {
		if !seen[k] {
			seen[k] = true
			layers = append(layers, k)
		}
	}
	return layers, chains, nil
}
