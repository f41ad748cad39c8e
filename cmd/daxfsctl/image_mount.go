package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/engine"
)

func imageMountCommand() *cli.Command {
	return &cli.Command{
		Name:      "mount",
		Usage:     "mount one image read-only, without the daemon",
		ArgsUsage: "IMAGE DIR",
		Description: "For images of a pool that another kernel owns, and for image files. The image is checked first. The\n" +
			"first engine that can mount it is taken. An image of the pool is pinned until image unmount, by a seat\n" +
			"of its own (lease ls). Needs root.",
		Flags:  []cli.Flag{&cli.StringSliceFlag{Name: "engine", Usage: "only this `ENGINE`, one of " + strings.Join(engine.Names(), ", ") + "; again for a second choice"}},
		Action: imageMount,
	}
}

func imageMount(c *cli.Context) error {
	if err := arguments(c, 2, 2); err != nil {
		return err
	}
	order := c.StringSlice("engine")
	for _, name := range order {
		if _, err := engine.ByName(name); err != nil {
			return usageError{err}
		}
	}
	dir, err := filepath.Abs(c.Args().Get(1))
	if err != nil {
		return err
	}
	if engine.Mounted(dir) {
		return fmt.Errorf("%s: an image is mounted there: %w", escape(dir), errdefs.ErrAlreadyExists)
	}
	s, err := openSource(c, c.Args().First())
	if err != nil {
		return err
	}
	defer s.Close()
	if s.IsLayer() {
		return fmt.Errorf("%s: a layer cannot be mounted, an image can: %w", escape(s.name), errdefs.ErrInvalidArgument)
	}
	if _, err := s.check(); err != nil { // no kernel gets bytes that were not checked
		return fmt.Errorf("%s: %w", escape(s.name), err)
	}
	keep, err := s.pinFor(c, dir)
	if err != nil {
		return err
	}
	m, err := engine.MountBest(c.Context, order, engine.Source{Region: s.region, Offset: s.origin, Size: s.region.Size() - s.origin}, dir)
	if err := errors.Join(err, keep(err == nil)); err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, struct {
			Image  string `json:"image"`
			Dir    string `json:"dir"`
			Engine string `json:"engine"`
			Method string `json:"method"`
		}{escape(s.name), escape(dir), m.Engine, m.Method})
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s: mounted on %s by %s/%s\n", escape(s.name), escape(dir), m.Engine, m.Method)
	return err
}

// pinFor pins an image of the pool for its mount. The result ends that, or
// leaves the pin. Memory without compare-and-swap has no seats to spare: there
// the image is not pinned, which is said.
func (s *source) pinFor(c *cli.Context, dir string) (end func(mounted bool) error, err error) {
	none := func(bool) error { return nil }
	if s.rec == nil {
		return none, nil
	}
	cfg, err := loadConfig(c)
	if err != nil {
		return nil, err
	}
	keep, undo, err := pinForMount(c.Context, cfg, s.rec, dir)
	if errors.Is(err, daxmem.ErrNoSwap) {
		fmt.Fprintf(c.App.ErrWriter, "daxfsctl: %s: not pinned, its owner must not remove it: %s\n", escape(s.name), oneLine(err))
		return none, nil
	}
	if err != nil {
		return nil, err
	}
	return func(mounted bool) error {
		if mounted {
			return keep()
		}
		return undo()
	}, nil
}

func imageUnmountCommand() *cli.Command {
	return &cli.Command{
		Name:      "unmount",
		Usage:     "undo image mount",
		ArgsUsage: "DIR",
		Action:    imageUnmount,
	}
}

func imageUnmount(c *cli.Context) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	dir, err := filepath.Abs(c.Args().First())
	if err != nil {
		return err
	}
	if _, err := os.Stat(dir); err != nil {
		return err
	}
	cfg, err := loadConfig(c)
	if err != nil {
		return err
	}
	if !engine.Mounted(dir) {
		return fmt.Errorf("%s: no image is mounted there: %w", escape(dir), errdefs.ErrFailedPrecondition)
	}
	gone := engine.Ending(dir)
	if err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %s: %w", escape(dir), err)
	}
	kept, err := unpinMount(c.Context, cfg, dir, gone)
	if err != nil {
		return err
	}
	if kept != nil {
		return fmt.Errorf("%s: unmounted, but this kernel still uses the image, so it stays pinned: when that has ended, daxfsctl lease evict %d", escape(dir), kept.Number)
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, struct {
			Dir string `json:"dir"`
		}{escape(dir)})
	}
	return nil
}
