package disk

import "bytes"

// A native directory is `count u32, reserved u32`, then count dirents sorted
// bytewise by name, then the names in the same order without gaps. "." and ".."
// are not stored.
//
//	offset size field
//	     0    4 Ino
//	     4    4 NameOff  from the start of the directory
//	     8    2 NameLen  1..255
//	    10    1 Type     as d_type of readdir(3): Mode>>12 of the inode
//	    11    1 reserved, zero
type Dirent struct {
	Ino     uint32
	NameOff uint32
	NameLen uint16
	Type    uint8
}

// Encode writes d into the first DirentSize bytes of b.
func (d Dirent) Encode(b []byte) {
	b = b[:DirentSize]
	le.PutUint32(b[0:], d.Ino)
	le.PutUint32(b[4:], d.NameOff)
	le.PutUint16(b[8:], d.NameLen)
	b[10] = d.Type
	b[11] = 0
}

// DecodeDirent reads one native dirent.
func DecodeDirent(b []byte) Dirent {
	b = b[:DirentSize]
	return Dirent{Ino: le.Uint32(b), NameOff: le.Uint32(b[4:]), NameLen: le.Uint16(b[8:]), Type: b[10]}
}

// Dir gives access to the bytes of one directory in either dialect.
type Dir struct {
	b     []byte
	v8    bool
	count int
}

// DirBytes returns how many bytes a directory with the given i_size occupies.
// In v8 the size counts 271 bytes a name and the array has a stride of 272
// (FORMAT facts: the public module's own mismatch).
func DirBytes(size uint64, v8 bool) uint64 {
	if v8 {
		return size / DirentV8Count * DirentV8Stride
	}
	return size
}

// OpenDir interprets b, all bytes that a directory occupies, and checks what
// makes the other methods safe to call for every i < Len.
func OpenDir(b []byte, v8 bool) (Dir, error) {
	d := Dir{b: b, v8: v8}
	if v8 {
		if len(b)%DirentV8Stride != 0 {
			return d, Corruptf("directory: %d bytes, not a multiple of %d", len(b), DirentV8Stride)
		}
		d.count = len(b) / DirentV8Stride
		for i := range d.count {
			if n := le.Uint16(b[i*DirentV8Stride+8:]); n > MaxNameLen {
				return d, Corruptf("directory entry %d: name of %d bytes, want at most %d", i, n, MaxNameLen)
			}
		}
		return d, nil
	}
	if len(b) == 0 {
		return d, nil
	}
	if len(b) < DirHeaderSize {
		return d, Corruptf("directory: %d bytes, want at least %d", len(b), DirHeaderSize)
	}
	n := uint64(le.Uint32(b))
	if n > uint64(len(b)-DirHeaderSize)/DirentSize {
		return d, Corruptf("directory: %d entries do not fit into %d bytes", n, len(b))
	}
	d.count = int(n)
	if r := le.Uint32(b[4:]); r != 0 {
		return d, Corruptf("directory: reserved field %#x, want 0", r)
	}
	next := DirHeaderSize + n*DirentSize
	for i := range d.count {
		e := DecodeDirent(b[DirHeaderSize+i*DirentSize:])
		if uint64(e.NameOff) != next {
			return d, Corruptf("directory entry %d: name at %d, want %d", i, e.NameOff, next)
		}
		next += uint64(e.NameLen)
		if next > uint64(len(b)) {
			return d, Corruptf("directory entry %d: name ends at %d, behind the directory's %d bytes", i, next, len(b))
		}
	}
	if next != uint64(len(b)) {
		return d, Corruptf("directory: names end at %d, size is %d", next, len(b))
	}
	return d, nil
}

// Len returns the number of entries.
func (d Dir) Len() int { return d.count }

// Name returns the name of entry i, a slice of the directory's bytes.
func (d Dir) Name(i int) []byte {
	if d.v8 {
		e := d.b[i*DirentV8Stride:]
		return e[16 : 16+int(le.Uint16(e[8:]))]
	}
	e := DecodeDirent(d.b[DirHeaderSize+i*DirentSize:])
	return d.b[e.NameOff : uint64(e.NameOff)+uint64(e.NameLen)]
}

// Names returns all names of a native directory, one after the other. One
// string for all of them saves a reader of whole trees an allocation each.
func (d Dir) Names() string {
	if d.v8 || d.count == 0 {
		return ""
	}
	return string(d.b[DirHeaderSize+d.count*DirentSize:])
}

// Ino returns the inode number of entry i.
func (d Dir) Ino(i int) uint32 {
	if d.v8 {
		return le.Uint32(d.b[i*DirentV8Stride:])
	}
	return le.Uint32(d.b[DirHeaderSize+i*DirentSize:])
}

// Type returns the type bits (S_IFMT) that entry i claims.
func (d Dir) Type(i int) uint32 {
	if d.v8 {
		return le.Uint32(d.b[i*DirentV8Stride+4:]) & TypeMask
	}
	return uint32(d.b[DirHeaderSize+i*DirentSize+10]) << 12
}

// Lookup returns the index of name, or -1: binary search in the native
// dialect, linear in v8, whose entries need no order.
func (d Dir) Lookup(name []byte) int {
	if d.v8 {
		for i := range d.count {
			if bytes.Equal(d.Name(i), name) {
				return i
			}
		}
		return -1
	}
	lo, hi := 0, d.count
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		switch c := bytes.Compare(d.Name(m), name); {
		case c == 0:
			return m
		case c < 0:
			lo = m + 1
		default:
			hi = m
		}
	}
	return -1
}

// EncodeDirentV8 writes one v8 entry, DirentV8Stride bytes.
func EncodeDirentV8(b []byte, ino, mode uint32, name string) {
	b = b[:DirentV8Stride]
	clear(b)
	le.PutUint32(b[0:], ino)
	le.PutUint32(b[4:], mode)
	le.PutUint16(b[8:], uint16(len(name)))
	copy(b[16:], name)
}

// CheckName reports whether name may stand in a directory.
func CheckName(name []byte) error {
	switch {
	case len(name) == 0 || len(name) > MaxNameLen:
		return Corruptf("name of %d bytes, want 1 to %d", len(name), MaxNameLen)
	case bytes.IndexByte(name, '/') >= 0:
		return Corruptf("name %q contains '/'", name)
	case bytes.IndexByte(name, 0) >= 0:
		return Corruptf("name %q contains NUL", name)
	case string(name) == "." || string(name) == "..":
		return Corruptf("name %q is reserved", name)
	}
	return nil
}
