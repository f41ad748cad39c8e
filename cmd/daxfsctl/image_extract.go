package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

func imageExtractCommand() *cli.Command {
	return &cli.Command{
		Name:      "extract",
		Usage:     "copy a file or tree out of an image, with everything that it says of them",
		ArgsUsage: "IMAGE PATH DEST",
		Description: "DEST becomes a copy of PATH: contents, owners, modes, times, xattrs, devices and hard links.\n" +
			"It must not exist, or be an empty directory; nothing is overwritten, and what a failure leaves\n" +
			"is removed. Needs root.",
		Action: onImage(3, 3, imageExtract),
	}
}

func imageExtract(c *cli.Context, s *source) error {
	path, dest := c.Args().Get(1), c.Args().Get(2)
	in, err := s.lookup(path, false)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("extract restores owners, devices and xattrs, which needs root")
	}
	x := &extractor{ctx: c.Context, src: s, first: make(map[uint32]string)}
	if in.Mode&disk.TypeMask == disk.TypeDir {
		err = x.tree(in, dest)
	} else {
		err = x.single(in, dest)
	}
	if err != nil {
		return fmt.Errorf("extract to %s: %w", escape(dest), err)
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, struct {
			Image string `json:"image"`
			Path  string `json:"path"`
			Dest  string `json:"dest"`
			Names int    `json:"names"`
			Bytes int64  `json:"bytes"`
		}{escape(s.name), "/" + escape(innerPath(path)), escape(dest), x.names, x.bytes})
	}
	return nil
}

// tree makes dest a copy of a directory.
func (x *extractor) tree(in *disk.Inode, dest string) (err error) {
	made, err := emptyDir(dest)
	if err != nil {
		return err
	}
	root, err := unix.Open(dest, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(root) }()
	x.root = root
	defer func() {
		if err != nil {
			err = errors.Join(err, undo(dest, made))
		}
	}()
	// Nobody else may meddle with what is not complete.
	if err := unix.Fchmod(root, 0o700); err != nil {
		return err
	}
	if err := x.children(in, root, ""); err != nil {
		return err
	}
	x.names++
	return x.metadata(in, root, ".", "")
}

// single makes dest a copy of a file.
func (x *extractor) single(in *disk.Inode, dest string) (err error) {
	if _, err := os.Lstat(dest); err == nil {
		return os.ErrExist
	}
	dir, name := splitDest(dest)
	if x.root, err = unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("%s: %w", escape(dir), err)
	}
	defer func() { _ = unix.Close(x.root) }()
	err = x.node(in, x.root, name, name)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		err = errors.Join(err, undo(dest, true))
	}
	return err
}

func splitDest(dest string) (dir, name string) {
	for i := len(dest) - 1; i >= 0; i-- {
		if dest[i] == '/' {
			return dest[:i+1], dest[i+1:]
		}
	}
	return ".", dest
}

// emptyDir makes a directory, or accepts an empty one.
func emptyDir(dest string) (made bool, err error) {
	err = os.Mkdir(dest, 0o700)
	if err == nil || !errors.Is(err, os.ErrExist) {
		return true, err
	}
	d, err := os.OpenFile(dest, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false, fmt.Errorf("it exists and is not a directory: %w", err)
	}
	defer d.Close()
	if _, err := d.Readdirnames(1); !errors.Is(err, io.EOF) {
		if err == nil {
			err = errors.New("it exists and is not empty")
		}
		return false, err
	}
	return false, nil
}

// undo removes what an extraction that failed has made.
func undo(dest string, made bool) error {
	if made {
		return os.RemoveAll(dest)
	}
	entries, err := os.ReadDir(dest)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(dest+"/"+e.Name()))
	}
	return err
}
