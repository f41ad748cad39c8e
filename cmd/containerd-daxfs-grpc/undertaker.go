package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/config"
	"github.com/daxfs/containerd-daxfs/internal/instances"
)

// undertaker evicts the seats of kernels that the orchestrator says are gone: the
// pool's owner those of others, a reader that is to be the next owner that of the
// owner.
type undertaker struct {
	watcher   *instances.Watcher
	pool      sharedPool
	ownerOnly bool
	evicted   int // since the start
	trouble   string
}

// sharedPool is what the undertaker needs of a daxmem.Pool or a daxmem.Reader.
type sharedPool interface {
	Seats() ([]*daxmem.Seat, error)
	Region() daxmem.Region
}

// newUndertaker returns nil where there is nothing to do: no orchestrator, or a
// reader that stays one.
func newUndertaker(cfg *config.Config, p *pools) (*undertaker, error) {
	o, err := cfg.Share.Orchestrator()
	if o == nil || err != nil {
		return nil, err
	}
	u := &undertaker{watcher: instances.NewWatcher(o)}
	switch {
	case p.shared == nil:
		u.pool = p.own
	case p.successor:
		u.pool, u.ownerOnly = p.shared, true
	default:
		return nil, nil
	}
	return u, needSwap(cfg.Share.Instances, u.pool.Region().Kind())
}

// needSwap refuses memory without compare-and-swap: there an eviction could free
// the seat of an instance that starts again at this moment.
func needSwap(orchestrator, kind string) error {
	if info, _ := daxmem.InfoOf(kind); !info.Atomic {
		return fmt.Errorf("share.instances is %q, but memory of kind %s has no compare-and-swap: leave it out, and use daxfsctl lease evict: %w",
			orchestrator, kind, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// run looks until ctx ends. collect frees what nobody needs any more.
func (u *undertaker) run(ctx context.Context, collect func(context.Context) error) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchPause):
		}
		if u.look(ctx) && !u.ownerOnly {
			if err := collect(ctx); err != nil {
				log.G(ctx).WithError(err).Warn("free what instances that are gone had pinned")
			}
		}
	}
}

// look evicts who is gone, and reports whether there was anybody.
func (u *undertaker) look(ctx context.Context) (any bool) {
	gone, err := u.watcher.Look(ctx, u.pool.Seats)
	u.report(ctx, err)
	for _, g := range gone {
		if u.ownerOnly && !g.Owner {
			continue // the owner's business
		}
		l := log.G(ctx).WithField("seat", g.Number).WithField("generation", g.Generation).WithField("instance", g.Instance).
			WithField("state", g.Status.State.String()).WithField("pins", g.Pins)
		err := daxmem.Evict(u.pool.Region(), g.Number, g.Generation)
		if errors.Is(err, daxmem.ErrSeats) || errors.Is(err, daxmem.ErrNotFound) {
			l.WithError(err).Debug("somebody else was faster")
			continue
		}
		if err != nil {
			l.WithError(err).Error("evict the seat of an instance that is gone")
			continue
		}
		u.evicted++
		any = true
		l.WithField("evicted", u.evicted).Warn("evicted the seat of an instance that is gone")
	}
	return any
}

// report logs trouble once, and its end.
func (u *undertaker) report(ctx context.Context, err error) {
	trouble := ""
	if err != nil {
		trouble = err.Error()
	}
	if trouble == u.trouble || ctx.Err() != nil {
		return
	}
	u.trouble = trouble
	if err != nil {
		log.G(ctx).WithError(err).Warn("the orchestrator cannot be asked, nobody is taken for gone")
		return
	}
	log.G(ctx).Info("the orchestrator answers")
}
