package mutate

import (
	"fmt"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// Costly returns images of about size bytes whose records take a reader time
// out of proportion if it trusts that no two of them overlap: every directory
// has the same names, every inode the same endless attributes. All of them have
// to be refused, or read, in time proportional to size.
func Costly(size int) []Image {
	return []Image{
		{"overlapping-directories", overlapping(size)},
		{"endless-attributes", endless(size)},
	}
}

// raw is a native image made by hand.
type raw struct {
	b    []byte // from the base on
	size int
	sb   disk.Superblock
}

func newRaw(size, inodes int) *raw {
	size = disk.AlignUp(size, disk.BlockSize)
	r := &raw{size: size}
	r.sb = disk.Superblock{
		Version: disk.VersionNative, BlockSize: disk.BlockSize, TotalSize: uint64(size),
		BaseOffset: disk.BlockSize, BaseSize: uint64(size - disk.BlockSize),
		InodeCount: uint32(inodes), RootIno: disk.RootIno,
		MetaSize: uint64(size - disk.BlockSize),
	}
	r.b = make([]byte, inodes*disk.InodeSize, size-disk.BlockSize)
	return r
}

func (r *raw) inode(in disk.Inode) { in.Encode(r.b[(in.Ino-1)*disk.InodeSize:]) }

// directory appends one of n names and returns its place. The names count in
// hexadecimal, the first leads to inode first, the next one step further.
func (r *raw) directory(n, first, step int, mode uint32) (at, size uint64) {
	const nameLen = 6
	at = uint64(len(r.b))
	size = uint64(disk.DirHeaderSize + n*(disk.DirentSize+nameLen))
	b := make([]byte, size)
	b[0], b[1], b[2], b[3] = byte(n), byte(n>>8), byte(n>>16), byte(n>>24)
	for i := range n {
		name := disk.DirHeaderSize + n*disk.DirentSize + i*nameLen
		disk.Dirent{Ino: uint32(first + i*step), NameOff: uint32(name), NameLen: nameLen, Type: uint8(mode >> 12)}.
			Encode(b[disk.DirHeaderSize+i*disk.DirentSize:])
		copy(b[name:], fmt.Sprintf("%0*x", nameLen, i))
	}
	r.b = append(r.b, b...)
	return at, size
}

func (r *raw) bytes() []byte {
	out := make([]byte, r.size)
	copy(out[disk.BlockSize:], r.b)
	r.sb.Encode(out)
	return out
}

// overlapping has a root full of directories that all have the same names for
// one file: size² / 5000 names.
func overlapping(size int) []byte {
	dirs, names := size/2/100, size/2/24
	r := newRaw(size, 2+dirs)
	rootAt, rootSize := r.directory(dirs, 3, 1, disk.TypeDir)
	at, n := r.directory(names, 2, 0, disk.TypeRegular)
	r.inode(disk.Inode{Ino: 1, Mode: disk.TypeDir | 0o755, Nlink: uint32(2 + dirs), DataOffset: rootAt, Size: rootSize})
	r.inode(disk.Inode{Ino: 2, Mode: disk.TypeRegular | 0o644, Nlink: uint32(dirs * names)})
	for i := range dirs {
		r.inode(disk.Inode{Ino: uint32(3 + i), Mode: disk.TypeDir | 0o755, Nlink: 2, DataOffset: at, Size: n})
	}
	return r.bytes()
}

// endless has a root full of files whose attributes are one run as large as
// half of the image: size² / 1500 of them.
func endless(size int) []byte {
	files := size / 2 / 100
	r := newRaw(size, 1+files)
	rootAt, rootSize := r.directory(files, 2, 1, disk.TypeRegular)
	run := uint64(len(r.b))
	for len(r.b)+4 <= cap(r.b) {
		r.b = append(r.b, 0, 2, 0, 0) // an empty ACL
	}
	n := uint64(len(r.b)) - run
	r.sb.XattrOffset, r.sb.XattrSize = run, n
	r.inode(disk.Inode{Ino: 1, Mode: disk.TypeDir | 0o755, Nlink: 2, DataOffset: rootAt, Size: rootSize})
	for i := range files {
		r.inode(disk.Inode{Ino: uint32(2 + i), Mode: disk.TypeRegular | 0o644, Nlink: 1, XattrOffset: run, XattrSize: uint32(n)})
	}
	return r.bytes()
}

// OverlappingFiles returns an image of size bytes with as many files as it can
// hold, each of which is all of the room bytes from the superblock on. Whoever
// wants to know something of all pages has to look at each page, not at each
// file's.
func OverlappingFiles(size int, room uint64) Image {
	n := size / 100
	r := newRaw(size, 1+n)
	r.sb.TotalSize, r.sb.BaseSize = room, room-disk.BlockSize
	rootAt, rootSize := r.directory(n, 2, 1, disk.TypeRegular)
	r.inode(disk.Inode{Ino: 1, Mode: disk.TypeDir | 0o755, Nlink: 2, DataOffset: rootAt, Size: rootSize})
	for i := range n {
		r.inode(disk.Inode{Ino: uint32(2 + i), Mode: disk.TypeRegular | 0o644, Nlink: 1, Size: r.sb.BaseSize})
	}
	return Image{"overlapping-files", r.bytes()}
}
