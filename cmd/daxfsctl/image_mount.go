package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/engine"
)

func imageMountCommand() *cli.Command {
	return &cli.Command{
		Name:      "mount",
		Usage:     "mount one image read-only, without the daemon",
		ArgsUsage: "IMAGE DIR",
		Description: "For images of a pool that another kernel owns, and for image files. The image is checked first. The\n" +
			"first engine that can mount it is taken. The pool's owner does not know of the mount: it must not\n" +
			"remove the image meanwhile. Needs root.",
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
	m, err := engine.MountBest(c.Context, order, engine.Source{Region: s.region, Offset: s.origin, Size: s.region.Size() - s.origin}, dir)
	if err != nil {
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
	dir := c.Args().First()
	if _, err := os.Stat(dir); err != nil {
		return err
	}
	if !engine.Mounted(dir) {
		return fmt.Errorf("%s: no image is mounted there: %w", escape(dir), errdefs.ErrFailedPrecondition)
	}
	if err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %s: %w", escape(dir), err)
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, struct {
			Dir string `json:"dir"`
		}{escape(dir)})
	}
	return nil
}
