package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/config"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

func poolCreateCommand() *cli.Command {
	return &cli.Command{
		Name:  "create",
		Usage: "make an empty pool where the configuration says",
		Description: "The daemon does this by itself at its first start, in a new file and in memory that begins with zeros.\n" +
			"Here it is for memory that holds something else: --force overwrites all of it. It is\n" +
			"refused while a kernel has a seat at the pool, or this one has something of it mounted.",
		Flags:  []cli.Flag{&cli.BoolFlag{Name: "force", Usage: "overwrite what is there"}},
		Action: poolCreate,
	}
}

func poolCreate(c *cli.Context) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	cfg, err := loadConfig(c)
	if err != nil {
		return err
	}
	if c.Bool("force") {
		if err := wipe(cfg); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	pool, err := createPool(c, cfg)
	if err != nil {
		return err
	}
	size0, uuid := pool.Size(), pool.UUID().String()
	if err := pool.Close(); err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, struct {
			Pool string `json:"pool"`
			UUID string `json:"uuid"`
			Size int64  `json:"size"`
		}{cfg.Pool.Path, uuid, size0})
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s: made a pool of %s, uuid %s\n", escape(cfg.Pool.Path), size(size0), uuid)
	return err
}

// createPool makes the pool where there is nothing yet.
func createPool(c *cli.Context, cfg *config.Config) (*daxmem.Pool, error) {
	region, err := daxmem.OpenRegion(cfg.Pool.Path)
	if err == nil {
		var blank bool
		if blank, err = daxmem.Blank(region); err == nil && !blank {
			err = fmt.Errorf("%s: it holds something already (--force overwrites it): %w", escape(cfg.Pool.Path), os.ErrExist)
		}
		shut(region)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return daxmem.OpenOrCreate(c.Context, cfg.Pool.Path, daxmem.Options{MaxSize: int64(cfg.Pool.MaxSize), SelfContained: !cfg.Pool.ShareExtents})
}

// wipe fills the pool's region with zeros.
func wipe(cfg *config.Config) error {
	held, err := snapshotter.HeldImages(cfg.Root)
	if err != nil {
		return err
	}
	if len(held) > 0 {
		return fmt.Errorf("%s: %s of it in use by this kernel, the first on %s", escape(cfg.Pool.Path), plural(len(held), "image"), held[0].Target)
	}
	region, err := daxmem.OpenRegion(cfg.Pool.Path)
	if err != nil {
		return err
	}
	// What holds something else than a pool has no seats.
	if seats, err := poolSeats(context.Background(), cfg); err == nil && len(seats) > 0 {
		shut(region)
		return fmt.Errorf("%s: %v is at the pool: stop its daemon, or evict it if it is gone (daxfsctl lease evict)", escape(cfg.Pool.Path), seats[0])
	}
	return errors.Join(region.Punch(0, region.Size()&^(disk.BlockSize-1)), region.Sync(), region.Close())
}
