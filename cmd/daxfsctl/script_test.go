package main

import (
	"context"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/sirupsen/logrus"

	"github.com/daxfs/containerd-daxfs/convert"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

func TestMain(m *testing.M) {
	logrus.SetOutput(io.Discard)
	testscript.Main(m, map[string]func(){"daxfsctl": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			// The machine's own configuration is not for tests.
			e.Setenv("CONTAINERD_DAXFS_CONFIG", e.WorkDir+"/daxfs.toml")
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"mkimage": cmdMkimage,
			"sample":  cmdSample,
			"flip":    cmdFlip,
		},
	})
}

func must(ts *testscript.TestScript, err error) {
	if err != nil {
		ts.Fatalf("%v", err)
	}
}

// cmdMkimage is `mkimage FILE DIR [v8]`. All files get one time and owner, so
// that images are the same everywhere.
func cmdMkimage(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.Create(ts.MkAbs(args[0]))
	must(ts, err)
	defer f.Close()
	ctx := context.Background()
	b, err := mkdaxfs.NewBuilder(f, mkdaxfs.BuildOptions{V8: len(args) > 2})
	must(ts, err)
	defer shut(b)
	tree, err := convert.FromDir(ctx, ts.MkAbs(args[1]), b, convert.DirOptions{})
	must(ts, err)
	must(ts, tree.Nodes(func(n *mkdaxfs.Node) error {
		n.UID, n.GID, n.Mtime, n.MtimeNsec, n.Xattrs = 1, 2, 1_700_000_000, 5, nil
		n.Mode = n.Mode&disk.TypeMask | 0o755
		return nil
	}))
	_, err = b.Finish(ctx, tree)
	must(ts, err)
}

// cmdSample is `sample FILE`: an image of sampleTree.
func cmdSample(ts *testscript.TestScript, _ bool, args []string) {
	must(ts, writeSample(ts.MkAbs(args[0]), false))
}

// cmdFlip is `flip FILE OFFSET`: inverts a byte, from the end if negative.
func cmdFlip(ts *testscript.TestScript, _ bool, args []string) {
	off, err := strconv.ParseInt(args[1], 0, 64)
	must(ts, err)
	must(ts, flip(ts.MkAbs(args[0]), off))
}

func flip(path string, off int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if off < 0 {
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		off += fi.Size()
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		return err
	}
	b[0] ^= 0xff
	_, err = f.WriteAt(b, off)
	return err
}

// writeSample writes an image with everything that is hard to show.
func writeSample(path string, v8 bool) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	ctx := context.Background()
	b, err := mkdaxfs.NewBuilder(f, mkdaxfs.BuildOptions{V8: v8})
	if err != nil {
		return err
	}
	defer shut(b)
	file := func(content string) *mkdaxfs.Node {
		n := &mkdaxfs.Node{Mode: disk.TypeRegular | 0o644, Size: int64(len(content)), Mtime: 1_000_000_000, MtimeNsec: 123456789}
		n.Extent, err = b.Put(ctx, strings.NewReader(content), n.Size)
		return n
	}
	node := func(mode uint32) *mkdaxfs.Node { return &mkdaxfs.Node{Mode: mode} }
	root, sub := node(disk.TypeDir|0o755), node(disk.TypeDir|0o1777)
	root.Set("dir", sub)
	linked := file("linked\n")
	linked.Mode = disk.TypeRegular | 0o4755
	linked.UID, linked.GID = 1000, 4294967294
	linked.SetXattrs([]disk.Xattr{{Name: "user.a=b c", Value: "1\n2"}, {Name: "security.capability", Value: "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}})
	sub.Set("linked", linked)
	sub.Set("again", linked)
	sub.Set("empty", file(""))
	sub.Set("zeros", file(strings.Repeat("\x00", 20000)+"end"))
	before := file("before 1970\n")
	before.Mtime, before.MtimeNsec = -2, 500000000
	sub.Set("before", before)
	root.Set("space and \\ back\nslash", file("odd\n"))
	root.Set("caf\u00e9", file("utf-8\n"))
	root.Set("\xff\xfe", file("bytes\n"))
	link := node(disk.TypeSymlink | 0o777)
	link.Link = "dir/../dir/linked"
	root.Set("link", link)
	null := node(disk.TypeChar | 0o666)
	null.Rdev = disk.EncodeDev(1, 3)
	root.Set("null", null)
	block := node(disk.TypeBlock | 0o660)
	block.Rdev = disk.EncodeDev(259, 70000)
	root.Set("block", block)
	root.Set("fifo", node(disk.TypeFIFO|0o600))
	root.Set("socket", node(disk.TypeSocket|0o600))
	if err != nil {
		return err
	}
	tree := &mkdaxfs.Tree{Root: root}
	tree.Sort()
	_, err = b.Finish(ctx, tree)
	return err
}
