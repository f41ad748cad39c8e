package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/config"
	"github.com/daxfs/containerd-daxfs/internal/engine"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// askDaemon has the running daemon clean up.
func askDaemon(ctx context.Context, cfg *config.Config) error {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	sn, done, err := connect(cfg)
	if err != nil {
		return err
	}
	defer done()
	if err := sn.(snapshots.Cleaner).Cleanup(ctx); err != nil {
		return fmt.Errorf("ask the daemon at %s to clean up: %w", cfg.Address, err)
	}
	return nil
}

// collectHere takes the daemon's place: it owns the pool and the metadata
// meanwhile, and looks after mounts and directories as the daemon does.
func collectHere(ctx context.Context, cfg *config.Config) (err error) {
	region, err := daxmem.OpenRegion(cfg.Pool.Path)
	if errors.Is(err, daxmem.ErrOwned) {
		return fmt.Errorf("%w, but no daemon serves on %s: is --address right?", err, cfg.Address)
	}
	if err != nil {
		return err
	}
	pool, err := daxmem.Open(ctx, region, daxmem.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	// Nothing is mounted here, so any engine will do.
	e, err := engine.ByName(engine.Names()[0])
	if err != nil {
		return err
	}
	sn, err := snapshotter.New(ctx, snapshotter.Options{Root: cfg.Root, Pool: pool, Engine: e})
	if err != nil {
		return err
	}
	return errors.Join(sn.Cleanup(ctx), sn.Close())
}
