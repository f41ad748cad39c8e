package mkdaxfs_test

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// TestGolden pins superblock and metadata of one small tree in every form. A
// difference means that images of before are no longer what the checker would
// write: it needs a new version of the format and a line in docs/format.md,
// "History".
func TestGolden(t *testing.T) {
	small := func(b *mkdaxfs.Builder) *mkdaxfs.Tree { return smallTree(t, b) }
	plain := func(b *mkdaxfs.Builder) *mkdaxfs.Tree {
		tr := smallTree(t, b)
		tr.Root.Delete("fifo")
		tr.Root.Delete("char")
		tr.Sort()
		return tr
	}
	for _, tt := range []struct {
		name, want string
		r          *raw
	}{
		{"native", "6d2ba22b45bc1d74580de1edf98148e8", newRaw(t, mkdaxfs.BuildOptions{}, small)},
		{"native, one megabyte", "18f9272e99af97048969db3ce92a9778", newRaw(t, mkdaxfs.BuildOptions{Size: 1 << 20}, small)},
		{"native without EROFS view", "d8a8d3263c4789bac17329e466be1072", newRaw(t, mkdaxfs.BuildOptions{NoErofs: true}, small)},
		{"v8", "0100f597aeff896728445f1309e053f5", newRaw(t, mkdaxfs.BuildOptions{V8: true}, plain)},
		{"layer index", "4e62713666dbbc0f2be73d699d3311b7", layerImage(t, smallLayer())},
	} {
		h := sha256.New()
		h.Write(tt.r.b[:tt.r.sb.BaseOffset])
		if tt.r.sb.Native() {
			h.Write(tt.r.meta())
		} else {
			h.Write(tt.r.base()[:tt.r.sb.DataOffset])
		}
		if got := hex.EncodeToString(h.Sum(nil)[:16]); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	l, err := mkdaxfs.NewLayout(smallLayer(), mkdaxfs.Options{Layer: true})
	if err != nil {
		t.Fatal(err)
	}
	key, err := l.LayerKey()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := hex.EncodeToString(key[:16]), "6aa4a03f771a6516d2551c39923b07ee"; got != want {
		t.Errorf("layer key: %s, want %s", got, want)
	}
}
