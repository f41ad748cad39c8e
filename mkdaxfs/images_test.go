package mkdaxfs_test

import (
	"context"
	"io"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/convert"
	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/integration/lab"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// TestReadersAgreeOnImages flattens the images of the integration tests into
// self-contained images and compares our reader with go-erofs, fsck.erofs and
// the kernel.
func TestReadersAgreeOnImages(t *testing.T) {
	lab.Require(t)
	// The nasty image has a name with ".." in it, which containerd's differ
	// takes and we refuse: see TestReadersAgreeOnPool.
	for _, name := range []string{"debian", "python", "rootopaque"} {
		t.Run(name, func(t *testing.T) {
			layout, err := lab.MakeImage(t, name)
			if err != nil {
				t.Fatal(err)
			}
			src, err := convert.OpenOCI(layout.Dir, convert.OCIOptions{})
			if err != nil {
				t.Fatal(err)
			}
			f, img, stats := build(t, mkdaxfs.BuildOptions{Spool: true}, func(b *mkdaxfs.Builder) *mkdaxfs.Tree {
				tree, _, err := src.Tree(context.Background(), b, convert.TarOptions{}, nil)
				if err != nil {
					t.Fatal(err)
				}
				return tree
			})
			own := ownLines(t, img)
			sameLines(t, "go-erofs", own, erofsLines(t, io.NewSectionReader(f, 0, stats.Size)))
			if out, err := exec.Command(testutil.Tool(t, "fsck.erofs"), f.Name()).CombinedOutput(); err != nil {
				t.Errorf("fsck.erofs: %v\n%s", err, out)
			}
			at := t.TempDir()
			if err := unix.Mount(f.Name(), at, "erofs", unix.MS_RDONLY, ""); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := unix.Unmount(at, 0); err != nil {
					t.Error(err)
				}
			}()
			sameLines(t, "kernel", own, mountedLines(t, at))
		})
	}
}

// TestReadersAgreeOnPool does the same with images as containerd's unpack and
// our snapshotter make them: in a pool, at an offset, with shared data.
func TestReadersAgreeOnPool(t *testing.T) {
	l := lab.New(t, lab.Config{})
	ctx := l.Namespace("readers")
	names := []string{"nasty", "rootopaque"}
	for _, name := range names {
		l.Image(name)
		if out, err := l.Run(ctx, l.MustPull(ctx, name, lab.Daxfs, lab.PullUnpack), lab.Daxfs, "true"); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	}
	region, err := daxmem.OpenFileReadOnly(l.PoolPath())
	if err != nil {
		t.Fatal(err)
	}
	pool, err := daxmem.OpenReadOnly(ctx, region)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	images := 0
	for _, rec := range pool.Records() {
		if rec.Kind != daxmem.KindImage {
			continue
		}
		images++
		size := pool.Size() - rec.Offset
		img, err := mkdaxfs.Open(io.NewSectionReader(region, rec.Offset, size), size)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := mkdaxfs.Check(img, rec.Offset); err != nil {
			t.Error(err)
		}
		sameLines(t, "go-erofs", ownLines(t, img), erofsLines(t, io.NewSectionReader(region, rec.Offset, size)))
	}
	if images != len(names) {
		t.Errorf("%d images in the pool, want %d", images, len(names))
	}
}
