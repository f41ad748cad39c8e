package disk

// Inode is one entry of the inode table, InodeSize (64) bytes. The first 36 are
// the frame of v8; the public module ignores the rest, so v8 images carry it
// too.
//
//	offset size field
//	     0    4 Ino        1-based; entry i holds Ino i+1
//	     4    4 Mode       S_IFMT and permission bits, as in stat(2)
//	     8    4 UID
//	    12    4 GID
//	    16    8 Size       bytes; v8 directories: 271 a name
//	    24    8 DataOffset relative to base; 0 if Size is 0
//	    32    4 Nlink
//	    36    4 Rdev       as new_encode_dev() of the kernel (include/linux/kdev_t.h)
//	    40    8 Mtime      seconds since 1970, signed
//	    48    4 MtimeNsec  0..999999999
//	    52    4 XattrSize  bytes of the inode's run in the xattr area
//	    56    8 XattrOffset relative to base; 0 if XattrSize is 0
type Inode struct {
	Ino         uint32
	Mode        uint32
	UID, GID    uint32
	Size        uint64
	DataOffset  uint64
	Nlink       uint32
	Rdev        uint32
	Mtime       int64
	MtimeNsec   uint32
	XattrSize   uint32
	XattrOffset uint64
}

// Encode writes in into the first InodeSize bytes of b.
func (in *Inode) Encode(b []byte) {
	b = b[:InodeSize]
	le.PutUint32(b[0:], in.Ino)
	le.PutUint32(b[4:], in.Mode)
	le.PutUint32(b[8:], in.UID)
	le.PutUint32(b[12:], in.GID)
	le.PutUint64(b[16:], in.Size)
	le.PutUint64(b[24:], in.DataOffset)
	le.PutUint32(b[32:], in.Nlink)
	le.PutUint32(b[36:], in.Rdev)
	le.PutUint64(b[40:], uint64(in.Mtime))
	le.PutUint32(b[48:], in.MtimeNsec)
	le.PutUint32(b[52:], in.XattrSize)
	le.PutUint64(b[56:], in.XattrOffset)
}

// DecodeInode reads one entry from the first InodeSize bytes of b.
func DecodeInode(b []byte) Inode {
	b = b[:InodeSize]
	return Inode{
		Ino:         le.Uint32(b[0:]),
		Mode:        le.Uint32(b[4:]),
		UID:         le.Uint32(b[8:]),
		GID:         le.Uint32(b[12:]),
		Size:        le.Uint64(b[16:]),
		DataOffset:  le.Uint64(b[24:]),
		Nlink:       le.Uint32(b[32:]),
		Rdev:        le.Uint32(b[36:]),
		Mtime:       int64(le.Uint64(b[40:])),
		MtimeNsec:   le.Uint32(b[48:]),
		XattrSize:   le.Uint32(b[52:]),
		XattrOffset: le.Uint64(b[56:]),
	}
}

// Type bits of Mode (include/uapi/linux/stat.h).
const (
	TypeMask    = 0o170000
	TypeSocket  = 0o140000
	TypeSymlink = 0o120000
	TypeRegular = 0o100000
	TypeBlock   = 0o060000
	TypeDir     = 0o040000
	TypeChar    = 0o020000
	TypeFIFO    = 0o010000
)

// ValidType reports whether mode has one of the seven file types and no bit
// above them.
func ValidType(mode uint32) bool {
	switch mode &^ 0o7777 {
	case TypeSocket, TypeSymlink, TypeRegular, TypeBlock, TypeDir, TypeChar, TypeFIFO:
		return true
	}
	return false
}

// HasRdev reports whether mode is a device.
func HasRdev(mode uint32) bool {
	t := mode & TypeMask
	return t == TypeBlock || t == TypeChar
}

// EncodeDev packs a device number as the kernel's new_encode_dev() does.
// The kernel has 12 bits of major and 20 of minor.
func EncodeDev(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | (minor &^ 0xff << 12)
}

// DecodeDev is the inverse of EncodeDev.
func DecodeDev(rdev uint32) (major, minor uint32) {
	return rdev >> 8 & 0xfff, rdev&0xff | rdev>>12&0xfff00
}

// Check reports what can be judged about one entry alone; i is its index in
// the table.
func (in *Inode) Check(i uint32) error {
	if in.Ino != i+1 {
		return Corruptf("inode table entry %d: holds inode %d, want %d", i, in.Ino, i+1)
	}
	if !ValidType(in.Mode) {
		return Corruptf("inode %d: mode %#o has no valid type", in.Ino, in.Mode)
	}
	if in.MtimeNsec > 999999999 {
		return Corruptf("inode %d: %d nanoseconds, want at most 999999999", in.Ino, in.MtimeNsec)
	}
	if in.Rdev != 0 && !HasRdev(in.Mode) {
		return Corruptf("inode %d: device number %#x on mode %#o", in.Ino, in.Rdev, in.Mode)
	}
	switch in.Mode & TypeMask {
	case TypeRegular, TypeDir, TypeSymlink:
	default:
		if in.Size != 0 || in.DataOffset != 0 {
			return Corruptf("inode %d: mode %#o with %d bytes of data at %d, want none", in.Ino, in.Mode, in.Size, in.DataOffset)
		}
	}
	if in.XattrSize == 0 && in.XattrOffset != 0 {
		return Corruptf("inode %d: xattr offset %d without size", in.Ino, in.XattrOffset)
	}
	return nil
}
