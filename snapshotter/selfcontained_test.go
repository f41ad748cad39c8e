package snapshotter_test

import (
	"bytes"
	"cmp"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// In a pool of self-contained images no byte of a file belongs to two inodes,
// of one image or of several; their contents, and what two names of one inode
// share, are as in any pool.
func TestSelfContainedImages(t *testing.T) {
	r := startWith(t, daxmem.Options{SelfContained: true})
	large := bytes.Repeat([]byte("large file "), 300_000)
	r.layer(t, "base", "", func(d string) {
		write(t, d+"/one", "same")
		write(t, d+"/two", "same")
		write(t, d+"/empty", "")
		write(t, d+"/large", string(large))
		if err := os.Link(d+"/two", d+"/link"); err != nil {
			t.Fatal(err)
		}
	})
	r.layer(t, "app", "base", func(d string) { write(t, d+"/three", "same") })
	for i, parent := range []string{"base", "app", "base"} {
		mounts, err := r.Prepare(ctx, "c"+string(rune('0'+i)), parent)
		if err != nil {
			t.Fatal(err)
		}
		lower := lowerOf(t, mounts)
		names := []string{"one", "two", "link"}
		if parent == "app" {
			names = append(names, "three")
		}
		for _, name := range names {
			if got := read(t, filepath.Join(lower, name)); got != "same" {
				t.Errorf("%s of %s: %q", name, parent, got)
			}
		}
		if got := read(t, lower+"/large"); got != string(large) || read(t, lower+"/empty") != "" {
			t.Errorf("large file of %s differs", parent)
		}
	}
	type file struct{ off, end int64 }
	var files []file
	images := 0
	for _, rec := range r.pool.Records() {
		if rec.Kind != daxmem.KindImage {
			continue
		}
		images++
		size := r.pool.Size() - rec.Offset
		img, err := mkdaxfs.Open(io.NewSectionReader(r.pool.Region(), rec.Offset, size), size)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := mkdaxfs.Check(img, rec.Offset); err != nil {
			t.Error(err)
		}
		for ino := range img.Superblock().InodeCount {
			in, err := img.Inode(ino + 1)
			if err != nil {
				t.Fatal(err)
			}
			if in.Mode&disk.TypeMask != disk.TypeRegular || in.Size == 0 {
				continue
			}
			at := rec.Offset + disk.BlockSize + int64(in.DataOffset)
			files = append(files, file{at, at + disk.AlignUp(int64(in.Size), disk.BlockSize)})
		}
	}
	if images != 2 || len(files) != 3+4 {
		t.Errorf("%d images with %d files, want 2 with 7", images, len(files))
	}
	slices.SortFunc(files, func(a, b file) int { return cmp.Compare(a.off, b.off) })
	for i := 1; i < len(files); i++ {
		if files[i].off < files[i-1].end {
			t.Errorf("two inodes have the bytes at %d", files[i].off)
		}
	}
	r.check(t)
	r.reopen(t)
	r.check(t)
	for _, name := range []string{"c0", "c1", "c2", "app", "base"} {
		if err := r.Remove(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	if used := r.used(t); used != 0 {
		t.Errorf("%d bytes in use with everything removed", used)
	}
}
