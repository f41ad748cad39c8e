package mkdaxfs_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os/exec"
	"testing"
	"testing/fstest"

	"github.com/daxfs/containerd-daxfs/internal/testutil"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

func digest(r io.Reader) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}

// TestReadersAgree compares our reader with go-erofs and fsck.erofs on the
// nasty tree, and an image of the tree as decoded with the first one.
func TestReadersAgree(t *testing.T) {
	for _, opts := range []mkdaxfs.BuildOptions{{}, {Share: true}, {Spool: true}, {NoErofs: true}, {V8: true}} {
		t.Run(fmt.Sprintf("%+v", opts), func(t *testing.T) {
			f, img, stats := build(t, opts, func(b *mkdaxfs.Builder) *mkdaxfs.Tree { return nastyTree(t, b, 3000) })
			own := ownLines(t, img)
			if len(own) < 6000 {
				t.Fatalf("only %d files", len(own))
			}
			if opts.V8 || opts.NoErofs {
				if img.HasErofs() {
					t.Error("EROFS view is there")
				}
				return
			}
			sameLines(t, "go-erofs", own, erofsLines(t, io.NewSectionReader(f, 0, stats.Size)))
			t.Run("fsck", func(t *testing.T) {
				fsck := testutil.Tool(t, "fsck.erofs")
				if out, err := exec.Command(fsck, f.Name()).CombinedOutput(); err != nil {
					t.Errorf("fsck.erofs: %v\n%s", err, out)
				}
			})
		})
	}
}

func TestSameBytes(t *testing.T) {
	var sums []string
	for range 2 {
		f, _, stats := build(t, mkdaxfs.BuildOptions{}, func(b *mkdaxfs.Builder) *mkdaxfs.Tree { return nastyTree(t, b, 3000) })
		sums = append(sums, hashReader(t, io.NewSectionReader(f, 0, stats.Size)))
	}
	if sums[0] != sums[1] {
		t.Errorf("two builds differ: %v", sums)
	}
}

func TestFS(t *testing.T) {
	_, img, _ := build(t, mkdaxfs.BuildOptions{}, func(b *mkdaxfs.Builder) *mkdaxfs.Tree {
		root := dir()
		sub := dir()
		root.Set("sub", sub)
		root.Set("hello", file(t, b, []byte("hello")))
		sub.Set("world", file(t, b, []byte("world")))
		tree := &mkdaxfs.Tree{Root: root}
		tree.Sort()
		return tree
	})
	if err := fstest.TestFS(img.FS(), "hello", "sub/world"); err != nil {
		t.Error(err)
	}
}
