package convert

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// region is what the pool of a test holds behind the layer indexes: place
// enough for extents.
const region = 1 << 40

// chain makes layers like those of an ordinary image: a large base, then
// smaller ones that add, replace and remove. In sum about entries names, ten in
// a directory, 14 bytes long on average.
func chain(entries int) []*mkdaxfs.Tree {
	r := rand.New(rand.NewPCG(1, 2))
	next := int64(1 << 30)
	file := func() *mkdaxfs.Node {
		n := &mkdaxfs.Node{Mode: disk.TypeRegular | 0o644, Size: 1 + r.Int64N(20000), Mtime: 1700000000, MtimeNsec: 5}
		n.Extent.Offset = next
		binary.LittleEndian.PutUint64(n.Extent.Digest[:], uint64(next))
		next += disk.AlignUp(n.Size, disk.BlockSize)
		return n
	}
	dir := func() *mkdaxfs.Node { return &mkdaxfs.Node{Mode: disk.TypeDir | 0o755, Mtime: 1600000000} }
	name := func(i int) string {
		s := fmt.Sprintf("%06x", i*2654435761&0xffffff)
		return s + "-abcdefghijklmn"[:1+r.IntN(15)] // 7 to 21 bytes
	}
	var layers []*mkdaxfs.Tree
	shares := []float64{0.6, 0.2, 0.1, 0.07, 0.03}
	id := 0
	var dirs [][]string // of the base
	for li, share := range shares {
		root := dir()
		want := int(float64(entries) * share)
		all := []*mkdaxfs.Node{root}
		paths := [][]string{nil}
		made := 0
		enter := func(p []string) *mkdaxfs.Node {
			d := root
			for _, e := range p {
				sub := d.Lookup(e)
				if sub == nil {
					sub = implicitDir()
					d.Set(e, sub)
				}
				d = sub
			}
			return d
		}
		for made < want {
			var d *mkdaxfs.Node
			var at []string
			if li > 0 && r.IntN(2) == 0 {
				at = dirs[r.IntN(len(dirs))]
				d = enter(at)
			} else {
				i := r.IntN(min(len(all), 1+len(all)/2+4))
				at = append(append([]string(nil), paths[i]...), name(id))
				id++
				d = dir()
				all[i].Set(at[len(at)-1], d)
				all = append(all, d)
				paths = append(paths, at)
				made++
			}
			for range 9 {
				id++
				switch r.IntN(20) {
				case 0:
					d.Set(name(id), &mkdaxfs.Node{Mode: disk.TypeSymlink | 0o777, Link: "../lib/" + name(id), Mtime: 1})
				case 1:
					if li > 0 {
						d.Set(name(id), whiteout())
						continue
					}
					fallthrough
				default:
					d.Set(name(id), file())
				}
				made++
			}
		}
		if li == 0 {
			dirs = paths
		}
		t := &mkdaxfs.Tree{Root: root}
		t.Sort()
		layers = append(layers, t)
	}
	return layers
}

// indexes writes the layers as layer indexes, as they lie in a pool.
func indexes(tb testing.TB, layers []*mkdaxfs.Tree) (images [][]byte) {
	tb.Helper()
	for _, t := range layers {
		l, err := mkdaxfs.NewLayout(t, mkdaxfs.Options{Layer: true})
		if err != nil {
			tb.Fatal(err)
		}
		super, meta, err := l.Emit(mkdaxfs.Place{Super: 0, Meta: disk.BlockSize, End: region})
		if err != nil {
			tb.Fatal(err)
		}
		images = append(images, append(super, meta...))
	}
	return images
}

// flatten is what the snapshotter does for the first container of a chain, the
// check before publication included, but for decoding layers in parallel.
func flatten(tb testing.TB, images [][]byte) (entries uint64, meta int64) {
	tb.Helper()
	var layers []*mkdaxfs.Tree
	for _, b := range images {
		img, err := mkdaxfs.Open(bytes.NewReader(b), region)
		if err != nil {
			tb.Fatal(err)
		}
		t, err := img.Tree(0)
		if err != nil {
			tb.Fatal(err)
		}
		layers = append(layers, t)
	}
	t, err := Merge(layers)
	if err != nil {
		tb.Fatal(err)
	}
	l, err := mkdaxfs.NewLayout(t, mkdaxfs.Options{Layers: make([][32]byte, len(layers))})
	if err != nil {
		tb.Fatal(err)
	}
	at := mkdaxfs.Place{Super: 0, Meta: disk.BlockSize, End: region}
	super, body, err := l.Emit(at)
	if err != nil {
		tb.Fatal(err)
	}
	if err := l.Verify(super, body, at); err != nil {
		tb.Fatal(err)
	}
	return l.Entries(), l.MetaSize()
}

// BenchmarkFlatten is the cost of flattening a chain whose layers are in the
// pool: decode five layer indexes, merge, lay out, emit. The project's limit is
// 3 µs an entry.
func BenchmarkFlatten(b *testing.B) {
	images := indexes(b, chain(34000))
	var entries uint64
	var meta int64
	b.ReportAllocs()
	for b.Loop() {
		entries, meta = flatten(b, images)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(entries), "ns/entry")
	b.ReportMetric(float64(entries), "entries")
	b.ReportMetric(float64(meta)/float64(entries), "B/entry")
}

// TestMetadataPerEntry holds the promise of at most 200 bytes of metadata an
// entry with both views, for names of 14 bytes on average.
func TestMetadataPerEntry(t *testing.T) {
	layers := chain(34000)
	dirs, names, length := 0, 0, 0
	merged, err := Merge(layers)
	if err != nil {
		t.Fatal(err)
	}
	_ = merged.Nodes(func(n *mkdaxfs.Node) error {
		if n.IsDir() {
			dirs++
		}
		for _, c := range n.Children {
			names++
			length += len(c.Name)
		}
		return nil
	})
	average := float64(length) / float64(names)
	if names < 30000 || average < 13.5 || dirs < 2500 || dirs > 3500 {
		t.Errorf("synthetic chain has %d names of %.1f bytes in %d directories, want more than 30000 of 14 in about 3000", names, average, dirs)
	}
	entries, meta := flatten(t, indexes(t, layers))
	per := float64(meta) / float64(entries)
	t.Logf("%d entries in %d directories, names of %.1f bytes: %.1f bytes of metadata an entry", entries, dirs, average, per)
	if per > 200 {
		t.Errorf("%.1f bytes of metadata an entry, want at most 200", per)
	}
}

// unread is a store that places files without reading them.
type unread struct{ end int64 }

func (u *unread) Put(_ context.Context, _ io.Reader, size int64) (mkdaxfs.Extent, error) {
	e := mkdaxfs.Extent{Offset: disk.BlockSize + u.end}
	binary.LittleEndian.PutUint64(e.Digest[:], uint64(e.Offset))
	u.end += disk.AlignUp(size, disk.BlockSize)
	return e, nil
}

// TestMetadataRealTree is the same for /usr of this machine. Names there may be
// longer than 14 bytes on average; both views hold each, so two bytes for each
// byte above that are not counted.
func TestMetadataRealTree(t *testing.T) {
	testutil.Root(t)
	tree, err := FromDir(context.Background(), "/usr", &unread{}, DirOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := mkdaxfs.NewLayout(tree, mkdaxfs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	length := 0
	_ = tree.Nodes(func(n *mkdaxfs.Node) error {
		for _, c := range n.Children {
			length += len(c.Name)
		}
		return nil
	})
	entries := float64(l.Entries())
	average, per := float64(length)/entries, float64(l.MetaSize())/entries
	adjusted := per - 2*max(0, average-14)
	t.Logf("%.0f entries, names of %.1f bytes: %.1f bytes of metadata an entry, %.1f for names of 14 bytes", entries, average, per, adjusted)
	if entries > 5000 && adjusted > 200 {
		t.Errorf("%.1f bytes of metadata an entry, want at most 200", adjusted)
	}
}
