package mkdaxfs_test

import (
	"context"
	"io"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/convert"
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
	// takes and we refuse; nastyTree stands in for it.
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
