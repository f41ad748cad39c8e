package mkdaxfs

import (
	"fmt"
	"io"
	"sync/atomic"

	"github.com/containerd/errdefs"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// Image reads one image. Its methods check what they touch, so that damaged or
// hostile bytes give errors that wrap disk.ErrCorrupt, but only Check proves
// the whole image. An Image is safe for concurrent use.
type Image struct {
	sb    *disk.Superblock
	r     io.ReaderAt
	size  int64
	block []byte // the superblock's block
	// meta holds the bytes [metaAddr, +len) of the image: all metadata of a
	// native image, the inode table of a v8 one.
	meta     []byte
	metaAddr uint64
	// large is the large directory used last: walking a path, or one by one the
	// names of a directory, would check it (and, in v8, read it) every time.
	large atomic.Pointer[openDirectory]
}

type openDirectory struct {
	in  disk.Inode
	dir disk.Dir
}

const largeDir = 64

// Open reads superblock and metadata of the image in the first size bytes of
// r. Errors of r are returned as they are; see disk.IsBad for the others.
func Open(r io.ReaderAt, size int64) (*Image, error) {
	img := &Image{r: r, size: size}
	if size < disk.BlockSize {
		return nil, disk.Corruptf("open image: %d bytes, want at least %d", size, disk.BlockSize)
	}
	img.block = make([]byte, disk.BlockSize)
	if err := readFull(r, img.block, 0); err != nil {
		return nil, fmt.Errorf("open image: read superblock: %w", err)
	}
	sb, err := disk.DecodeSuperblock(img.block)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	if err := sb.Check(uint64(size), disk.BlockSize); err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	img.sb = sb
	off, n := sb.InodeOffset, uint64(sb.InodeCount)*disk.InodeSize
	if sb.Native() {
		off, n = sb.MetaOffset, sb.MetaSize
	}
	img.metaAddr = sb.BaseOffset + off
	if img.meta, err = readGrowing(r, img.metaAddr, n); err != nil {
		return nil, fmt.Errorf("open image: read %d bytes of metadata: %w", n, err)
	}
	return img, nil
}

// readFull reads exactly len(b) bytes; a short read is corruption, since the
// size was known before.
func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == io.EOF || err == nil {
		return disk.Corruptf("%d bytes at %d, want %d", n, off, len(b))
	}
	return err
}

// readGrowing reads n bytes in steps, so that a claimed size that the reader
// does not have fails before all of it is allocated.
func readGrowing(r io.ReaderAt, off, n uint64) ([]byte, error) {
	const step = 16 << 20
	b := make([]byte, 0, min(n, step))
	for uint64(len(b)) < n {
		have := len(b)
		m := int(min(n-uint64(have), step))
		if cap(b)-have < m {
			b = append(make([]byte, 0, min(n, uint64(2*cap(b)+m))), b...)
		}
		b = b[:have+m]
		if err := readFull(r, b[have:], int64(off)+int64(have)); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// Superblock returns the decoded superblock, which must not be changed.
func (img *Image) Superblock() *disk.Superblock { return img.sb }

// HasErofs reports whether the image says that it holds an EROFS view.
func (img *Image) HasErofs() bool { return img.sb.Compat&disk.CompatErofs != 0 }

// IsLayer reports whether the image is a layer index.
func (img *Image) IsLayer() bool { return img.sb.Incompat&disk.IncompatLayer != 0 }

// maxRecord bounds what is read of a v8 image at once: a directory of 15 million
// names.
const maxRecord = 1 << 32

// bytes returns n bytes of metadata at an offset relative to base; the caller
// must not change them. A native image has all its records in the metadata,
// which is in memory; in v8 they may be anywhere.
func (img *Image) bytes(off, n uint64) ([]byte, error) {
	if !disk.Inside(off, n, img.sb.BaseSize) {
		return nil, disk.Corruptf("range [%d,+%d) outside base of %d bytes", off, n, img.sb.BaseSize)
	}
	addr := img.sb.BaseOffset + off
	if addr >= img.metaAddr && disk.Inside(addr-img.metaAddr, n, uint64(len(img.meta))) {
		return img.meta[addr-img.metaAddr:][:n:n], nil
	}
	if n == 0 {
		return nil, nil
	}
	if img.sb.Native() {
		return nil, disk.Corruptf("range [%d,+%d) outside metadata [%d,+%d)", off, n, img.sb.MetaOffset, img.sb.MetaSize)
	}
	if n > maxRecord {
		return nil, disk.Corruptf("record of %d bytes, want at most %d", n, uint64(maxRecord))
	}
	return readGrowing(img.r, addr, n)
}

// Inode returns inode ino, 1 to InodeCount.
func (img *Image) Inode(ino uint32) (disk.Inode, error) {
	if ino == 0 || ino > img.sb.InodeCount {
		return disk.Inode{}, disk.Corruptf("inode %d: image has inodes 1 to %d", ino, img.sb.InodeCount)
	}
	b, err := img.bytes(img.sb.InodeOffset+uint64(ino-1)*disk.InodeSize, disk.InodeSize)
	if err != nil {
		return disk.Inode{}, err
	}
	in := disk.DecodeInode(b)
	if err := in.Check(ino - 1); err != nil {
		return disk.Inode{}, err
	}
	return in, nil
}

// Dir returns the entries of a directory.
func (img *Image) Dir(in *disk.Inode) (disk.Dir, error) {
	v8 := !img.sb.Native()
	if in.Mode&disk.TypeMask != disk.TypeDir {
		return disk.Dir{}, fmt.Errorf("inode %d: mode %#o is not a directory: %w", in.Ino, in.Mode, errdefs.ErrInvalidArgument)
	}
	if v8 && in.Size%disk.DirentV8Count != 0 {
		return disk.Dir{}, disk.Corruptf("inode %d: directory of %d bytes, not a multiple of %d", in.Ino, in.Size, disk.DirentV8Count)
	}
	n := disk.DirBytes(in.Size, v8)
	if n == 0 {
		return disk.Dir{}, nil
	}
	if l := img.large.Load(); l != nil && l.in == *in {
		return l.dir, nil
	}
	b, err := img.bytes(in.DataOffset, n)
	if err != nil {
		return disk.Dir{}, fmt.Errorf("inode %d: read directory: %w", in.Ino, err)
	}
	d, err := disk.OpenDir(b, v8)
	if err != nil {
		return disk.Dir{}, fmt.Errorf("inode %d: %w", in.Ino, err)
	}
	if d.Len() >= largeDir {
		img.large.Store(&openDirectory{*in, d})
	}
	return d, nil
}

// Link returns the target of a symlink.
func (img *Image) Link(in *disk.Inode) (string, error) {
	if in.Mode&disk.TypeMask != disk.TypeSymlink {
		return "", fmt.Errorf("inode %d: mode %#o is not a symlink: %w", in.Ino, in.Mode, errdefs.ErrInvalidArgument)
	}
	if in.Size == 0 || in.Size > disk.MaxLinkLen {
		return "", disk.Corruptf("inode %d: symlink of %d bytes, want 1 to %d", in.Ino, in.Size, disk.MaxLinkLen)
	}
	b, err := img.bytes(in.DataOffset, in.Size+1)
	if err != nil {
		return "", fmt.Errorf("inode %d: read symlink: %w", in.Ino, err)
	}
	for i, c := range b {
		if (c == 0) != (i == len(b)-1) {
			return "", disk.Corruptf("inode %d: symlink of %d bytes is not followed by its only NUL", in.Ino, in.Size)
		}
	}
	return string(b[:in.Size]), nil
}

// Xattrs returns the extended attributes of an inode, sorted by name.
func (img *Image) Xattrs(in *disk.Inode) ([]disk.Xattr, error) {
	if in.XattrSize == 0 {
		return nil, nil
	}
	// The run is made of 4-byte units. In v8 images the area has no bounds of
	// its own.
	if in.XattrSize%4 != 0 {
		return nil, disk.Corruptf("inode %d: %d bytes of xattrs, not a multiple of 4", in.Ino, in.XattrSize)
	}
	if sb := img.sb; sb.Native() && (in.XattrOffset < sb.XattrOffset || !disk.Inside(in.XattrOffset-sb.XattrOffset, uint64(in.XattrSize), sb.XattrSize)) {
		return nil, disk.Corruptf("inode %d: xattrs [%d,+%d) outside xattr area [%d,+%d)", in.Ino, in.XattrOffset, in.XattrSize, sb.XattrOffset, sb.XattrSize)
	}
	b, err := img.bytes(in.XattrOffset, uint64(in.XattrSize))
	if err != nil {
		return nil, fmt.Errorf("inode %d: read xattrs: %w", in.Ino, err)
	}
	xs, err := disk.DecodeXattrs(b)
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", in.Ino, err)
	}
	return xs, nil
}

// dataRange checks a regular file's place and returns its address.
func (img *Image) dataRange(in *disk.Inode) (uint64, error) {
	if !disk.Inside(in.DataOffset, in.Size, img.sb.BaseSize) {
		return 0, disk.Corruptf("inode %d: data [%d,+%d) outside base of %d bytes", in.Ino, in.DataOffset, in.Size, img.sb.BaseSize)
	}
	addr := img.sb.BaseOffset + in.DataOffset
	if img.sb.Native() && addr%disk.BlockSize != 0 {
		return 0, disk.Corruptf("inode %d: data at address %d, not a multiple of %d", in.Ino, addr, disk.BlockSize)
	}
	return addr, nil
}

// Data returns a reader over a regular file's bytes.
func (img *Image) Data(in *disk.Inode) (*io.SectionReader, error) {
	if in.Mode&disk.TypeMask != disk.TypeRegular {
		return nil, fmt.Errorf("inode %d: mode %#o is not a regular file: %w", in.Ino, in.Mode, errdefs.ErrInvalidArgument)
	}
	if in.Size == 0 {
		return io.NewSectionReader(img.r, 0, 0), nil
	}
	addr, err := img.dataRange(in)
	if err != nil {
		return nil, err
	}
	return io.NewSectionReader(img.r, int64(addr), int64(in.Size)), nil
}

// Layers returns the keys of the layer indexes that a pool image names, lowest
// first.
func (img *Image) Layers() ([][32]byte, error) {
	b, err := img.bytes(img.sb.LayerOffset, img.sb.LayerCount*disk.LayerRefSize)
	if err != nil {
		return nil, fmt.Errorf("read layer list: %w", err)
	}
	var out [][32]byte
	for ; len(b) > 0; b = b[disk.LayerRefSize:] {
		out = append(out, [32]byte(b[:disk.LayerRefSize]))
	}
	return out, nil
}

// Extents returns the extent table of a layer index. Offsets are addresses.
func (img *Image) Extents() ([]disk.Extent, error) {
	b, err := img.bytes(img.sb.ExtentOffset, img.sb.ExtentCount*disk.ExtentSize)
	if err != nil {
		return nil, fmt.Errorf("read extent table: %w", err)
	}
	out := make([]disk.Extent, 0, img.sb.ExtentCount)
	for i := 0; len(b) > 0; i, b = i+1, b[disk.ExtentSize:] {
		e := disk.DecodeExtent(b)
		if e.Size == 0 || !disk.Inside(e.Offset, e.Size, img.sb.BaseSize) {
			return nil, disk.Corruptf("extent %d: [%d,+%d) is empty or outside base of %d bytes", i, e.Offset, e.Size, img.sb.BaseSize)
		}
		e.Offset += img.sb.BaseOffset
		if e.Offset%disk.BlockSize != 0 {
			return nil, disk.Corruptf("extent %d: address %d, not a multiple of %d", i, e.Offset, disk.BlockSize)
		}
		if i > 0 && string(out[i-1].Digest[:]) >= string(e.Digest[:]) {
			return nil, disk.Corruptf("extent %d: digest %x is not in order", i, e.Digest[:8])
		}
		out = append(out, e)
	}
	return out, nil
}
