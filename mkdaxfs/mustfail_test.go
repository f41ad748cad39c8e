package mkdaxfs_test

import (
	"errors"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// TestMustFail breaks one rule of a sound image at a time and asserts which
// error says so.
func TestMustFail(t *testing.T) {
	native := newRaw(t, mkdaxfs.BuildOptions{}, func(b *mkdaxfs.Builder) *mkdaxfs.Tree { return smallTree(t, b) })
	noErofs := newRaw(t, mkdaxfs.BuildOptions{NoErofs: true}, func(b *mkdaxfs.Builder) *mkdaxfs.Tree { return smallTree(t, b) })
	layer := layerImage(t, smallLayer())
	if err := layer.check(); err != nil {
		t.Fatal(err)
	}

	const wrap = math.MaxUint64 - 4095
	corrupt, unsupported := disk.ErrCorrupt, disk.ErrUnsupported
	sb := func(change func(sb *disk.Superblock)) func(r *raw) {
		return func(r *raw) { r.super(change) }
	}
	ino := func(path string, change func(in *disk.Inode)) func(r *raw) {
		return func(r *raw) { r.inode(path, change) }
	}
	for _, tt := range []struct {
		name  string
		from  *raw
		patch func(r *raw)
		want  string
		class error
	}{
		// Superblock.
		{"version of the future", native, sb(func(sb *disk.Superblock) { sb.Version = disk.VersionNative + 1 }), "version 0x10001, want 0x8 or 0x10000", unsupported},
		{"version 7", native, sb(func(sb *disk.Superblock) { sb.Version = 7 }), "version 0x7", unsupported},
		{"incompatible feature", native, sb(func(sb *disk.Superblock) { sb.Incompat = 1 << 63 }), "unknown incompatible features 0x8000000000000000", unsupported},
		{"read-only compatible feature", native, sb(func(sb *disk.Superblock) { sb.ROCompat = 2 }), "features that the checker does not know", unsupported},
		{"compatible feature", native, sb(func(sb *disk.Superblock) { sb.Compat |= 1 << 40 }), "features that the checker does not know", unsupported},
		{"page size", native, sb(func(sb *disk.Superblock) { sb.BlockSize = 16384 }), "block size 16384, want the page size 4096", unsupported},
		{"total size", native, sb(func(sb *disk.Superblock) { sb.TotalSize += 4096 }), "total size", corrupt},
		{"base below the superblock", native, sb(func(sb *disk.Superblock) { sb.BaseOffset = 0 }), "base [0,", corrupt},
		{"base not aligned", native, sb(func(sb *disk.Superblock) { sb.BaseOffset += 4; sb.BaseSize -= 4096 }), "base [4100,", corrupt},
		{"base elsewhere", native, func(r *raw) {
			r.sb.BaseOffset += 8
			r.sb.BaseSize -= 8
			r.sb.InodeOffset -= 8
			r.sb.MetaOffset -= 8
			r.sb.XattrOffset -= 8
		}, "", corrupt},
		{"base too large", native, sb(func(sb *disk.Superblock) { sb.BaseSize++ }), "base [4096,", corrupt},
		{"base wraps", native, sb(func(sb *disk.Superblock) { sb.BaseOffset = wrap; sb.BaseSize = 8192 }), "outside", corrupt},
		{"root inode", native, sb(func(sb *disk.Superblock) { sb.RootIno = 2 }), "root inode 2, want 1", corrupt},
		{"no inodes", native, sb(func(sb *disk.Superblock) { sb.InodeCount = 0 }), "no inodes", corrupt},
		{"too many inodes", native, sb(func(sb *disk.Superblock) { sb.InodeCount = math.MaxUint32 }), "inode table", corrupt},
		{"inode table outside", native, sb(func(sb *disk.Superblock) { sb.InodeOffset = sb.BaseSize }), "inode table", corrupt},
		{"inode table wraps", native, sb(func(sb *disk.Superblock) { sb.InodeOffset = wrap }), "inode table", corrupt},
		{"inode table in the data", native, sb(func(sb *disk.Superblock) { sb.InodeOffset = 0 }), "inode table [0,+", corrupt},
		{"inode table not aligned", native, sb(func(sb *disk.Superblock) { sb.InodeOffset += 4 }), "not 8-byte aligned", corrupt},
		{"data offset outside", native, sb(func(sb *disk.Superblock) { sb.DataOffset = sb.BaseSize + 1 }), "data at", corrupt},
		{"data offset wrong", native, sb(func(sb *disk.Superblock) { sb.DataOffset += 4096 }), "superblock: byte 57 is not what the tree makes", corrupt},
		{"metadata outside", native, sb(func(sb *disk.Superblock) { sb.MetaOffset = sb.BaseSize + 4096 }), "metadata", corrupt},
		{"metadata wraps", native, sb(func(sb *disk.Superblock) { sb.MetaOffset = wrap }), "metadata", corrupt},
		{"metadata too large", native, sb(func(sb *disk.Superblock) { sb.MetaSize = math.MaxUint64 }), "metadata", corrupt},
		{"metadata too small", native, sb(func(sb *disk.Superblock) { sb.MetaSize -= 4096 }), "", corrupt},
		{"xattr area outside", native, sb(func(sb *disk.Superblock) { sb.XattrOffset = 0 }), "xattr area", corrupt},
		{"xattr area too large", native, sb(func(sb *disk.Superblock) { sb.XattrSize = math.MaxUint64 }), "xattr area", corrupt},
		{"extent table in an image", native, sb(func(sb *disk.Superblock) { sb.ExtentOffset, sb.ExtentCount = sb.MetaOffset, 1 }), "superblock: byte", corrupt},
		{"extent table wraps", native, sb(func(sb *disk.Superblock) { sb.ExtentOffset, sb.ExtentCount = sb.MetaOffset, 1<<60 }), "extent table", corrupt},
		{"layer list outside", native, sb(func(sb *disk.Superblock) { sb.LayerOffset, sb.LayerCount = 0, 1 }), "layer list", corrupt},
		{"layer list wraps", native, sb(func(sb *disk.Superblock) { sb.LayerOffset, sb.LayerCount = sb.MetaOffset, 1<<59 }), "layer list", corrupt},
		{"UUID", native, sb(func(sb *disk.Superblock) { sb.UUID[0] ^= 1 }), "superblock: byte 144", corrupt},
		{"number of names", native, sb(func(sb *disk.Superblock) { sb.Entries++ }), "superblock: byte 256", corrupt},
		{"size of data", native, sb(func(sb *disk.Superblock) { sb.DataSize++ }), "superblock: byte 264", corrupt},
		{"EROFS view promised", noErofs, sb(func(sb *disk.Superblock) { sb.Compat |= disk.CompatErofs }), "metadata: byte", corrupt},
		{"EROFS view denied", native, sb(func(sb *disk.Superblock) { sb.Compat &^= disk.CompatErofs }), "metadata: byte", corrupt},
		{"an image as a layer index", native, sb(func(sb *disk.Superblock) { sb.Incompat = disk.IncompatLayer }), "is not in the extent table", corrupt},

		// Inodes.
		{"inode number", native, ino("dir/aa", func(in *disk.Inode) { in.Ino++ }), "want", corrupt},
		{"no type", native, ino("dir/aa", func(in *disk.Inode) { in.Mode = 0o644 }), "mode 0644 has no valid type", corrupt},
		{"bits above the type", native, ino("dir/aa", func(in *disk.Inode) { in.Mode |= 1 << 20 }), "has no valid type", corrupt},
		{"type unlike its name's", native, ino("empty", func(in *disk.Inode) { in.Mode = disk.TypeFIFO | 0o644 }), `"empty": entry has type 0100000, inode`, corrupt},
		{"root is a file", native, ino(".", func(in *disk.Inode) { in.Mode = disk.TypeRegular }), "the root has mode 0100000, want a directory", corrupt},
		{"nanoseconds", native, ino("dir/aa", func(in *disk.Inode) { in.MtimeNsec = 1e9 }), "1000000000 nanoseconds", corrupt},
		{"device number on a file", native, ino("dir/aa", func(in *disk.Inode) { in.Rdev = 1 }), "device number 0x1 on mode", corrupt},
		{"data of a FIFO", native, ino("fifo", func(in *disk.Inode) { in.Size = 1 }), "with 1 bytes of data at 0, want none", corrupt},
		{"xattrs without size", native, ino("dir/aa", func(in *disk.Inode) { in.XattrOffset = 8 }), "xattr offset 8 without size", corrupt},
		{"link count too high", native, ino("hard1", func(in *disk.Inode) { in.Nlink++ }), "link count 3, found 2", corrupt},
		{"link count of a directory", native, ino("dir", func(in *disk.Inode) { in.Nlink = 2 }), "link count 2, found 3", corrupt},
		{"link count 0", native, ino("dir/aa", func(in *disk.Inode) { in.Nlink = 0 }), "link count 0, found 1", corrupt},

		// File data.
		{"data outside", native, ino("dir/aa", func(in *disk.Inode) { in.DataOffset = native.sb.BaseSize }), "outside base of", corrupt},
		{"data wraps", native, ino("dir/aa", func(in *disk.Inode) { in.DataOffset = wrap }), "outside base of", corrupt},
		{"data too long", native, ino("dir/aa", func(in *disk.Inode) { in.Size = math.MaxUint64 }), "want at most 4611686018427387904", corrupt},
		{"data too long, less so", native, ino("dir/aa", func(in *disk.Inode) { in.Size = 1 << 40 }), "outside base of", corrupt},
		{"data not aligned", native, ino("dir/aa", func(in *disk.Inode) { in.DataOffset += 512 }), "not a multiple of 4096", corrupt},
		{"data of an empty file", native, ino("empty", func(in *disk.Inode) { in.DataOffset = 4096 }), "empty file with data at 4096", corrupt},
		{"files overlap in part", native, ino("hard1", func(in *disk.Inode) { in.DataOffset -= 4096 }), "overlaps", corrupt},
		{"file overlaps metadata", native, ino("dir/aa", func(in *disk.Inode) { in.DataOffset = native.sb.MetaOffset }), "overlaps", corrupt},
		{"file reaches into metadata", native, ino("hard1", func(in *disk.Inode) { in.Size = native.sb.BaseSize - in.DataOffset }), "overlaps", corrupt},

		// Directories.
		{"name with slash", native, func(r *raw) { r.rename("dir", "bb", "b/") }, `name "b/" contains '/'`, corrupt},
		{"name with NUL", native, func(r *raw) { r.rename("dir", "bb", "b\x00") }, `contains NUL`, corrupt},
		{"name dotdot", native, func(r *raw) { r.rename("dir", "bb", "..") }, `name ".." is reserved`, corrupt},
		{"name dot", noErofs, func(r *raw) {
			d := r.dir("dir/inner")
			r.inode("dir/inner", func(in *disk.Inode) { in.Size -= 3 })
			le.PutUint16(d[disk.DirHeaderSize+8:], 1)
			d[disk.DirHeaderSize+disk.DirentSize] = '.'
		}, `name "." is reserved`, corrupt},
		{"empty name", noErofs, func(r *raw) {
			r.inode("dir/inner", func(in *disk.Inode) { in.Size -= 4 })
			r.dirent("dir/inner", 0, func(d *disk.Dirent) { d.NameLen = 0 })
		}, `name of 0 bytes`, corrupt},
		{"unsorted", native, func(r *raw) { r.rename("dir", "aa", "zz") }, `"zz" stands before "bb"`, corrupt},
		{"twice", native, func(r *raw) { r.rename("dir", "aa", "bb") }, `"bb" stands before "bb"`, corrupt},
		{"entry's type", native, func(r *raw) { r.dirent("dir", 0, func(d *disk.Dirent) { d.Type = 4 }) }, "entry has type 040000, inode", corrupt},
		{"inode 0", native, func(r *raw) { r.dirent("dir", 0, func(d *disk.Dirent) { d.Ino = 0 }) }, `"aa": inode 0: image has inodes 1 to`, corrupt},
		{"inode behind the table", native, func(r *raw) { r.dirent("dir", 0, func(d *disk.Dirent) { d.Ino = math.MaxUint32 }) }, `inode 4294967295: image has inodes 1 to`, corrupt},
		{"inode that has no other name", native, func(r *raw) { i := r.ino("dir/bb"); r.dirent("dir", 0, func(d *disk.Dirent) { d.Ino = i }) }, "no name leads to it", corrupt},
		{"directory loop", native, func(r *raw) {
			i := r.ino("dir")
			r.dirent("dir/inner", 0, func(d *disk.Dirent) { d.Ino, d.Type = i, disk.TypeDir>>12 })
		}, "has a second name or contains itself", corrupt},
		{"root in a directory", native, func(r *raw) {
			r.dirent("dir/inner", 0, func(d *disk.Dirent) { d.Ino, d.Type = 1, disk.TypeDir>>12 })
		}, "directory 1 has a second name or contains itself", corrupt},
		{"two names of a directory", native, func(r *raw) {
			i := r.ino("xdir")
			r.dirent("dir", 0, func(d *disk.Dirent) { d.Ino, d.Type = i, disk.TypeDir>>12 })
		}, "has a second name or contains itself", corrupt},
		{"more entries than fit", native, func(r *raw) { le.PutUint32(r.dir("dir"), 1<<30) }, "entries do not fit into", corrupt},
		{"reserved field", native, func(r *raw) { le.PutUint32(r.dir("dir")[4:], 1) }, "reserved field 0x1, want 0", corrupt},
		{"reserved byte of an entry", noErofs, func(r *raw) { r.dir("dir")[disk.DirHeaderSize+11] = 1 }, "is not what the tree makes", corrupt},
		{"name elsewhere", native, func(r *raw) { r.dirent("dir", 0, func(d *disk.Dirent) { d.NameOff++ }) }, "name at", corrupt},
		{"name behind the end", native, func(r *raw) { r.dirent("dir", 2, func(d *disk.Dirent) { d.NameLen = 60000 }) }, "behind the directory's", corrupt},
		{"names end early", native, func(r *raw) { r.dirent("dir", 2, func(d *disk.Dirent) { d.NameLen-- }) }, "names end at", corrupt},
		{"too small for a header", native, ino("dir", func(in *disk.Inode) { in.Size = 4 }), "4 bytes, want at least 8", corrupt},
		{"directory outside", native, ino("dir", func(in *disk.Inode) { in.DataOffset = wrap }), "read directory: range", corrupt},
		{"directory in the data", native, ino("dir", func(in *disk.Inode) { in.DataOffset = 0 }), "outside metadata", corrupt},
		{"directory shared", noErofs, func(r *raw) {
			src := disk.DecodeInode(r.inodeAt(r.ino("dir/inner")))
			r.inode("xdir", func(in *disk.Inode) { in.Size, in.DataOffset = src.Size, src.DataOffset })
		}, "link count 1, found 2", corrupt},

		// Symlinks.
		{"symlink without NUL", native, ino("symlink", func(in *disk.Inode) { in.Size-- }), "is not followed by its only NUL", corrupt},
		{"symlink over its NUL", native, ino("symlink", func(in *disk.Inode) { in.Size++ }), "is not followed by its only NUL", corrupt},
		{"empty symlink", native, ino("symlink", func(in *disk.Inode) { in.Size = 0 }), "symlink of 0 bytes", corrupt},
		{"symlink too long", native, ino("symlink", func(in *disk.Inode) { in.Size = 4096 }), "symlink of 4096 bytes", corrupt},
		{"symlink outside", native, ino("symlink", func(in *disk.Inode) { in.DataOffset = wrap }), "read symlink: range", corrupt},
		{"symlink elsewhere", noErofs, func(r *raw) {
			// A copy of the target in the padding behind the metadata.
			m := r.meta()
			copy(m[len(m)-16:], "target\x00")
			r.inode("symlink", func(in *disk.Inode) { in.DataOffset = r.sb.MetaOffset + r.sb.MetaSize - 16 })
		}, "is not what the tree makes", corrupt},

		// Attributes.
		{"xattr run outside", native, ino("hard1", func(in *disk.Inode) { in.XattrOffset = in.DataOffset }), "outside xattr area", corrupt},
		{"xattr run too long", native, ino("hard1", func(in *disk.Inode) { in.XattrSize = 1 << 30 }), "outside xattr area", corrupt},
		{"xattr run wraps", native, ino("hard1", func(in *disk.Inode) { in.XattrOffset = wrap }), "outside xattr area", corrupt},
		{"xattr run not of 4 bytes", native, ino("hard1", func(in *disk.Inode) { in.XattrSize -= 2 }), "not a multiple of 4", corrupt},
		{"part of a run", native, ino("hard1", func(in *disk.Inode) { in.XattrSize = 8 }), "is not what the tree makes", corrupt},
		{"xattr name too long", native, func(r *raw) { r.meta()[0] = 255 }, "xattr entry: ", corrupt},
		{"xattr name index", native, func(r *raw) { r.meta()[1] = 5 }, "name index 5", corrupt},
		{"xattr value too long", native, func(r *raw) { le.PutUint16(r.meta()[2:], 65535) }, "xattr entry: ", corrupt},
		{"xattr name with NUL", native, func(r *raw) { r.meta()[4] = 0 }, "xattr entry: name index", corrupt},
		{"xattrs unsorted", native, func(r *raw) { r.meta()[4] = 'z' }, `"user.z" stands before "user.b"`, corrupt},
		{"xattr twice", native, func(r *raw) { r.meta()[4] = 'b' }, `"user.b" stands before "user.b"`, corrupt},

		// What only an image must not have.
		{"whiteout in an image", native, ino("char", func(in *disk.Inode) { in.Rdev = 0 }), "takes for a whiteout", corrupt},
		{"layer's mark in an image", native, func(r *raw) {
			m := r.meta()
			copy(m[:32], "\x00\x00\x00\x00")
			e := disk.AppendXattr(nil, disk.Xattr{Name: "trusted.daxfs.x", Value: ""})
			copy(m, e)
			r.inode("hard1", func(in *disk.Inode) { in.XattrSize = uint32(len(e)) })
		}, `xattr "trusted.daxfs.x" is for layers`, corrupt},

		// Layer indexes.
		{"extent of no bytes", layer, func(r *raw) { le.PutUint64(r.extent(0)[32:], 0) }, "extent 0: [", corrupt},
		{"extent outside", layer, func(r *raw) { le.PutUint64(r.extent(1)[40:], wrap) }, "extent 1: [", corrupt},
		{"extent not aligned", layer, func(r *raw) { r.extent(1)[40]++ }, "extent 1: address", corrupt},
		{"extents unsorted", layer, func(r *raw) { r.extent(1)[0] = 9 }, "extent 2: digest 0300000000000000 is not in order", corrupt},
		{"extent twice", layer, func(r *raw) { r.extent(1)[0] = 1 }, "extent 1: digest 0100000000000000 is not in order", corrupt},
		{"extent of another size", layer, func(r *raw) { le.PutUint64(r.extent(0)[32:], 101) }, "is not in the extent table", corrupt},
		{"file without an extent", layer, ino("a", func(in *disk.Inode) { in.DataOffset += 4096 }), "is not in the extent table", corrupt},
		{"extent that no file uses", layer, ino("a", func(in *disk.Inode) { in.DataOffset += 4 * 4096 }), "extent table has 3 rows, files use 2", corrupt},
		{"layer index as an image", layer, sb(func(sb *disk.Superblock) { sb.Incompat = 0 }), "takes for a whiteout", corrupt},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := tt.from.clone()
			r.t = t
			tt.patch(r)
			r.fix()
			err := r.check()
			if err == nil || !strings.Contains(err.Error(), tt.want) || !errors.Is(err, tt.class) {
				t.Errorf("error %v, want %q and %v", err, tt.want, tt.class)
			}
			if err != nil && !disk.IsBad(err) {
				t.Errorf("%v is not known as an error about bytes", err)
			}
		})
	}
}

func (r *raw) extent(i int) []byte {
	return r.base()[r.sb.ExtentOffset+uint64(i)*disk.ExtentSize:][:disk.ExtentSize]
}

// TestMustFailChecksums: damage without mended checksums.
func TestMustFailChecksums(t *testing.T) {
	native := newRaw(t, mkdaxfs.BuildOptions{}, func(b *mkdaxfs.Builder) *mkdaxfs.Tree { return smallTree(t, b) })
	for _, tt := range []struct {
		name  string
		patch func(r *raw)
		want  string
		class error
	}{
		{"magic", func(r *raw) { r.b[0] ^= 1 }, "magic", disk.ErrNotDAXFS},
		{"superblock", func(r *raw) { r.b[40] ^= 1 }, "checksum", disk.ErrCorrupt},
		{"reserved bytes of the superblock", func(r *raw) { r.b[1000] ^= 1 }, "checksum", disk.ErrCorrupt},
		{"padding of the metadata", func(r *raw) { m := r.meta(); m[len(m)-1] ^= 1 }, "digest", disk.ErrCorrupt},
		{"EROFS superblock", func(r *raw) { r.b[1024] ^= 1 }, "superblock: byte 1024 is not", disk.ErrCorrupt},
		{"behind the EROFS superblock", func(r *raw) { r.b[4095] ^= 1 }, "superblock: byte 4095 is not", disk.ErrCorrupt},
		{"all zeros", func(r *raw) { clear(r.b) }, "magic", disk.ErrNotDAXFS},
	} {
		r := native.clone()
		tt.patch(r)
		if err := r.check(); err == nil || !strings.Contains(err.Error(), tt.want) || !errors.Is(err, tt.class) {
			t.Errorf("%s: error %v, want %q and %v", tt.name, err, tt.want, tt.class)
		}
	}
}

// TestEveryByte flips each bit pattern of 0xff in superblock block and metadata,
// mends the checksums, and wants the checker to notice: with both views there
// is no byte of metadata that says nothing.
func TestEveryByte(t *testing.T) {
	native := newRaw(t, mkdaxfs.BuildOptions{}, func(b *mkdaxfs.Builder) *mkdaxfs.Tree { return smallTree(t, b) })
	meta := native.sb.BaseOffset + native.sb.MetaOffset
	tried := 0
	for i := uint64(0); i < meta+native.sb.MetaSize; i++ {
		if i == disk.BlockSize {
			i = meta // file data is not what is checked
		}
		if i >= 112 && i < 116 || i >= 224 && i < 256 {
			continue // mended below
		}
		r := native.clone()
		r.b[i] ^= 0xff
		if i < disk.SuperblockSize {
			if sb, err := disk.DecodeSuperblock(mendCRC(r.b)); err == nil {
				r.sb = *sb
			}
		} else {
			r.fix()
		}
		if err := r.check(); !disk.IsBad(err) {
			t.Errorf("byte %d: %v", i, err)
		}
		tried++
	}
	if tried < 8000 {
		t.Errorf("only %d bytes tried", tried)
	}
}

// mendCRC makes the checksum of changed superblock bytes right without decoding
// them.
func mendCRC(b []byte) []byte {
	le.PutUint32(b[112:], disk.SuperblockChecksum(b))
	return b
}

// TestCutShort cuts images of all kinds at every block and around it.
func TestCutShort(t *testing.T) {
	for _, opts := range []mkdaxfs.BuildOptions{{}, {NoErofs: true}, {V8: true}} {
		r := newRaw(t, opts, func(b *mkdaxfs.Builder) *mkdaxfs.Tree { return smallTree(t, b) })
		for at := 0; at < len(r.b); at += disk.BlockSize {
			for _, cut := range []int{at, at + 1, at + disk.BlockSize - 1} {
				c := openRawCut(r, cut)
				if err := c.check(); !errors.Is(err, disk.ErrCorrupt) {
					t.Errorf("%+v: cut at %d of %d: %v", opts, cut, len(r.b), err)
				}
			}
		}
	}
}

func openRawCut(r *raw, n int) *raw { return &raw{r.t, r.b[:n], r.sb} }

// TestReadErrors: errors of the device are no errors about the image.
func TestReadErrors(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "image")
	if err != nil {
		t.Fatal(err)
	}
	stats, err := buildTo(t, f, mkdaxfs.BuildOptions{}, func(b *mkdaxfs.Builder) *mkdaxfs.Tree { return smallTree(t, b) })
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := mkdaxfs.Open(f, stats.Size); !errors.Is(err, os.ErrClosed) || disk.IsBad(err) {
		t.Errorf("closed file: %v", err)
	}
}

// TestMustFailV8 is the same for the public module's dialect.
func TestMustFailV8(t *testing.T) {
	tree := func(b *mkdaxfs.Builder) *mkdaxfs.Tree {
		tr := smallTree(t, b)
		tr.Root.Delete("fifo")
		tr.Root.Delete("char")
		tr.Sort()
		return tr
	}
	v8 := newRaw(t, mkdaxfs.BuildOptions{V8: true}, tree)
	for _, tt := range []struct {
		name  string
		patch func(r *raw)
		want  string
	}{
		{"directory's size", func(r *raw) { r.inode("dir", func(in *disk.Inode) { in.Size = 272 }) }, "not a multiple of 271"},
		{"name too long", func(r *raw) { le.PutUint16(r.dir("dir")[8:], 256) }, "name of 256 bytes, want at most 255"},
		{"empty name", func(r *raw) { le.PutUint16(r.dir("dir")[8:], 0) }, "name of 0 bytes"},
		{"name twice", func(r *raw) { r.dir("dir")[16+272] = 'a'; r.dir("dir")[17+272] = 'a' }, `"aa" stands twice`},
		{"loop", func(r *raw) {
			le.PutUint32(r.dir("dir/inner"), r.ino("dir"))
			le.PutUint32(r.dir("dir/inner")[4:], disk.TypeDir)
		}, "contains itself"},
		{"type", func(r *raw) { le.PutUint32(r.dir("dir")[4:], disk.TypeDir) }, "entry has type 040000"},
		{"link count", func(r *raw) { r.inode("hard1", func(in *disk.Inode) { in.Nlink = 1 }) }, "link count 1, found 2"},
		{"reserved field", func(r *raw) { r.b[12] = 1 }, "reserved field 0x1"},
		{"overlap", func(r *raw) { r.inode("hard1", func(in *disk.Inode) { in.DataOffset -= 4096 }) }, "overlaps"},
		{"overlap with the inode table", func(r *raw) { r.inode("hard1", func(in *disk.Inode) { in.DataOffset = r.sb.InodeOffset }) }, "overlaps"},
		{"whiteout", func(r *raw) {
			r.inode("empty", func(in *disk.Inode) { in.Mode = disk.TypeChar })
			d := r.dir(".")
			for i := 0; i < len(d); i += disk.DirentV8Stride {
				if string(d[i+16:i+21]) == "empty" {
					le.PutUint32(d[i+4:], disk.TypeChar)
				}
			}
		}, "takes for a whiteout"},
		{"xattrs outside", func(r *raw) { r.inode("hard1", func(in *disk.Inode) { in.XattrOffset = 1 << 60 }) }, "read xattrs: range"},
	} {
		r := v8.clone()
		tt.patch(r)
		if err := r.check(); err == nil || !strings.Contains(err.Error(), tt.want) || !errors.Is(err, disk.ErrCorrupt) {
			t.Errorf("%s: error %v, want %q and ErrCorrupt", tt.name, err, tt.want)
		}
	}
	if err := v8.check(); err != nil {
		t.Error(err)
	}
}
