package main

import (
	"fmt"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// entry is one inode as JSON shows it. Names, targets and values of xattrs are
// escaped (see escape).
type entry struct {
	Path     string      `json:"path"`
	Inode    uint32      `json:"inode"`
	Type     string      `json:"type"`
	Mode     string      `json:"mode"` // permission bits, octal
	UID      uint32      `json:"uid"`
	GID      uint32      `json:"gid"`
	Nlink    uint32      `json:"nlink"`
	Size     uint64      `json:"size"` // of files and symlinks
	Mtime    string      `json:"mtime"`
	Target   string      `json:"target,omitempty"`
	HardLink string      `json:"hard_link_to,omitempty"` // first path of the inode
	Device   string      `json:"device,omitempty"`       // major:minor
	Offset   *int64      `json:"data_offset,omitempty"`  // in the file that holds the image
	Xattrs   []xattrJSON `json:"xattrs,omitempty"`
}

type xattrJSON struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// describe reads all about an item. What could be read comes back with an
// error too.
func (s *source) describe(it item) (*entry, error) {
	in := it.in
	e := &entry{
		Path: escape(it.path), Inode: in.Ino, Type: typeName(in.Mode), Mode: fmt.Sprintf("%04o", in.Mode&0o7777),
		UID: in.UID, GID: in.GID, Nlink: in.Nlink, Mtime: mtime(in.Mtime, in.MtimeNsec),
	}
	if it.first != it.path {
		e.HardLink = escape(it.first)
	}
	var err error
	switch in.Mode & disk.TypeMask {
	case disk.TypeRegular:
		e.Size = in.Size
		if off, ok := s.dataOffset(in); ok {
			e.Offset = &off
		}
	case disk.TypeSymlink:
		e.Size = in.Size
		var target string
		target, err = s.Link(in)
		e.Target = escape(target)
	case disk.TypeChar, disk.TypeBlock:
		e.Device = device(in.Rdev)
	}
	xs, xerr := s.Xattrs(in)
	for _, x := range xs {
		e.Xattrs = append(e.Xattrs, xattrJSON{escape(x.Name), escape(x.Value)})
	}
	if err == nil {
		err = xerr
	}
	return e, err
}

// dataOffset is where a file's bytes are in the file that holds the image.
func (s *source) dataOffset(in *disk.Inode) (int64, bool) {
	if in.Mode&disk.TypeMask != disk.TypeRegular || in.Size == 0 {
		return 0, false
	}
	return s.origin + int64(s.Superblock().BaseOffset+in.DataOffset), true
}

func device(rdev uint32) string {
	major, minor := disk.DecodeDev(rdev)
	return fmt.Sprintf("%d:%d", major, minor)
}

func typeName(mode uint32) string {
	switch mode & disk.TypeMask {
	case disk.TypeRegular:
		return "file"
	case disk.TypeDir:
		return "directory"
	case disk.TypeSymlink:
		return "symlink"
	case disk.TypeChar:
		return "char"
	case disk.TypeBlock:
		return "block"
	case disk.TypeFIFO:
		return "fifo"
	case disk.TypeSocket:
		return "socket"
	}
	return fmt.Sprintf("%#o", mode&disk.TypeMask)
}

// modeString is the first column of ls -l.
func modeString(mode uint32) string {
	letters := map[uint32]byte{
		disk.TypeRegular: '-', disk.TypeDir: 'd', disk.TypeSymlink: 'l', disk.TypeChar: 'c',
		disk.TypeBlock: 'b', disk.TypeFIFO: 'p', disk.TypeSocket: 's',
	}
	b := []byte("?rwxrwxrwx")
	if l, ok := letters[mode&disk.TypeMask]; ok {
		b[0] = l
	}
	for i := range 9 {
		if mode&(0o400>>i) == 0 {
			b[1+i] = '-'
		}
	}
	for i, special := range []struct {
		bit  uint32
		with string
	}{{0o4000, "Ss"}, {0o2000, "Ss"}, {0o1000, "Tt"}} {
		if mode&special.bit == 0 {
			continue
		}
		at := 3 + 3*i
		b[at] = special.with[0]
		if mode&(0o100>>(3*i)) != 0 {
			b[at] = special.with[1]
		}
	}
	return string(b)
}
