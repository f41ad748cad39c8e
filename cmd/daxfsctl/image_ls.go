package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

func imageLsCommand() *cli.Command {
	return &cli.Command{
		Name:      "ls",
		Usage:     "list a directory of an image",
		ArgsUsage: "IMAGE [PATH]",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "l", Usage: "with mode, links, owner, size, time and target"},
			&cli.BoolFlag{Name: "R", Usage: "with everything below, as paths"},
			&cli.BoolFlag{Name: "d", Usage: "the directory itself"},
		},
		Action: onImage(1, 2, imageLs),
	}
}

func imageLs(c *cli.Context, s *source) error {
	path := "/" + innerPath(c.Args().Get(1))
	in, err := s.lookup(path, false)
	if err != nil {
		return err
	}
	good := true
	bad := func(p string, err error) {
		good = false
		fmt.Fprintf(c.App.ErrWriter, "daxfsctl: %s\n", oneLine(s.wrap(p, err)))
	}
	isDir := in.Mode&disk.TypeMask == disk.TypeDir
	var list []*entry
	var modes []uint32
	add := func(it item) error {
		e, err := s.describe(it)
		if err != nil {
			bad(it.path, err)
		}
		list, modes = append(list, e), append(modes, it.in.Mode)
		return nil
	}
	switch {
	case !isDir || c.Bool("d"):
		err = add(item{path, in, path})
	case c.Bool("R"):
		err = s.walk(path, in, func(it item) error {
			if it.path == path {
				return nil
			}
			return add(it)
		}, bad)
	default:
		err = s.children(path, in, add, bad)
	}
	if err != nil {
		return err
	}
	if c.Bool("json") {
		err = printJSON(c.App.Writer, struct {
			Image   string   `json:"image"`
			Entries []*entry `json:"entries"`
		}{escape(s.name), append([]*entry{}, list...)})
	} else {
		err = printList(c.App.Writer, list, modes, c.Bool("l"), isDir && !c.Bool("R") && !c.Bool("d"))
	}
	if err == nil && !good {
		err = errBad
	}
	return err
}

// children lists one directory.
func (s *source) children(path string, in *disk.Inode, add func(item) error, bad func(string, error)) error {
	dir, err := s.Dir(in)
	if err != nil {
		return s.wrap(path, err)
	}
	for i := range dir.Len() {
		p := joinPath(path, string(dir.Name(i)))
		child, err := s.Inode(dir.Ino(i))
		if err != nil {
			bad(p, err)
			continue
		}
		if err := add(item{p, &child, p}); err != nil {
			return err
		}
	}
	return nil
}

func printList(w io.Writer, list []*entry, modes []uint32, long, base bool) error {
	return table(w, func(w io.Writer) {
		for i, e := range list {
			name := e.Path
			if base {
				name = name[strings.LastIndexByte(name, '/')+1:]
			}
			if !long {
				fmt.Fprintln(w, name)
				continue
			}
			if e.Type == "symlink" {
				name += " -> " + e.Target
			}
			length := fmt.Sprint(e.Size)
			if e.Device != "" {
				length = e.Device
			}
			fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\t%s\n", modeString(modes[i]), e.Nlink, e.UID, e.GID, length, e.Mtime, name)
		}
	})
}
