package mutate

import (
	"bytes"
	"fmt"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// field is a number in an image.
type field struct {
	name  string
	at    int
	width int // bytes: 1, 2, 4, 8
}

// span is a run of bytes in an image.
type span struct {
	name     string
	at, size int
}

// inode is what changes that need sense want to know of an inode.
type inode struct {
	disk.Inode
	at      int   // of the record
	entries []int // directories: of the records of its names
	names   []span
}

// records tells where everything lies in a sound image.
type records struct {
	native bool
	super  []field
	inodes []inode
	// directories are the indexes of the inodes that have names.
	directories []int
	// fields are those of inodes, directories and attributes, by kind: swapping
	// two of a kind makes sense.
	fields map[string][]field
	kinds  []string // of fields, in a fixed order
	areas  []span
}

var superFields = []field{
	{"magic", 0, 4}, {"version", 4, 4}, {"block_size", 8, 4}, {"reserved", 12, 4},
	{"total_size", 16, 8}, {"base_offset", 24, 8}, {"base_size", 32, 8}, {"inode_offset", 40, 8},
	{"inode_count", 48, 4}, {"root_ino", 52, 4}, {"data_offset", 56, 8},
	{"overlay_offset", 64, 8}, {"overlay_size", 72, 8}, {"pcache_offset", 88, 8}, {"pcache_size", 96, 8},
}

var superNativeFields = []field{
	{"incompat", 120, 8}, {"ro_compat", 128, 8}, {"compat", 136, 8},
	{"meta_offset", 160, 8}, {"meta_size", 168, 8}, {"xattr_offset", 176, 8}, {"xattr_size", 184, 8},
	{"extent_offset", 192, 8}, {"extent_count", 200, 8}, {"layer_offset", 208, 8}, {"layer_count", 216, 8},
	{"entries", 256, 8}, {"data_size", 264, 8},
}

var inodeFields = []field{
	{"ino", 0, 4}, {"mode", 4, 4}, {"uid", 8, 4}, {"gid", 12, 4}, {"size", 16, 8}, {"data_offset", 24, 8},
	{"nlink", 32, 4}, {"rdev", 36, 4}, {"mtime", 40, 8}, {"mtime_nsec", 48, 4}, {"xattr_size", 52, 4}, {"xattr_offset", 56, 8},
}

var direntFields = []field{{"ino", 0, 4}, {"name_offset", 4, 4}, {"name_len", 8, 2}, {"type", 10, 1}}

var direntV8Fields = []field{{"ino", 0, 4}, {"mode", 4, 4}, {"name_len", 8, 2}}

var xattrFields = []field{{"name_len", 0, 1}, {"name_index", 1, 1}, {"value_size", 2, 2}}

func findRecords(image []byte) (*records, error) {
	img, err := mkdaxfs.Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		return nil, err
	}
	sb := img.Superblock()
	base := int(sb.BaseOffset)
	r := &records{native: sb.Native(), super: superFields, fields: make(map[string][]field)}
	add := func(record string, at int, fs []field) {
		for _, f := range fs {
			kind := record + "." + f.name
			if r.fields[kind] == nil {
				r.kinds = append(r.kinds, kind)
			}
			r.fields[kind] = append(r.fields[kind], field{fmt.Sprintf("%s at %d", kind, at), at + f.at, f.width})
		}
	}
	inodes := base + int(sb.InodeOffset)
	r.areas = []span{
		{"superblock", 0, 272},
		{"inode table", inodes, int(sb.InodeCount) * disk.InodeSize},
		{"image", 0, len(image)},
	}
	if r.native {
		r.super = append(r.super[:len(r.super):len(r.super)], superNativeFields...)
		r.areas = append(r.areas, span{"metadata", base + int(sb.MetaOffset), int(sb.MetaSize)})
	}
	runs := make(map[uint64]bool)
	for i := range sb.InodeCount {
		in, err := img.Inode(i + 1)
		if err != nil {
			return nil, err
		}
		n := inode{Inode: in, at: inodes + int(i)*disk.InodeSize}
		add("inode", n.at, inodeFields)
		data := base + int(in.DataOffset)
		switch in.Mode & disk.TypeMask {
		case disk.TypeSymlink:
			r.areas = append(r.areas, span{"link target", data, int(in.Size) + 1})
		case disk.TypeDir:
			d, err := img.Dir(&in)
			if err != nil {
				return nil, err
			}
			if d.Len() == 0 {
				break
			}
			r.directories = append(r.directories, int(i))
			size := int(disk.DirBytes(in.Size, !r.native))
			r.areas = append(r.areas, span{"directory", data, size})
			if r.native {
				add("directory", data, []field{{"count", 0, 4}})
			}
			for j := range d.Len() {
				n.addName(image, data, j, r.native)
				if r.native {
					add("dirent", n.entries[j], direntFields)
				} else {
					add("dirent", n.entries[j], direntV8Fields)
				}
			}
		}
		r.inodes = append(r.inodes, n)
		if in.XattrSize > 0 && !runs[in.XattrOffset] {
			runs[in.XattrOffset] = true
			at := base + int(in.XattrOffset)
			r.areas = append(r.areas, span{"attributes", at, int(in.XattrSize)})
			for end := at + int(in.XattrSize); at < end; {
				add("attribute", at, xattrFields)
				at += disk.AlignUp(4+int(image[at])+int(image[at+2])+int(image[at+3])<<8, 4)
			}
		}
	}
	return r, nil
}

// addName notes name i of the directory at data.
func (n *inode) addName(image []byte, data, i int, native bool) {
	if !native {
		at := data + i*disk.DirentV8Stride
		n.entries = append(n.entries, at)
		n.names = append(n.names, span{"name", at + 16, int(image[at+8])})
		return
	}
	at := data + disk.DirHeaderSize + i*disk.DirentSize
	d := disk.DecodeDirent(image[at:])
	n.entries = append(n.entries, at)
	n.names = append(n.names, span{"name", data + int(d.NameOff), int(d.NameLen)})
}

// direntSize is the size of a directory's record of one name.
func (r *records) direntSize() int {
	if r.native {
		return disk.DirentSize
	}
	return disk.DirentV8Stride
}
