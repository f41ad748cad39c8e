package process

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/convert"
	"github.com/daxfs/containerd-daxfs/integration/fstree"
	"github.com/daxfs/containerd-daxfs/integration/images"
	"github.com/daxfs/containerd-daxfs/integration/lab"
	"github.com/daxfs/containerd-daxfs/integration/vm/process/inside"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// Places in the pool, in bytes. What lies before the first image is the pool's
// own, and not zero.
const (
	poolSize = 1 << 30

	nativeAt = 2<<20 + 3*disk.BlockSize // not aligned to huge pages
	v8At     = inside.V8At
	tornAt   = 254 << 20
	poolAt   = 256 << 20 // superblocks and metadata of the pool's images
	dataAt   = 288 << 20 // and their data
)

// makeImages writes all images into the pool and returns the configuration of
// the tests inside; what that names lies below dir.
func makeImages(t *testing.T, pool *os.File, dir string) *inside.Config {
	t.Helper()
	ctx := t.Context()
	if _, err := pool.WriteAt(bytes.Repeat([]byte("the pool's own. "), disk.BlockSize/16), 0); err != nil {
		t.Fatal(err)
	}
	src := makeSource(t)
	tree, err := fstree.Walk(src, fstree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := &poolWriter{t: t, pool: pool, dir: dir, config: &inside.Config{Size: poolSize, Images: map[string]inside.Image{}}}
	p.config.File = filepath.Join(dir, "native.daxfs")
	made, want := p.build(ctx, p.config.File, src, tree, mkdaxfs.BuildOptions{}, nothing)
	p.copy(p.config.File, nativeAt)
	p.add(inside.ImageNative, nativeAt, nativeAt, made, want)

	v8 := filepath.Join(dir, "v8.daxfs")
	made, want = p.build(ctx, v8, src, tree, mkdaxfs.BuildOptions{V8: true}, special)
	p.copy(v8, v8At)
	p.add(inside.ImageV8, v8At, v8At, made, want)

	p.config.SmallFile = filepath.Join(dir, "small.daxfs")
	made, want = p.build(ctx, p.config.SmallFile, src, tree, mkdaxfs.BuildOptions{Spool: true}, large)
	p.config.SmallManifest, _ = p.manifest("small", 0, made, want)

	st := &store{pool: pool, end: dataAt, known: map[[32]byte]mkdaxfs.Extent{}}
	full, err := convert.FromDir(ctx, src, st, convert.DirOptions{})
	if err != nil {
		t.Fatal(err)
	}
	at := p.inPool(inside.ImagePool, poolAt, full, tree)
	// A part of the tree, so that all its data is there already.
	twin, err := convert.FromDir(ctx, filepath.Join(src, "data"), st, convert.DirOptions{})
	if err != nil {
		t.Fatal(err)
	}
	twinTree, err := fstree.Walk(filepath.Join(src, "data"), fstree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	at = p.inPool(inside.ImageTwin, at, twin, twinTree)
	at = p.inPool(inside.ImageDebian, at, debian(t, st), nil)
	if at > dataAt {
		t.Fatalf("metadata of the pool's images ends at %d, want at most %d", at, dataAt)
	}

	torn := make([]byte, 56)
	if _, err := pool.ReadAt(torn, nativeAt); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.WriteAt(torn, tornAt); err != nil {
		t.Fatal(err)
	}
	p.config.Images[inside.ImageTorn] = inside.Image{Offset: tornAt}
	return p.config
}

// poolWriter collects what was written.
type poolWriter struct {
	t      *testing.T
	pool   *os.File
	dir    string
	config *inside.Config
}

// build makes an image file of the source directory, without what drop says,
// and returns what is in it.
func (p *poolWriter) build(ctx context.Context, file, src string, want fstree.Tree, opts mkdaxfs.BuildOptions, drop func(path string, mode uint32) bool) (*mkdaxfs.Tree, fstree.Tree) {
	p.t.Helper()
	fail := func(err error) {
		p.t.Helper()
		if err != nil {
			p.t.Fatalf("make image %s: %v", file, err)
		}
	}
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	fail(err)
	defer f.Close()
	b, err := mkdaxfs.NewBuilder(f, opts)
	fail(err)
	defer b.Close()
	tree, err := convert.FromDir(ctx, src, b, convert.DirOptions{})
	fail(err)
	want = without(tree, want, drop)
	_, err = b.Finish(ctx, tree)
	fail(err)
	return tree, want
}

func nothing(string, uint32) bool { return false }

// special files are what v8 cannot say.
func special(_ string, mode uint32) bool {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR, unix.S_IFREG, unix.S_IFLNK:
		return false
	}
	return true
}

// large is what the small image does without.
func large(path string, _ uint32) bool {
	return strings.HasPrefix(path, "many/") || path == inside.Big
}

// copy puts an image file into the pool.
func (p *poolWriter) copy(file string, at int64) {
	p.t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.pool.WriteAt(b, at); err != nil {
		p.t.Fatal(err)
	}
}

// inPool writes superblock and metadata of a tree whose data is in the pool,
// and returns the place behind them.
func (p *poolWriter) inPool(name string, at int64, tree *mkdaxfs.Tree, want fstree.Tree) int64 {
	p.t.Helper()
	l, err := mkdaxfs.NewLayout(tree, mkdaxfs.Options{Layers: [][32]byte{blake3.Sum256([]byte(name))}})
	if err != nil {
		p.t.Fatalf("lay out image %s: %v", name, err)
	}
	place := mkdaxfs.Place{Super: at, Meta: at + disk.BlockSize, End: poolSize}
	super, meta, err := l.Emit(place)
	if err != nil {
		p.t.Fatalf("emit image %s: %v", name, err)
	}
	if _, err := p.pool.WriteAt(append(super, meta...), at); err != nil {
		p.t.Fatal(err)
	}
	p.add(name, at, 0, tree, want)
	return place.Meta + l.MetaSize()
}

// add records an image of the pool at a place, whose extents count from origin.
func (p *poolWriter) add(name string, at, origin int64, tree *mkdaxfs.Tree, want fstree.Tree) {
	p.t.Helper()
	file, m := p.manifest(name, origin, tree, want)
	p.config.Images[name] = inside.Image{Offset: at, Manifest: file, Live: m.Extents[inside.Live]}
}

// manifest writes what an image consists of and returns the path.
func (p *poolWriter) manifest(name string, origin int64, tree *mkdaxfs.Tree, want fstree.Tree) (string, inside.Manifest) {
	p.t.Helper()
	m := inside.Manifest{Tree: want, Extents: map[string]int64{}}
	err := tree.Walk(func(path string, n *mkdaxfs.Node) error {
		if n.IsRegular() && n.Size > 0 {
			m.Extents[path] = origin + n.Extent.Offset
		}
		return nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
	file := filepath.Join(p.dir, name+".manifest")
	if err := m.Write(file); err != nil {
		p.t.Fatal(err)
	}
	return file, m
}

// without drops what drop says from a tree and from the record of its source,
// with all below it.
func without(image *mkdaxfs.Tree, tree fstree.Tree, drop func(path string, mode uint32) bool) fstree.Tree {
	tree = maps.Clone(tree)
	for p, e := range tree {
		if !drop(p, e.Mode) {
			continue
		}
		if dir := image.Find(path.Dir(p)); dir != nil {
			dir.Delete(path.Base(p))
		}
		delete(tree, p)
	}
	image.Sort()
	return tree
}

// store keeps contents in the pool, equal ones once, at its own places: large
// files at huge pages.
type store struct {
	pool  *os.File
	end   int64
	known map[[32]byte]mkdaxfs.Extent
}

const hugePage = 2 << 20

// Put implements convert.Store.
func (s *store) Put(_ context.Context, r io.Reader, size int64) (mkdaxfs.Extent, error) {
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return mkdaxfs.Extent{}, fmt.Errorf("read %d bytes: %w", size, err)
	}
	digest := blake3.Sum256(b)
	if e, ok := s.known[digest]; ok {
		return e, nil
	}
	if size >= hugePage {
		s.end = disk.AlignUp(s.end, hugePage)
	}
	e := mkdaxfs.Extent{Offset: s.end, Digest: digest}
	if s.end += disk.AlignUp(size, disk.BlockSize); s.end > poolSize {
		return mkdaxfs.Extent{}, fmt.Errorf("pool of %d bytes is full", poolSize)
	}
	s.known[digest] = e
	_, err := s.pool.WriteAt(b, e.Offset)
	return e, err
}

// debian is a real root file system with an interpreter in it.
func debian(t *testing.T, s *store) *mkdaxfs.Tree {
	t.Helper()
	cache := &images.Cache{Dir: filepath.Join(lab.CacheDir(), "images"), Log: t.Logf}
	layout, err := cache.Get(t.Context(), "python")
	if err != nil {
		t.Fatal(err)
	}
	img, err := convert.OpenOCI(layout.Dir, convert.OCIOptions{})
	if err != nil {
		t.Fatal(err)
	}
	tree, _, err := img.Tree(t.Context(), s, convert.TarOptions{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}
