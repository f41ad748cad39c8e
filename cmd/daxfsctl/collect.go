package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

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

// mayCollect refuses to collect, or to say what would be freed, where this
// kernel's snapshots do not tell what is needed. from is who knows them, as
// findRefs has it.
func mayCollect(cfg *config.Config, from string) error {
	role := cfg.Share.Role
	switch {
	case role == config.RoleOwner:
		return nil
	case from != "daemon":
		return fmt.Errorf("share.role is %q, so another kernel may own the pool in %s, and what its snapshots need is not known here: start this kernel's daemon, which frees what only it had, or run pool gc on the owner: %w",
			role, cfg.Pool.Path, errdefs.ErrFailedPrecondition)
	case cfg.Pool.Path == cfg.Share.OwnPool, role == config.RoleAuto && poolOwner(cfg.Pool.Path) != nil:
		return nil // the daemon's own
	}
	return fmt.Errorf("share.role is %q, and the pool in %s is another kernel's: run pool gc there, or for this kernel's own pool with --pool %s: %w",
		role, cfg.Pool.Path, cfg.Share.OwnPool, errdefs.ErrFailedPrecondition)
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
	// As the daemon: another holder would have another seat, and take the daemon's
	// pins for another kernel's.
	pool, err := daxmem.Open(ctx, region, cfg.PoolOptions())
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
