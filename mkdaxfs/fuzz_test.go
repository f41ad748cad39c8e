package mkdaxfs_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// A fuzzer that mutates whole images is slow and guesses no digest. These get
// changes to one of several sound images instead: a sequence of
//
//	offset u16, width u8 (1, 2, 4 or 8 bytes), value u16
//
// in superblock and metadata, where width's upper bits say how value becomes
// the bytes written. Then the image is tried as it is, and with digest and
// checksums mended. No input may panic, take memory or time out of proportion,
// or give an error of an unknown kind.

const changeSize = 5

// fuzzImage is a sound image: superblock and metadata, zeros elsewhere.
type fuzzImage struct {
	super, meta []byte
	at, size    int64
}

func fuzzImages(tb testing.TB) []fuzzImage {
	small := func(b *mkdaxfs.Builder) *mkdaxfs.Tree { return smallTree(tb, b) }
	plain := func(b *mkdaxfs.Builder) *mkdaxfs.Tree {
		tr := smallTree(tb, b)
		tr.Root.Delete("fifo")
		tr.Root.Delete("char")
		tr.Sort()
		return tr
	}
	empty := func(*mkdaxfs.Builder) *mkdaxfs.Tree { return &mkdaxfs.Tree{Root: dir()} }
	var out []fuzzImage
	add := func(r *raw) {
		i := fuzzImage{super: bytes.Clone(r.b[:disk.BlockSize]), size: int64(len(r.b))}
		if r.sb.Native() {
			i.at, i.meta = int64(r.sb.BaseOffset+r.sb.MetaOffset), bytes.Clone(r.meta())
		} else {
			// All, since v8 does not say where metadata ends.
			i.at, i.meta = disk.BlockSize, bytes.Clone(r.b[disk.BlockSize:])
		}
		out = append(out, i)
	}
	add(newRaw(tb, mkdaxfs.BuildOptions{}, small))
	add(newRaw(tb, mkdaxfs.BuildOptions{NoErofs: true}, small))
	add(newRaw(tb, mkdaxfs.BuildOptions{V8: true}, plain))
	add(layerImage(tb, smallLayer()))
	add(newRaw(tb, mkdaxfs.BuildOptions{}, empty))
	return out
}

// change applies changes and cuts the image to size.
func (i *fuzzImage) change(changes []byte) *sparseImage {
	s := &sparseImage{pieces: []piece{{0, bytes.Clone(i.super)}, {i.at, bytes.Clone(i.meta)}}, size: i.size}
	for ; len(changes) >= changeSize; changes = changes[changeSize:] {
		off, v := int(le.Uint16(changes)), uint64(le.Uint16(changes[3:]))
		switch changes[2] >> 2 & 3 {
		case 1:
			v = -v // near the end of the number range
		case 2:
			v <<= 12 // blocks
		case 3:
			v <<= 48 // huge
		}
		b := s.pieces[0].b
		if off >= 512 {
			b, off = s.pieces[1].b, off-512
		}
		width := 1 << (changes[2] & 3)
		if off+width > len(b) {
			continue
		}
		var enc [8]byte
		le.PutUint64(enc[:], v)
		copy(b[off:off+width], enc[:])
	}
	return s
}

// forms are the image as it is and, where that can be, with sizes and checksums
// that fit.
func (s *sparseImage) forms() []*sparseImage {
	out := []*sparseImage{s}
	m := &sparseImage{pieces: []piece{{0, bytes.Clone(s.pieces[0].b)}, s.pieces[1]}, size: s.size}
	b := m.pieces[0].b
	le.PutUint32(b, disk.Magic)
	if le.Uint32(b[4:]) != disk.VersionV8 {
		le.PutUint32(b[4:], disk.VersionNative)
		mendCRC(b)
	}
	sb, err := disk.DecodeSuperblock(b)
	if err != nil {
		return out
	}
	sb.BlockSize, sb.BaseOffset = disk.BlockSize, disk.BlockSize
	sb.TotalSize = min(sb.TotalSize, uint64(s.size))
	sb.BaseSize = min(sb.BaseSize, sb.TotalSize-min(sb.TotalSize, disk.BlockSize))
	sb.Incompat &= disk.IncompatKnown
	if sb.Native() && disk.Inside(sb.MetaOffset, sb.MetaSize, sb.BaseSize) && sb.MetaSize <= 1<<20 {
		meta := make([]byte, sb.MetaSize)
		_, _ = m.ReadAt(meta, int64(sb.BaseOffset+sb.MetaOffset))
		sb.MetaDigest = blake3.Sum256(meta)
	}
	sb.Encode(b)
	return append(out, m)
}

// sparseImage reads as zeros but for some pieces.
type sparseImage struct {
	pieces []piece
	size   int64
}

type piece struct {
	at int64
	b  []byte
}

func (s *sparseImage) ReadAt(p []byte, off int64) (int, error) {
	n := int(max(0, min(int64(len(p)), s.size-off)))
	p = p[:n]
	clear(p)
	for _, c := range s.pieces {
		if lo, hi := max(off, c.at), min(off+int64(n), c.at+int64(len(c.b))); lo < hi {
			copy(p[lo-off:], c.b[lo-c.at:hi-c.at])
		}
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// fuzzSeeds are changes that break one rule each, and none.
func fuzzSeeds(f *testing.F) []fuzzImage {
	images := fuzzImages(f)
	for kind := range images {
		add := func(changes ...uint16) {
			var b []byte
			for i := 0; i+2 < len(changes); i += 3 {
				b = le.AppendUint16(b, changes[i])
				b = append(b, byte(changes[i+1]))
				b = le.AppendUint16(b, changes[i+2])
			}
			f.Add(uint8(kind), b)
		}
		add()
		add(4, 2, 9)                 // version
		add(8, 2, 16384)             // page size
		add(16, 3|2<<2, 1)           // total size
		add(40, 3|1<<2, 64)          // inode table near 2^64
		add(48, 2|1<<2, 1)           // number of inodes
		add(52, 2, 2)                // root
		add(120, 3, 1)               // layer index or not
		add(136, 3, 0)               // EROFS view or not
		add(160, 3|2<<2, 2)          // metadata elsewhere
		add(512+4, 0, 5)             // first byte of the metadata
		add(512+36, 2, 1, 176, 0, 1) // several
	}
	return images
}

func knownError(t *testing.T, err error) {
	t.Helper()
	if err != nil && !disk.IsBad(err) {
		t.Errorf("error of an unknown kind: %v", err)
	}
}

// FuzzCheck: what passes the checker is to the byte what its tree makes.
func FuzzCheck(f *testing.F) {
	images := fuzzSeeds(f)
	f.Fuzz(func(t *testing.T, kind uint8, changes []byte) {
		for _, b := range images[int(kind)%len(images)].change(changes).forms() {
			img, err := mkdaxfs.Open(b, b.size)
			knownError(t, err)
			if err != nil {
				continue
			}
			_, err = mkdaxfs.Check(img, 0)
			knownError(t, err)
			if err != nil {
				continue
			}
			// A sound image's files can all be read.
			if err := readAll(img); err != nil {
				t.Errorf("image passes the checker, then: %v", err)
			}
		}
	})
}

// readAll reads every name, attribute and byte through the fs.FS.
func readAll(img *mkdaxfs.Image) error {
	fsys := img.FS()
	total := int64(0)
	return fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := fsys.Lstat(p)
		if err != nil {
			return err
		}
		if _, err := fsys.Xattrs(p); err != nil {
			return err
		}
		switch {
		case fi.Mode()&fs.ModeSymlink != 0:
			if _, err := fsys.ReadLink(p); err != nil {
				return err
			}
			_, err := fsys.Stat(p)
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrInvalid) {
				return err
			}
		case fi.Mode().IsRegular():
			// Many files may share many bytes: look at some of each.
			r, err := img.Data(fi.Sys().(*disk.Inode))
			if err != nil {
				return err
			}
			if total += r.Size(); total < 64<<20 {
				_, err = io.Copy(io.Discard, r)
			}
			return err
		}
		return nil
	})
}

// FuzzReader walks images that nobody checked: errors are fine, panics and
// endless walks are not.
func FuzzReader(f *testing.F) {
	images := fuzzSeeds(f)
	f.Fuzz(func(t *testing.T, kind uint8, changes []byte) {
		for _, b := range images[int(kind)%len(images)].change(changes).forms() {
			img, err := mkdaxfs.Open(b, b.size)
			if err != nil {
				continue
			}
			fsys := img.FS()
			steps := 0
			var walk func(p string, depth int)
			walk = func(p string, depth int) {
				// An unchecked image may have loops; a reader follows as far
				// as it is asked to.
				if steps++; steps > 2000 || depth > 20 {
					return
				}
				fi, err := fsys.Lstat(p)
				if err != nil {
					return
				}
				_, _ = fsys.Xattrs(p)
				_, _ = fsys.ReadLink(p)
				_, _ = fsys.Stat(p)
				if fl, err := fsys.Open(p); err == nil {
					_, _ = io.CopyN(io.Discard, fl, 1<<16)
					_ = fl.Close()
				}
				if fi.IsDir() {
					list, _ := fsys.ReadDir(p)
					for _, e := range list {
						if p == "." {
							walk(e.Name(), depth+1)
						} else {
							walk(p+"/"+e.Name(), depth+1)
						}
					}
				}
			}
			walk(".", 0)
			_, _ = img.Layers()
			_, _ = img.Extents()
		}
	})
}

// FuzzLayerIndex is what the snapshotter does with a layer index of a pool that
// it finds at start: decode it, take its extents, write it again.
func FuzzLayerIndex(f *testing.F) {
	images := fuzzSeeds(f)
	f.Fuzz(func(t *testing.T, kind uint8, changes []byte) {
		for _, b := range images[int(kind)%len(images)].change(changes).forms() {
			img, err := mkdaxfs.Open(b, b.size)
			knownError(t, err)
			if err != nil || !img.IsLayer() {
				continue
			}
			extents, err := img.Extents()
			knownError(t, err)
			tree, err := img.Tree(0)
			knownError(t, err)
			if err != nil {
				continue
			}
			if _, err := mkdaxfs.Check(img, 0); err != nil {
				knownError(t, err)
				continue
			}
			l, err := mkdaxfs.NewLayout(tree, mkdaxfs.Options{Layer: true})
			if err != nil {
				t.Fatalf("layer passes the checker, then: %v", err)
			}
			before, err := l.LayerKey()
			if err != nil {
				t.Fatal(err)
			}
			// The key depends on content, not on place.
			_ = tree.Nodes(func(n *mkdaxfs.Node) error {
				if n.IsRegular() && n.Size > 0 {
					n.Extent.Offset += 1 << 40
				}
				return nil
			})
			moved, err := mkdaxfs.NewLayout(tree, mkdaxfs.Options{Layer: true})
			if err != nil {
				t.Fatal(err)
			}
			after, err := moved.LayerKey()
			if err != nil || after != before {
				t.Errorf("key %x, after moving the extents %x, %v", before, after, err)
			}
			if n := len(extents); uint64(n) != img.Superblock().ExtentCount {
				t.Errorf("%d extents, superblock says %d", n, img.Superblock().ExtentCount)
			}
		}
	})
}
