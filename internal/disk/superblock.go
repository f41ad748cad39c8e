package disk

import (
	"fmt"
	"hash/crc32"
)

// Superblock is the head of an image. The first 112 bytes are the frame that
// v8 and native share; the rest is native only and zero in v8.
//
//	offset size field
//	     0    4 magic
//	     4    4 version
//	     8    4 block size
//	    12    4 reserved, zero
//	    16    8 TotalSize     bytes from the superblock to the end of what the image may use
//	    24    8 BaseOffset    address of the base image
//	    32    8 BaseSize
//	    40    8 InodeOffset   relative to base
//	    48    4 InodeCount
//	    52    4 RootIno       1
//	    56    8 DataOffset    relative to base: lowest byte of file data
//	    64   48 overlay and page cache of the public module: zero here
//	   112    4 checksum      CRC-32C of bytes 0..1023 with this field zero
//	   116    4 reserved, zero
//	   120    8 Incompat      feature bits
//	   128    8 ROCompat
//	   136    8 Compat
//	   144   16 UUID          from MetaDigest: same image, same UUID
//	   160    8 MetaOffset    relative to base: start of all metadata but the superblock
//	   168    8 MetaSize      bytes
//	   176    8 XattrOffset   relative to base
//	   184    8 XattrSize
//	   192    8 ExtentOffset  relative to base: extent table (layer index only)
//	   200    8 ExtentCount
//	   208    8 LayerOffset   relative to base: digests of the layers (pool images only)
//	   216    8 LayerCount
//	   224   32 MetaDigest    BLAKE3-256 of [MetaOffset, +MetaSize)
//	   256    8 Entries       names in all directories
//	   264    8 DataSize      sum of the sizes of all regular files, each inode once
type Superblock struct {
	Version     uint32
	BlockSize   uint32
	TotalSize   uint64
	BaseOffset  uint64
	BaseSize    uint64
	InodeOffset uint64
	InodeCount  uint32
	RootIno     uint32
	DataOffset  uint64

	Incompat, ROCompat, Compat uint64

	UUID         [16]byte
	MetaOffset   uint64
	MetaSize     uint64
	XattrOffset  uint64
	XattrSize    uint64
	ExtentOffset uint64
	ExtentCount  uint64
	LayerOffset  uint64
	LayerCount   uint64
	MetaDigest   [32]byte
	Entries      uint64
	DataSize     uint64
}

// SuperblockCRC is the offset of the native checksum: right behind the frame
// that v8 and native share.
const SuperblockCRC = 112

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Native reports whether sb is in the native dialect.
func (sb *Superblock) Native() bool { return sb.Version != VersionV8 }

// Encode writes sb into b, which has at least SuperblockSize bytes; all of
// them are overwritten.
func (sb *Superblock) Encode(b []byte) {
	b = b[:SuperblockSize]
	clear(b)
	le.PutUint32(b[0:], Magic)
	le.PutUint32(b[4:], sb.Version)
	le.PutUint32(b[8:], sb.BlockSize)
	le.PutUint64(b[16:], sb.TotalSize)
	le.PutUint64(b[24:], sb.BaseOffset)
	le.PutUint64(b[32:], sb.BaseSize)
	le.PutUint64(b[40:], sb.InodeOffset)
	le.PutUint32(b[48:], sb.InodeCount)
	le.PutUint32(b[52:], sb.RootIno)
	le.PutUint64(b[56:], sb.DataOffset)
	if !sb.Native() {
		return
	}
	le.PutUint64(b[120:], sb.Incompat)
	le.PutUint64(b[128:], sb.ROCompat)
	le.PutUint64(b[136:], sb.Compat)
	copy(b[144:160], sb.UUID[:])
	le.PutUint64(b[160:], sb.MetaOffset)
	le.PutUint64(b[168:], sb.MetaSize)
	le.PutUint64(b[176:], sb.XattrOffset)
	le.PutUint64(b[184:], sb.XattrSize)
	le.PutUint64(b[192:], sb.ExtentOffset)
	le.PutUint64(b[200:], sb.ExtentCount)
	le.PutUint64(b[208:], sb.LayerOffset)
	le.PutUint64(b[216:], sb.LayerCount)
	copy(b[224:256], sb.MetaDigest[:])
	le.PutUint64(b[256:], sb.Entries)
	le.PutUint64(b[264:], sb.DataSize)
	le.PutUint32(b[SuperblockCRC:], SuperblockChecksum(b))
}

// SuperblockChecksum computes the checksum of a native superblock's bytes.
func SuperblockChecksum(b []byte) uint32 {
	c := crc32.Update(0, castagnoli, b[:SuperblockCRC])
	c = crc32.Update(c, castagnoli, []byte{0, 0, 0, 0})
	return crc32.Update(c, castagnoli, b[SuperblockCRC+4:SuperblockSize])
}

// DecodeSuperblock reads a superblock from b, SuperblockSize bytes or more. It
// judges only what says whether the other fields can be read at all: magic,
// version, and the checksum of the native dialect.
func DecodeSuperblock(b []byte) (*Superblock, error) {
	if len(b) < SuperblockSize {
		return nil, Corruptf("read superblock: %d bytes, want %d", len(b), SuperblockSize)
	}
	if m := le.Uint32(b); m != Magic {
		return nil, fmt.Errorf("read superblock: magic %#08x, want %#08x: %w", m, Magic, ErrNotDAXFS)
	}
	sb := &Superblock{
		Version:     le.Uint32(b[4:]),
		BlockSize:   le.Uint32(b[8:]),
		TotalSize:   le.Uint64(b[16:]),
		BaseOffset:  le.Uint64(b[24:]),
		BaseSize:    le.Uint64(b[32:]),
		InodeOffset: le.Uint64(b[40:]),
		InodeCount:  le.Uint32(b[48:]),
		RootIno:     le.Uint32(b[52:]),
		DataOffset:  le.Uint64(b[56:]),
	}
	switch sb.Version {
	case VersionV8:
		if r := le.Uint32(b[12:]); r != 0 {
			return nil, Corruptf("read superblock: reserved field %#x, want 0", r)
		}
		return sb, nil
	case VersionNative:
	default:
		return nil, fmt.Errorf("read superblock: version %#x, want %#x or %#x: %w",
			sb.Version, VersionV8, VersionNative, ErrUnsupported)
	}
	if got, want := le.Uint32(b[SuperblockCRC:]), SuperblockChecksum(b); got != want {
		return nil, Corruptf("read superblock: checksum %#08x, want %#08x", got, want)
	}
	sb.Incompat = le.Uint64(b[120:])
	sb.ROCompat = le.Uint64(b[128:])
	sb.Compat = le.Uint64(b[136:])
	copy(sb.UUID[:], b[144:])
	sb.MetaOffset = le.Uint64(b[160:])
	sb.MetaSize = le.Uint64(b[168:])
	sb.XattrOffset = le.Uint64(b[176:])
	sb.XattrSize = le.Uint64(b[184:])
	sb.ExtentOffset = le.Uint64(b[192:])
	sb.ExtentCount = le.Uint64(b[200:])
	sb.LayerOffset = le.Uint64(b[208:])
	sb.LayerCount = le.Uint64(b[216:])
	copy(sb.MetaDigest[:], b[224:])
	sb.Entries = le.Uint64(b[256:])
	sb.DataSize = le.Uint64(b[264:])
	return sb, nil
}

// Check reports whether sb describes an image that fits into size bytes
// (counted from the superblock), has the given page size, and uses only known
// incompatible features.
func (sb *Superblock) Check(size uint64, pageSize uint32) error {
	if sb.BlockSize != pageSize {
		return fmt.Errorf("check superblock: block size %d, want the page size %d: %w", sb.BlockSize, pageSize, ErrUnsupported)
	}
	if u := sb.Incompat &^ uint64(IncompatKnown); u != 0 {
		return fmt.Errorf("check superblock: unknown incompatible features %#x: %w", u, ErrUnsupported)
	}
	if sb.TotalSize > size {
		return Corruptf("check superblock: total size %d, only %d bytes are there", sb.TotalSize, size)
	}
	if sb.BaseOffset < uint64(sb.BlockSize) || sb.BaseOffset%8 != 0 || !Inside(sb.BaseOffset, sb.BaseSize, sb.TotalSize) {
		return Corruptf("check superblock: base [%d,+%d) outside [%d,%d)", sb.BaseOffset, sb.BaseSize, sb.BlockSize, sb.TotalSize)
	}
	if sb.RootIno != RootIno {
		return Corruptf("check superblock: root inode %d, want %d", sb.RootIno, RootIno)
	}
	if sb.InodeCount == 0 {
		return Corruptf("check superblock: no inodes")
	}
	inodes := uint64(sb.InodeCount) * InodeSize
	if !Inside(sb.InodeOffset, inodes, sb.BaseSize) || (sb.BaseOffset+sb.InodeOffset)%8 != 0 {
		return Corruptf("check superblock: inode table [%d,+%d) outside base of %d bytes or not 8-byte aligned", sb.InodeOffset, inodes, sb.BaseSize)
	}
	if sb.DataOffset > sb.BaseSize {
		return Corruptf("check superblock: data at %d, behind base of %d bytes", sb.DataOffset, sb.BaseSize)
	}
	if !sb.Native() {
		return nil
	}
	if !Inside(sb.MetaOffset, sb.MetaSize, sb.BaseSize) {
		return Corruptf("check superblock: metadata [%d,+%d) outside base of %d bytes", sb.MetaOffset, sb.MetaSize, sb.BaseSize)
	}
	for _, a := range []struct {
		name         string
		off, n, unit uint64
	}{
		{"inode table", sb.InodeOffset, uint64(sb.InodeCount), InodeSize},
		{"xattr area", sb.XattrOffset, sb.XattrSize, 1},
		{"extent table", sb.ExtentOffset, sb.ExtentCount, ExtentSize},
		{"layer list", sb.LayerOffset, sb.LayerCount, LayerRefSize},
	} {
		if a.n == 0 {
			continue
		}
		if a.n > sb.MetaSize/a.unit || a.off < sb.MetaOffset || !Inside(a.off-sb.MetaOffset, a.n*a.unit, sb.MetaSize) {
			return Corruptf("check superblock: %s [%d,+%d*%d) outside metadata [%d,+%d)", a.name, a.off, a.n, a.unit, sb.MetaOffset, sb.MetaSize)
		}
	}
	return nil
}
