package mutate

import (
	"bytes"
	"testing"

	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// TestImages: the images are of the kinds and sizes that their users count on.
func TestImages(t *testing.T) {
	images, err := Images()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Images()
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for i, img := range images {
		t.Logf("%s: %d bytes", img.Name, len(img.Bytes))
		total += len(img.Bytes)
		if len(img.Bytes) > 160<<10 {
			t.Errorf("%s: %d bytes, want at most %d", img.Name, len(img.Bytes), 160<<10)
		}
		if !bytes.Equal(img.Bytes, again[i].Bytes) {
			t.Errorf("%s: not the same bytes the second time", img.Name)
		}
	}
	if mean := total / len(images); mean > 80<<10 {
		t.Errorf("%d bytes on average, want at most %d", mean, 80<<10)
	}
}

// TestMutate: the same seed, the same images; most of them get past the
// superblock, and most of those are refused by the checker.
func TestMutate(t *testing.T) {
	images, err := Images()
	if err != nil {
		t.Fatal(err)
	}
	m, err := New(images)
	if err != nil {
		t.Fatal(err)
	}
	var opened, sound, same int
	const count = 3000
	for n := range uint64(count) {
		a := m.Mutate(1, n)
		if b := m.Mutate(1, n); !bytes.Equal(a.Bytes, b.Bytes) {
			t.Fatalf("image %d differs the second time", n)
		}
		if b := m.Mutate(2, n); bytes.Equal(a.Bytes, b.Bytes) {
			same++
		}
		if len(a.Changes) == 0 {
			t.Fatalf("image %d: no changes", n)
		}
		img, err := mkdaxfs.Open(bytes.NewReader(a.Bytes), int64(len(a.Bytes)))
		if err != nil {
			continue
		}
		opened++
		if _, err := mkdaxfs.Check(img, 0); err == nil {
			sound++
		}
	}
	t.Logf("of %d images %d open, %d are sound", count, opened, sound)
	if opened < count*6/10 || sound > count*3/10 || same > count/100 {
		t.Errorf("of %d images %d open, %d are sound, %d are the same with another seed", count, opened, sound, same)
	}
}
