package mkdaxfs_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// stream writes an image with metadata in front.
func stream(t testing.TB, opts mkdaxfs.BuildOptions, make func(b *mkdaxfs.Builder) *mkdaxfs.Tree) []byte {
	t.Helper()
	dir := t.TempDir()
	b, err := mkdaxfs.NewStreamBuilder(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	var out bytes.Buffer
	stats, err := b.Stream(context.Background(), make(b), &out)
	if err != nil {
		t.Fatal(err)
	}
	if stats.Size != int64(out.Len()) {
		t.Errorf("wrote %d bytes, said %d", out.Len(), stats.Size)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left in the directory: %v, %v", left, err)
	}
	return out.Bytes()
}

// An image that is written as a stream is one like any other, by our own reader,
// by the checker and by an independent reader of EROFS; only its metadata comes
// first, and its size does not depend on what was replaced.
func TestStream(t *testing.T) {
	for _, share := range []bool{false, true} {
		opts := mkdaxfs.BuildOptions{Share: share}
		nasty := func(b *mkdaxfs.Builder) *mkdaxfs.Tree { return nastyTree(t, b, 300) }
		_, want, _ := build(t, opts, nasty)
		image := stream(t, opts, func(b *mkdaxfs.Builder) *mkdaxfs.Tree {
			file(t, b, pattern(3<<20, 99)) // a lower layer's
			return nasty(b)
		})
		img, err := mkdaxfs.Open(bytes.NewReader(image), int64(len(image)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := mkdaxfs.Check(img, 0); err != nil {
			t.Fatal(err)
		}
		if sb := img.Superblock(); sb.MetaOffset != 0 || sb.DataOffset < sb.MetaSize {
			t.Errorf("metadata [%d,+%d), data from %d on: want metadata first", sb.MetaOffset, sb.MetaSize, sb.DataOffset)
		}
		sameLines(t, "own reader", ownLines(t, want), ownLines(t, img))
		sameLines(t, "go-erofs", erofsLines(t, bytes.NewReader(image)), ownLines(t, img))
		if again := stream(t, opts, nasty); !bytes.Equal(again, image) {
			t.Error("the same tree makes other bytes")
		}
	}
}

func TestStreamBad(t *testing.T) {
	if _, err := mkdaxfs.NewStreamBuilder("", mkdaxfs.BuildOptions{Size: 4096}); !errors.Is(err, mkdaxfs.ErrInvalidTree) {
		t.Errorf("with a size: %v", err)
	}
	if _, err := mkdaxfs.NewStreamBuilder(t.TempDir()+"/absent", mkdaxfs.BuildOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without its directory: %v", err)
	}
	b, err := mkdaxfs.NewStreamBuilder("", mkdaxfs.BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	root := dir()
	root.Children = []mkdaxfs.Child{{Name: "f", Node: file(t, b, pattern(disk.BlockSize*5+1, 1))}}
	full := errors.New("full")
	if _, err := b.Stream(context.Background(), &mkdaxfs.Tree{Root: root}, failingWriter{full}); !errors.Is(err, full) {
		t.Errorf("to a writer that fails: %v", err)
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := b.Stream(cancelled, &mkdaxfs.Tree{Root: root}, &bytes.Buffer{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

type failingWriter struct{ err error }

func (f failingWriter) Write([]byte) (int, error) { return 0, f.err }
