package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

func imageCheckCommand() *cli.Command {
	return &cli.Command{
		Name:      "check",
		Usage:     "prove that an image is sound, or say what is wrong with it",
		ArgsUsage: "IMAGE",
		Action:    imageCheck,
	}
}

type checkJSON struct {
	Image   string          `json:"image"`
	OK      bool            `json:"ok"`
	Problem string          `json:"problem,omitempty"`
	Report  *mkdaxfs.Report `json:"report,omitempty"`
}

func imageCheck(c *cli.Context) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	name := c.Args().First()
	res := checkJSON{Image: escape(name)}
	s, err := openSource(c, name)
	if err == nil {
		defer s.Close()
		res.Report, err = s.check()
	}
	if err != nil && !disk.IsBad(err) {
		return err
	}
	res.OK = err == nil
	if err != nil {
		res.Problem = oneLine(err)
	}
	switch {
	case c.Bool("json"):
		if err := printJSON(c.App.Writer, res); err != nil {
			return err
		}
	case res.OK:
		r := res.Report
		kind := "image"
		if r.Layer {
			kind = "layer"
		}
		view := "no EROFS view"
		if r.Erofs {
			view = "EROFS view"
		}
		_, err := fmt.Fprintf(c.App.Writer, "%s: sound: %s %s, %s, %d inodes, %d names, %s of metadata, %s of files\n",
			res.Image, r.Dialect, kind, view, r.Inodes, r.Names, size(int64(r.MetaSize)), size(int64(r.DataSize)))
		return err
	default:
		return err
	}
	if !res.OK {
		return errBad
	}
	return nil
}

// check proves the image; of the pool, also that its bytes are those that were
// published.
func (s *source) check() (*mkdaxfs.Report, error) {
	if s.rec != nil && s.pool != nil {
		if s.rec.Quarantined != "" {
			return nil, disk.Corruptf("%s: quarantined: %s", s.rec.Name(), s.rec.Quarantined)
		}
		if _, err := s.pool.ReadSegment(s.rec); err != nil {
			return nil, err
		}
	}
	r, err := mkdaxfs.Check(s.Image, s.origin)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", escape(s.name), err)
	}
	return r, nil
}
