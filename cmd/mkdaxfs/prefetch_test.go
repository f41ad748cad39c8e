package main

import (
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

func openImage(ts *testscript.TestScript, name string) *mkdaxfs.Image {
	f, err := os.Open(ts.MkAbs(name))
	fatalIf(ts, err)
	ts.Defer(func() { f.Close() })
	fi, err := f.Stat()
	fatalIf(ts, err)
	img, err := mkdaxfs.Open(f, fi.Size())
	fatalIf(ts, err)
	return img
}

// cmdOrder is `order IMAGE PATH...`: the files' data is the first in the image,
// in this order, without gaps.
func cmdOrder(ts *testscript.TestScript, neg bool, args []string) {
	img := openImage(ts, args[0])
	at, wrong := img.Superblock().DataOffset, ""
	for _, p := range args[1:] {
		fi, err := img.FS().Lstat(p)
		fatalIf(ts, err)
		in := fi.Sys().(*disk.Inode)
		if in.DataOffset != at && wrong == "" {
			wrong = fmt.Sprintf("%s: data at %d, want %d", p, in.DataOffset, at)
		}
		at += disk.AlignUp(in.Size, disk.BlockSize)
	}
	if neg != (wrong != "") {
		ts.Fatalf("%s", wrong)
	}
}

// cmdSameTree is `sametree IMAGE IMAGE`: the same names, inodes and contents,
// wherever their data lies.
func cmdSameTree(ts *testscript.TestScript, neg bool, args []string) {
	list := func(name string) (lines []string) {
		files := openImage(ts, name).FS()
		fatalIf(ts, fs.WalkDir(files, ".", func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			fi, err := files.Lstat(p)
			if err != nil {
				return err
			}
			in := *fi.Sys().(*disk.Inode)
			var content []byte
			switch in.Mode & disk.TypeMask {
			case disk.TypeRegular:
				content, err = fs.ReadFile(files, p)
			case disk.TypeSymlink:
				var link string
				link, err = files.ReadLink(p)
				content = []byte(link)
			}
			in.DataOffset, in.XattrOffset = 0, 0
			lines = append(lines, fmt.Sprintf("%s %+v %q", p, in, content))
			return err
		}))
		return lines
	}
	a, b := list(args[0]), list(args[1])
	if len(a) < 2 || !slices.Equal(a, b) {
		ts.Fatalf("%s:\n%q\n%s:\n%q", args[0], a, args[1], b)
	}
}
