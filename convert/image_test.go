package convert

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// imageStream is a small DAXFS image as it travels.
func imageStream(t testing.TB) []byte {
	t.Helper()
	b, err := mkdaxfs.NewStreamBuilder(t.TempDir(), mkdaxfs.BuildOptions{Share: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	layer, _, err := FromTar(context.Background(), bytes.NewReader(archive(t, mkd("d"), reg("d/a", "one"), reg("b", "one"), reg("c", "another"), reg("e", ""))), b, TarOptions{})
	if err != nil {
		t.Fatal(err)
	}
	tree, err := Merge([]*mkdaxfs.Tree{layer})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := b.Stream(context.Background(), tree, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// FuzzFromImage: whatever the bytes are, the answer is an error of a class that
// says that they are bad, or a tree that an image can hold again.
func FuzzFromImage(f *testing.F) {
	good := imageStream(f)
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(append(bytes.Clone(good), 0))
	for _, at := range []int{4, 8, 40, 120, 160, 4096, 5000, len(good) - 1} {
		b := bytes.Clone(good)
		b[at] ^= 1
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= disk.SuperblockSize && len(b) < 1<<20 {
			// Get past the checksum.
			b = bytes.Clone(b)
			sum := disk.SuperblockChecksum(b)
			b[disk.SuperblockCRC], b[disk.SuperblockCRC+1], b[disk.SuperblockCRC+2], b[disk.SuperblockCRC+3] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
		}
		store := &memStore{}
		tree, err := FromImage(context.Background(), bytes.NewReader(b), nil, store, ImageOptions{MaxSize: 1 << 20})
		if err != nil {
			if !disk.IsBad(err) && !errdefs.IsInvalidArgument(err) && !errors.Is(err, ErrTooLarge) {
				t.Fatalf("error of no class: %v", err)
			}
			return
		}
		if _, err := mkdaxfs.NewLayout(tree, mkdaxfs.Options{}); err != nil {
			t.Fatalf("taken, and cannot be written again: %v", err)
		}
	})
}

// Each content is stored once, in order of addresses with one worker.
func TestFromImage(t *testing.T) {
	store := &memStore{}
	tree, err := FromImage(context.Background(), bytes.NewReader(imageStream(t)), nil, store, ImageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"d/a": "one", "b": "one", "c": "another", "e": ""} {
		if got := string(store.content(tree.Find(path))); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	if len(store.files) != 2 {
		t.Errorf("%d contents stored, want 2", len(store.files))
	}
	if _, err := FromImage(context.Background(), bytes.NewReader(imageStream(t)), nil, store, ImageOptions{MaxSize: 4096}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("larger than allowed: %v", err)
	}
}
