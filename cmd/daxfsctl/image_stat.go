package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"
)

func imageStatCommand() *cli.Command {
	return &cli.Command{
		Name:      "stat",
		Usage:     "show all about one file of an image",
		ArgsUsage: "IMAGE PATH",
		Action:    onImage(2, 2, imageStat),
	}
}

func imageStat(c *cli.Context, s *source) error {
	path := "/" + innerPath(c.Args().Get(1))
	in, err := s.lookup(path, false)
	if err != nil {
		return err
	}
	e, err := s.describe(item{path, in, path})
	if err != nil {
		return s.wrap(path, err)
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, e)
	}
	return table(c.App.Writer, func(w io.Writer) {
		fmt.Fprintf(w, "path:\t%s\n", e.Path)
		fmt.Fprintf(w, "type:\t%s\n", e.Type)
		if e.Target != "" {
			fmt.Fprintf(w, "target:\t%s\n", e.Target)
		}
		if e.Device != "" {
			fmt.Fprintf(w, "device:\t%s\n", e.Device)
		}
		fmt.Fprintf(w, "mode:\t%s %s\n", e.Mode, modeString(in.Mode))
		fmt.Fprintf(w, "owner:\t%d:%d\n", e.UID, e.GID)
		fmt.Fprintf(w, "links:\t%d\n", e.Nlink)
		if e.Type == "file" || e.Type == "symlink" {
			fmt.Fprintf(w, "size:\t%d\n", e.Size)
		}
		fmt.Fprintf(w, "modified:\t%s\n", e.Mtime)
		fmt.Fprintf(w, "inode:\t%d\n", e.Inode)
		if e.Offset != nil {
			fmt.Fprintf(w, "data at:\t%d\n", *e.Offset)
		}
		for _, x := range e.Xattrs {
			fmt.Fprintf(w, "xattr:\t%s=%s\n", x.Name, x.Value)
		}
	})
}
