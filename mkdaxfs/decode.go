package mkdaxfs

import (
	"bytes"
	"fmt"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// Tree decodes the whole image into a tree and checks every record on the way:
// names, order, types, link counts, reachability, loops, places of data. origin
// is the region offset of the superblock; the tree's extents are region
// offsets. The extents of a layer index carry their digests.
func (img *Image) Tree(origin int64) (*Tree, error) {
	d, err := newDecoder(img, origin)
	if err != nil {
		return nil, err
	}
	return d.tree()
}

func newDecoder(img *Image, origin int64) (*decoder, error) {
	d := &decoder{img: img, origin: origin, xattrs: make(map[uint64][]disk.Xattr)}
	if img.IsLayer() {
		extents, err := img.Extents()
		if err != nil {
			return nil, err
		}
		d.extents = make(map[uint64]disk.Extent, len(extents))
		for _, e := range extents {
			d.extents[e.Offset] = e
		}
	}
	return d, nil
}

type decoder struct {
	img     *Image
	origin  int64
	nodes   []*Node  // by ino-1, nil until a name was found
	links   []uint32 // names found, by ino-1; directories: 2 and their subdirectories
	slab    []Node
	xattrs  map[uint64][]disk.Xattr // by XattrOffset
	extents map[uint64]disk.Extent  // layer index: by address
	used    map[uint64]struct{}     // layer index: extents that a file uses
}

type pendingDir struct {
	node *Node
	in   disk.Inode
}

func (d *decoder) tree() (*Tree, error) {
	count := d.img.sb.InodeCount
	d.nodes = make([]*Node, count)
	d.links = make([]uint32, count)
	d.used = make(map[uint64]struct{}, len(d.extents))
	in, err := d.img.Inode(disk.RootIno)
	if err != nil {
		return nil, err
	}
	if in.Mode&disk.TypeMask != disk.TypeDir {
		return nil, disk.Corruptf("inode %d: the root has mode %#o, want a directory", in.Ino, in.Mode)
	}
	root, err := d.node(&in)
	if err != nil {
		return nil, err
	}
	d.nodes[0], d.links[0] = root, 2
	queue := []pendingDir{{root, in}}
	for len(queue) > 0 {
		p := queue[0]
		queue = queue[1:]
		sub, err := d.children(p.node, &p.in)
		if err != nil {
			return nil, err
		}
		queue = append(queue, sub...)
	}
	for i, n := range d.nodes {
		ino := uint32(i + 1)
		if n == nil {
			return nil, disk.Corruptf("inode %d: no name leads to it", ino)
		}
		in, err := d.img.Inode(ino)
		if err != nil {
			return nil, err
		}
		if in.Nlink != d.links[i] {
			return nil, disk.Corruptf("inode %d: link count %d, found %d", ino, in.Nlink, d.links[i])
		}
	}
	if len(d.used) != len(d.extents) {
		return nil, disk.Corruptf("extent table has %d rows, files use %d", len(d.extents), len(d.used))
	}
	return &Tree{Root: root}, nil
}

func (d *decoder) children(dir *Node, in *disk.Inode) ([]pendingDir, error) {
	list, err := d.img.Dir(in)
	if err != nil {
		return nil, err
	}
	var sub []pendingDir
	var seen map[string]struct{} // v8: entries need no order
	native := d.img.sb.Native()
	if !native {
		seen = make(map[string]struct{}, list.Len())
	}
	dir.Children = make([]Child, list.Len())
	var last []byte
	names := list.Names()
	for i := range list.Len() {
		name := list.Name(i)
		if err := disk.CheckName(name); err != nil {
			return nil, fmt.Errorf("directory %d, entry %d: %w", in.Ino, i, err)
		}
		if native {
			if i > 0 && bytes.Compare(last, name) >= 0 {
				return nil, disk.Corruptf("directory %d: %q stands before %q", in.Ino, last, name)
			}
			last = name
		} else if _, ok := seen[string(name)]; ok {
			return nil, disk.Corruptf("directory %d: %q stands twice", in.Ino, name)
		} else {
			seen[string(name)] = struct{}{}
		}
		ino := list.Ino(i)
		cin, err := d.img.Inode(ino)
		if err != nil {
			return nil, fmt.Errorf("directory %d, %q: %w", in.Ino, name, err)
		}
		if t := list.Type(i); t != cin.Mode&disk.TypeMask {
			return nil, disk.Corruptf("directory %d, %q: entry has type %#o, inode %d %#o", in.Ino, name, t, ino, cin.Mode)
		}
		child := d.nodes[ino-1]
		if child == nil {
			if child, err = d.node(&cin); err != nil {
				return nil, fmt.Errorf("directory %d, %q: %w", in.Ino, name, err)
			}
			d.nodes[ino-1] = child
			if child.IsDir() {
				d.links[ino-1] = 2
				sub = append(sub, pendingDir{child, cin})
			}
		} else if child.IsDir() {
			return nil, disk.Corruptf("directory %d, %q: directory %d has a second name or contains itself", in.Ino, name, ino)
		}
		if child.IsDir() {
			d.links[in.Ino-1]++
		} else {
			d.links[ino-1]++
		}
		if native {
			dir.Children[i] = Child{names[:len(name)], child}
			names = names[len(name):]
		} else {
			dir.Children[i] = Child{string(name), child}
		}
	}
	if !native {
		t := Tree{Root: dir}
		t.Sort()
	}
	return sub, nil
}

func (d *decoder) node(in *disk.Inode) (*Node, error) {
	if len(d.slab) == 0 {
		d.slab = make([]Node, 256)
	}
	n := &d.slab[0]
	d.slab = d.slab[1:]
	*n = Node{Mode: in.Mode, UID: in.UID, GID: in.GID, Rdev: in.Rdev, Mtime: in.Mtime, MtimeNsec: in.MtimeNsec}
	var err error
	if in.XattrSize > 0 {
		xs, ok := d.xattrs[in.XattrOffset]
		if !ok || uint64(in.XattrSize) != runSize(xs) {
			if xs, err = d.img.Xattrs(in); err != nil {
				return nil, err
			}
			d.xattrs[in.XattrOffset] = xs
		}
		n.Xattrs = xs
	}
	switch {
	case n.IsSymlink():
		n.Link, err = d.img.Link(in)
	case n.IsRegular():
		err = d.file(n, in)
	}
	return n, err
}

func runSize(xs []disk.Xattr) uint64 {
	var n int
	for _, x := range xs {
		_, suffix, _ := disk.SplitXattr(x.Name)
		n += disk.AlignUp(4+len(suffix)+len(x.Value), 4)
	}
	return uint64(n)
}

func (d *decoder) file(n *Node, in *disk.Inode) error {
	if in.Size > 1<<62 {
		return disk.Corruptf("inode %d: file of %d bytes, want at most %d", in.Ino, in.Size, uint64(1)<<62)
	}
	n.Size = int64(in.Size)
	if in.Size == 0 {
		if in.DataOffset != 0 {
			return disk.Corruptf("inode %d: empty file with data at %d", in.Ino, in.DataOffset)
		}
		return nil
	}
	addr, err := d.img.dataRange(in)
	if err != nil {
		return err
	}
	n.Extent.Offset = d.origin + int64(addr)
	if d.extents == nil {
		return nil
	}
	e, ok := d.extents[addr]
	if !ok || e.Size != in.Size {
		return disk.Corruptf("inode %d: data [%d,+%d) is not in the extent table", in.Ino, addr, in.Size)
	}
	d.used[addr] = struct{}{}
	n.Extent.Digest = e.Digest
	return nil
}
