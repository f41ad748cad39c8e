package disk

import "hash/crc32"

// The EROFS view: only what the emitter writes (flat inodes, no compression,
// no chunks, no extra devices). Layouts are those of Linux
// fs/erofs/erofs_fs.h; readers are the kernel and go-erofs, so nothing is
// decoded here.
const (
	ErofsSuperOffset = 1024
	ErofsMagic       = 0xE0F5E1E2
	ErofsInodeSize   = 64 // extended
	ErofsSlotSize    = 32 // a nid counts slots from meta_blkaddr
	ErofsDirentSize  = 12
	ErofsXattrHeader = 12
	// ErofsMaxShared is the limit of h_shared_count (8 bits).
	ErofsMaxShared = 255
	// ErofsMaxBlocks is the limit of 32-bit block addresses.
	ErofsMaxBlocks = 1<<32 - 1

	erofsCompatSBChecksum = 0x1
	erofsCompatMtime      = 0x2

	ErofsFlatPlain  = 0
	ErofsFlatInline = 2
)

// ErofsSuper are the fields of struct erofs_super_block that are not zero.
type ErofsSuper struct {
	RootNid      uint16
	Inodes       uint64
	BuildTime    int64
	Blocks       uint32
	MetaBlkaddr  uint32
	XattrBlkaddr uint32
	UUID         [16]byte
}

// Encode writes the superblock into block, the whole first block of the image
// whose first 1024 bytes are DAXFS's. The checksum covers bytes 1024 to the
// end of the block (fs/erofs/super.c, erofs_superblock_csum_verify).
func (s *ErofsSuper) Encode(block []byte) {
	b := block[ErofsSuperOffset:BlockSize]
	clear(b)
	le.PutUint32(b[0:], ErofsMagic)
	le.PutUint32(b[8:], erofsCompatSBChecksum|erofsCompatMtime)
	b[12] = 12 // blkszbits
	le.PutUint16(b[14:], s.RootNid)
	le.PutUint64(b[16:], s.Inodes)
	le.PutUint64(b[24:], uint64(s.BuildTime))
	le.PutUint32(b[36:], s.Blocks)
	le.PutUint32(b[40:], s.MetaBlkaddr)
	le.PutUint32(b[44:], s.XattrBlkaddr)
	copy(b[48:64], s.UUID[:])
	// EROFS uses the raw register, without the final inversion.
	le.PutUint32(b[4:], ^crc32.Checksum(b, castagnoli))
}

// ErofsInode is struct erofs_inode_extended.
type ErofsInode struct {
	Layout      uint16 // ErofsFlatPlain or ErofsFlatInline
	XattrIcount uint16
	Mode        uint16
	Size        uint64
	U           uint32 // start block, or device number
	Ino         uint32
	UID, GID    uint32
	Mtime       int64
	MtimeNsec   uint32
	Nlink       uint32
}

// Encode writes in into the first ErofsInodeSize bytes of b.
func (in *ErofsInode) Encode(b []byte) {
	b = b[:ErofsInodeSize]
	le.PutUint16(b[0:], 1|in.Layout<<1)
	le.PutUint16(b[2:], in.XattrIcount)
	le.PutUint16(b[4:], in.Mode)
	le.PutUint64(b[8:], in.Size)
	le.PutUint32(b[16:], in.U)
	le.PutUint32(b[20:], in.Ino)
	le.PutUint32(b[24:], in.UID)
	le.PutUint32(b[28:], in.GID)
	le.PutUint64(b[32:], uint64(in.Mtime))
	le.PutUint32(b[40:], in.MtimeNsec)
	le.PutUint32(b[44:], in.Nlink)
}

// ErofsFileType maps S_IFMT to the file type of an EROFS dirent
// (include/linux/fs_types.h, FT_*).
func ErofsFileType(mode uint32) uint8 {
	switch mode & TypeMask {
	case TypeRegular:
		return 1
	case TypeDir:
		return 2
	case TypeChar:
		return 3
	case TypeBlock:
		return 4
	case TypeFIFO:
		return 5
	case TypeSocket:
		return 6
	case TypeSymlink:
		return 7
	}
	return 0
}

// PutErofsDirent writes one struct erofs_dirent.
func PutErofsDirent(b []byte, nid uint64, nameOff uint16, fileType uint8) {
	b = b[:ErofsDirentSize]
	le.PutUint64(b, nid)
	le.PutUint16(b[8:], nameOff)
	b[10] = fileType
	b[11] = 0
}

// PutErofsXattrHeader writes struct erofs_xattr_ibody_header followed by the
// ids of shared entries, in units of 4 bytes from xattr_blkaddr.
func PutErofsXattrHeader(b []byte, ids []uint32) {
	clear(b[:ErofsXattrHeader])
	b[4] = uint8(len(ids))
	for i, id := range ids {
		le.PutUint32(b[ErofsXattrHeader+4*i:], id)
	}
}
