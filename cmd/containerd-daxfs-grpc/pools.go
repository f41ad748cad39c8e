package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/config"
	"github.com/daxfs/containerd-daxfs/internal/engine"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// pools are what the daemon keeps images in: a pool that it owns, and another
// kernel's. One of them may be missing.
type pools struct {
	own          *daxmem.Pool
	engine       engine.Engine
	shared       *daxmem.Reader
	sharedEngine engine.Engine
	// former is the pool that this daemon had for itself while another kernel
	// owned the shared one; only at start.
	former *daxmem.Pool

	// Of a pool that is the kernels' own, not of a reader's private one.
	keep    snapshotter.Keep
	spill   *daxmem.Pool        // or nil
	content snapshotter.Content // or nil

	// successor: when the other kernel's pool has no owner any more, this
	// daemon is to own it.
	successor bool
}

// openPools opens what the configuration names, in this kernel's role.
func openPools(ctx context.Context, cfg *config.Config) (_ *pools, err error) {
	p := &pools{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if cfg.Share.Role != config.RoleOwner && cfg.Share.OwnPool == cfg.Pool.Path {
		return p, fmt.Errorf("share.own_pool and pool.path are both %q: a reader's own pool is another one: %w", cfg.Pool.Path, errdefs.ErrInvalidArgument)
	}
	opts := cfg.PoolOptions()
	if cfg.Share.Role != config.RoleReader {
		p.own, err = openPool(ctx, cfg, cfg.Pool.Path, opts)
		if err == nil || cfg.Share.Role == config.RoleOwner || !errors.Is(err, daxmem.ErrOwned) {
			if err == nil {
				p.engine, err = selectEngine(ctx, cfg, p.own)
			}
			if err == nil && cfg.Share.Role == config.RoleAuto {
				p.former, err = openFormer(ctx, cfg.Share.OwnPool, opts)
			}
			if err == nil {
				p.keep = cfg.Pool.Keep()
				p.spill, err = openSpill(ctx, cfg, p.own)
				if cfg.Containerd != "" {
					p.content = newContentStore(cfg.Containerd)
				}
			}
			return p, err
		}
		log.G(ctx).WithError(err).Info("another kernel owns the pool, attaching to it as a reader")
		p.successor = true
	}
	region, err := daxmem.OpenRegionShared(cfg.Pool.Path)
	if err == nil {
		p.shared, err = daxmem.Attach(ctx, region, opts)
	}
	if err != nil {
		return p, err
	}
	p.sharedEngine = &engine.Best{Order: cfg.Engine.Order}
	if cfg.Share.Missing == snapshotter.MissingFail {
		return p, nil
	}
	opts.Seat = nil
	if p.own, err = openPool(ctx, cfg, cfg.Share.OwnPool, opts); err == nil {
		p.engine, err = selectEngine(ctx, cfg, p.own)
	}
	return p, err
}

// openPool opens or makes the pool at a location as its owner.
func openPool(ctx context.Context, cfg *config.Config, location string, opts daxmem.Options) (*daxmem.Pool, error) {
	pool, err := daxmem.OpenOrCreate(ctx, location, opts)
	switch {
	case errors.Is(err, daxmem.ErrOwned):
		return nil, fmt.Errorf("%w (is there a second daemon? daxfsctl pool stat names the owner)", err)
	case errors.Is(err, daxmem.ErrNotPool):
		return nil, fmt.Errorf("%w (if nobody needs it, daxfsctl pool create --force overwrites it)", err)
	case err != nil:
		return nil, err
	}
	if pool.SelfContained() == cfg.Pool.ShareExtents {
		err := fmt.Errorf("pool.share_extents is %v, but the pool in %s was made with %v: correct it, or make a new pool: %w",
			cfg.Pool.ShareExtents, location, !cfg.Pool.ShareExtents, errdefs.ErrFailedPrecondition)
		return nil, errors.Join(err, pool.Close())
	}
	return pool, nil
}

// openFormer opens the pool of a reader that is the owner now; nil where it had
// none.
func openFormer(ctx context.Context, location string, opts daxmem.Options) (*daxmem.Pool, error) {
	opts.MaxSize, opts.Seat = 0, nil
	region, err := daxmem.OpenRegion(location)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return daxmem.Open(ctx, region, opts)
}

// openSpill opens or makes the copy on disk of a pool in memory; nil: there is
// to be none.
func openSpill(ctx context.Context, cfg *config.Config, pool *daxmem.Pool) (*daxmem.Pool, error) {
	if !cfg.Pool.Persist {
		return nil, nil
	}
	if pool.Region().Persistent() {
		return nil, fmt.Errorf("pool.persist is true, but the pool in %s is not lost in a reboot: leave it out: %w", cfg.Pool.Path, errdefs.ErrFailedPrecondition)
	}
	spill, err := daxmem.OpenOrCreate(ctx, cfg.SpillPath(), daxmem.Options{MaxSize: max(int64(cfg.Pool.MaxSize), pool.Size())})
	if err != nil {
		return nil, fmt.Errorf("%w (it holds copies for pool.persist; without it layers that a reboot took are lost)", err)
	}
	return spill, nil
}

func selectEngine(ctx context.Context, cfg *config.Config, pool *daxmem.Pool) (engine.Engine, error) {
	e, probes, err := engine.Select(ctx, cfg.Engine.Order, snapshotter.EnginePool(pool))
	logProbes(ctx, probes)
	if err != nil {
		return nil, fmt.Errorf("%w (daxfsctl doctor says more)", err)
	}
	return e, nil
}

// Close lets go of the pools; seats stay with what is mounted.
func (p *pools) Close() (err error) {
	if p.spill != nil {
		err = p.spill.Close()
	}
	if p.own != nil {
		err = errors.Join(err, p.own.Close())
	}
	if p.former != nil {
		err = errors.Join(err, p.former.Close())
	}
	if p.shared != nil {
		err = errors.Join(err, p.shared.Close())
	}
	return err
}

// errOrphaned ends the daemon so that it is started again in another role.
var errOrphaned = fmt.Errorf("the pool has no owner any more, this daemon is to be started again as its owner: %w", errdefs.ErrUnavailable)

// watchPause is the time between two looks at the pool and at the orchestrator. A
// variable for tests.
var watchPause = 2 * time.Second

// watch returns errOrphaned when a pool that this daemon is to own loses its
// owner, daxmem.ErrFenced when it loses its seat, nil when ctx ends.
func (p *pools) watch(ctx context.Context) error {
	if p.shared == nil {
		<-ctx.Done()
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchPause):
		}
		if err := p.shared.Check(); err != nil {
			return err
		}
		if !p.successor {
			continue
		}
		if owner, err := p.shared.Owner(); err != nil {
			return err
		} else if owner == nil {
			return errOrphaned
		}
	}
}
