package mkdaxfs_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"os"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

var le = binary.LittleEndian

// raw is an image in memory whose records tests change. fix makes digest and
// checksums right again, so that what a test broke is what the checker meets.
type raw struct {
	t  testing.TB
	b  []byte
	sb disk.Superblock
}

func newRaw(t testing.TB, opts mkdaxfs.BuildOptions, tree func(b *mkdaxfs.Builder) *mkdaxfs.Tree) *raw {
	t.Helper()
	f, _, stats := build(t, opts, tree)
	b := make([]byte, stats.Size)
	if _, err := f.ReadAt(b, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return openRaw(t, b)
}

func openRaw(t testing.TB, b []byte) *raw {
	t.Helper()
	sb, err := disk.DecodeSuperblock(b)
	if err != nil {
		t.Fatal(err)
	}
	return &raw{t, b, *sb}
}

func (r *raw) clone() *raw {
	return &raw{r.t, bytes.Clone(r.b), r.sb}
}

// base is the base image: what offsets are relative to.
func (r *raw) base() []byte { return r.b[r.sb.BaseOffset:] }

func (r *raw) meta() []byte { return r.base()[r.sb.MetaOffset:][:r.sb.MetaSize] }

// inodeAt is the record of an inode.
func (r *raw) inodeAt(ino uint32) []byte {
	return r.base()[r.sb.InodeOffset+uint64(ino-1)*disk.InodeSize:][:disk.InodeSize]
}

// ino is the number of the file at a path.
func (r *raw) ino(path string) uint32 {
	r.t.Helper()
	fi, err := r.open().FS().Lstat(path)
	if err != nil {
		r.t.Fatal(err)
	}
	return fi.Sys().(*disk.Inode).Ino
}

func (r *raw) open() *mkdaxfs.Image {
	r.t.Helper()
	img, err := mkdaxfs.Open(bytes.NewReader(r.b), int64(len(r.b)))
	if err != nil {
		r.t.Fatal(err)
	}
	return img
}

// inode changes the inode at a path.
func (r *raw) inode(path string, change func(in *disk.Inode)) {
	r.t.Helper()
	b := r.inodeAt(r.ino(path))
	in := disk.DecodeInode(b)
	change(&in)
	in.Encode(b)
}

// dir returns all bytes of a directory.
func (r *raw) dir(path string) []byte {
	r.t.Helper()
	in := disk.DecodeInode(r.inodeAt(r.ino(path)))
	return r.base()[in.DataOffset:][:disk.DirBytes(in.Size, !r.sb.Native())]
}

// dirent changes entry i of a directory.
func (r *raw) dirent(path string, i int, change func(d *disk.Dirent)) {
	r.t.Helper()
	b := r.dir(path)[disk.DirHeaderSize+i*disk.DirentSize:]
	d := disk.DecodeDirent(b)
	change(&d)
	d.Encode(b)
}

// rename writes a name of the same length over another.
func (r *raw) rename(path, from, to string) {
	r.t.Helper()
	b := r.dir(path)
	if len(from) != len(to) || bytes.Count(b, []byte(from)) != 1 {
		r.t.Fatalf("cannot rename %q to %q", from, to)
	}
	copy(b[bytes.Index(b, []byte(from)):], to)
}

// super changes the superblock.
func (r *raw) super(change func(sb *disk.Superblock)) { change(&r.sb) }

// fix computes digest and checksum anew.
func (r *raw) fix() {
	if r.sb.Native() && disk.Inside(r.sb.BaseOffset, r.sb.BaseSize, uint64(len(r.b))) && disk.Inside(r.sb.MetaOffset, r.sb.MetaSize, r.sb.BaseSize) {
		r.sb.MetaDigest = blake3.Sum256(r.meta())
	}
	r.sb.Encode(r.b)
}

// check opens and checks the image.
func (r *raw) check() error {
	img, err := mkdaxfs.Open(bytes.NewReader(r.b), int64(len(r.b)))
	if err == nil {
		_, err = mkdaxfs.Check(img, 0)
	}
	return err
}

// smallTree has one of everything that rules are about.
func smallTree(t testing.TB, b *mkdaxfs.Builder) *mkdaxfs.Tree {
	root := dir()
	sub := dir()
	inner := dir()
	root.Set("dir", sub)
	sub.Set("inner", inner)
	inner.Set("leaf", file(t, b, pattern(5000, 1)))
	sub.Set("aa", file(t, b, []byte("aa")))
	sub.Set("bb", file(t, b, []byte("bb")))
	hard := file(t, b, pattern(9000, 2))
	hard.SetXattrs([]disk.Xattr{{Name: "user.a", Value: "1"}, {Name: "user.b", Value: "22"}})
	root.Set("hard1", hard)
	root.Set("hard2", hard)
	root.Set("empty", file(t, b, nil))
	root.Set("symlink", &mkdaxfs.Node{Mode: disk.TypeSymlink | 0o777, Link: "target"})
	root.Set("fifo", &mkdaxfs.Node{Mode: disk.TypeFIFO | 0o600})
	root.Set("char", &mkdaxfs.Node{Mode: disk.TypeChar | 0o600, Rdev: disk.EncodeDev(1, 3)})
	x := dir()
	x.SetXattrs([]disk.Xattr{{Name: "security.x", Value: "label"}})
	root.Set("xdir", x)
	tree := &mkdaxfs.Tree{Root: root}
	tree.Sort()
	return tree
}

// layerImage is a layer index of a tree; its extents lie behind the metadata.
func layerImage(t testing.TB, tree *mkdaxfs.Tree) *raw {
	t.Helper()
	l, err := mkdaxfs.NewLayout(tree, mkdaxfs.Options{Layer: true})
	if err != nil {
		t.Fatal(err)
	}
	size := int64(1 << 20)
	super, meta, err := l.Emit(mkdaxfs.Place{Super: 0, Meta: disk.BlockSize, End: size})
	if err != nil {
		t.Fatal(err)
	}
	b := append(super, meta...)
	return openRaw(t, append(b, make([]byte, size-int64(len(b)))...))
}

// smallLayer is a layer with marks and three extents.
func smallLayer() *mkdaxfs.Tree {
	root := dir()
	for i, name := range []string{"a", "b", "c"} {
		n := &mkdaxfs.Node{Mode: disk.TypeRegular | 0o644, Size: 100}
		n.Extent.Offset = int64(64+4*i) * disk.BlockSize
		n.Extent.Digest = [32]byte{byte(i + 1)}
		root.Set(name, n)
	}
	root.Set("gone", &mkdaxfs.Node{Mode: disk.TypeChar})
	d := dir()
	d.SetXattrs([]disk.Xattr{{Name: "trusted.overlay.opaque", Value: "y"}})
	root.Set("opaque", d)
	tree := &mkdaxfs.Tree{Root: root}
	tree.Sort()
	return tree
}

func buildTo(t testing.TB, f *os.File, opts mkdaxfs.BuildOptions, tree func(b *mkdaxfs.Builder) *mkdaxfs.Tree) (*mkdaxfs.BuildStats, error) {
	t.Helper()
	b, err := mkdaxfs.NewBuilder(f, opts)
	if err != nil {
		return nil, err
	}
	defer func() { _ = b.Close() }()
	return b.Finish(context.Background(), tree(b))
}
