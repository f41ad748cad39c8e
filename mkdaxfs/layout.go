package mkdaxfs

import (
	"fmt"
	"sort"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// Options says what kind of image a tree becomes.
type Options struct {
	V8      bool // dialect of the public module; no EROFS view
	NoErofs bool // native, without the EROFS view
	Layer   bool // a layer index: with an extent table, without EROFS view, not mountable
	// Layers are the keys of the layer indexes whose extents a pool image
	// draws on, lowest first. Nil for a self-contained image.
	Layers [][32]byte
}

func (o Options) erofs() bool { return !o.V8 && !o.NoErofs && !o.Layer }

// Layout is the place of every record of a tree, relative to the start of the
// metadata. It depends on the tree alone, so the same tree has the same bytes
// everywhere. It is valid until the tree is changed or laid out again.
type Layout struct {
	opts    Options
	nodes   []*Node // by ino-1
	nlink   []uint32
	parent  []uint32 // directories: ino of the parent
	entries uint64

	dirOff  []uint64 // directories and, without EROFS view, symlinks: offset in the metadata
	xattrs  xattrArea
	extents []disk.Extent // layer index: distinct, sorted by digest; Offset is an address in the region

	inodeOff, extentOff, layerOff, metaSize uint64

	erofs erofsLayout
}

// NewLayout numbers the inodes of t and places its records. Directories are
// visited breadth first and children in order of names, so the inodes of one
// directory lie together.
func NewLayout(t *Tree, opts Options) (*Layout, error) {
	l := &Layout{opts: opts}
	if err := l.number(t); err != nil {
		return nil, err
	}
	if err := l.place(); err != nil {
		return nil, err
	}
	return l, nil
}

// MetaSize is how many bytes Emit returns behind the superblock block: a
// multiple of disk.BlockSize.
func (l *Layout) MetaSize() int64 { return int64(l.metaSize) }

// Inodes is the number of inodes.
func (l *Layout) Inodes() int { return len(l.nodes) }

// Entries is the number of names in all directories.
func (l *Layout) Entries() uint64 { return l.entries }

func (l *Layout) number(t *Tree) error {
	root := t.Root
	if root == nil || !root.IsDir() {
		return fmt.Errorf("root is not a directory: %w", ErrInvalidTree)
	}
	add := func(name string, n *Node) error {
		if err := n.check(name); err != nil {
			return err
		}
		if !l.opts.Layer {
			if err := n.checkFinal(name); err != nil {
				return err
			}
		}
		if len(l.nodes) == 1<<32-1 {
			return fmt.Errorf("more than %d inodes: %w", uint32(1<<32-1), ErrInvalidTree)
		}
		l.nodes = append(l.nodes, n)
		l.nlink = append(l.nlink, 0)
		l.parent = append(l.parent, 0)
		n.ino = uint32(len(l.nodes))
		return nil
	}
	// A node may carry the number of an earlier layout. It is numbered in this
	// one exactly if the table holds it under its number.
	numbered := func(n *Node) bool {
		return n.ino != 0 && int(n.ino) <= len(l.nodes) && l.nodes[n.ino-1] == n
	}
	if err := add("/", root); err != nil {
		return err
	}
	l.nlink[0], l.parent[0] = 2, disk.RootIno
	for head := 0; head < len(l.nodes); head++ {
		dir := l.nodes[head]
		for i, c := range dir.Children {
			if len(c.Name) == 0 || len(c.Name) > disk.MaxNameLen {
				return fmt.Errorf("%.64q: name of %d bytes, want 1 to %d: %w", c.Name, len(c.Name), disk.MaxNameLen, ErrInvalidTree)
			}
			if err := disk.CheckName([]byte(c.Name)); err != nil {
				return fmt.Errorf("%q is not a file name: %w", c.Name, ErrInvalidTree)
			}
			if i > 0 && dir.Children[i-1].Name >= c.Name {
				return fmt.Errorf("%q: duplicate or unsorted name: %w", c.Name, ErrInvalidTree)
			}
			known := numbered(c.Node)
			if !known {
				if err := add(c.Name, c.Node); err != nil {
					return err
				}
			}
			ino := c.Node.ino
			l.entries++
			if !c.Node.IsDir() {
				l.nlink[ino-1]++
				continue
			}
			if known {
				return fmt.Errorf("%q: directory has two names: %w", c.Name, ErrInvalidTree)
			}
			l.nlink[ino-1] = 2
			l.nlink[head]++
			l.parent[ino-1] = uint32(head + 1)
		}
	}
	return nil
}

// place decides the order of the areas: xattrs (first, since the EROFS view
// wants them at a block), inode table, directories and symlinks, extent table,
// layer list, EROFS view.
func (l *Layout) place() error {
	l.xattrs.build(l.nodes)
	if len(l.xattrs.bytes) > 1<<32-1 {
		return fmt.Errorf("distinct xattrs need %d bytes, want less than 4 GiB: %w", len(l.xattrs.bytes), ErrInvalidTree)
	}
	if l.opts.Layer {
		if err := l.collectExtents(); err != nil {
			return err
		}
	}
	l.inodeOff = disk.AlignUp(uint64(len(l.xattrs.bytes)), 8)
	pos := l.inodeOff + uint64(len(l.nodes))*disk.InodeSize
	l.dirOff = make([]uint64, len(l.nodes))
	for i, n := range l.nodes {
		var size uint64
		switch {
		case n.IsDir():
			size = l.dirSize(n)
			if size > 1<<32-1 {
				return fmt.Errorf("directory of %d names needs %d bytes, want less than 4 GiB: %w", len(n.Children), size, ErrInvalidTree)
			}
		case n.IsSymlink() && !l.opts.erofs():
			size = uint64(len(n.Link)) + 1
		}
		if size == 0 {
			continue
		}
		l.dirOff[i] = pos
		pos = disk.AlignUp(pos+size, 8)
	}
	l.extentOff = pos
	pos += uint64(len(l.extents)) * disk.ExtentSize
	l.layerOff = pos
	pos += uint64(len(l.opts.Layers)) * disk.LayerRefSize
	pos = disk.AlignUp(pos, disk.BlockSize)
	if l.opts.erofs() {
		pos = l.erofs.place(l, pos)
	}
	l.metaSize = pos
	return nil
}

// dirSize is how many bytes a directory occupies.
func (l *Layout) dirSize(n *Node) uint64 {
	if l.opts.V8 {
		return uint64(len(n.Children)) * disk.DirentV8Stride
	}
	if len(n.Children) == 0 {
		return 0
	}
	size := uint64(disk.DirHeaderSize + disk.DirentSize*len(n.Children))
	for _, c := range n.Children {
		size += uint64(len(c.Name))
	}
	return size
}

// collectExtents makes the extent table: one row for each content.
func (l *Layout) collectExtents() error {
	type place struct{ off, size int64 }
	seen := make(map[[32]byte]place)
	for i, n := range l.nodes {
		if !n.IsRegular() || n.Size == 0 {
			continue
		}
		here := place{n.Extent.Offset, n.Size}
		if p, ok := seen[n.Extent.Digest]; ok {
			if p != here {
				return fmt.Errorf("inode %d: digest %x is at [%d,+%d) and [%d,+%d), want one place: %w",
					i+1, n.Extent.Digest[:8], p.off, p.size, here.off, here.size, ErrInvalidTree)
			}
			continue
		}
		seen[n.Extent.Digest] = here
		l.extents = append(l.extents, disk.Extent{Digest: n.Extent.Digest, Size: uint64(n.Size), Offset: uint64(n.Extent.Offset)})
	}
	sort.Slice(l.extents, func(i, j int) bool {
		return string(l.extents[i].Digest[:]) < string(l.extents[j].Digest[:])
	})
	return nil
}

// xattrArea holds each distinct set of attributes once.
type xattrArea struct {
	bytes []byte
	runs  map[string]xattrRun // by encoded set
	of    []xattrRun          // by ino-1
	last  []disk.Xattr        // the set encoded last, with its run: most files of an image share one
	run   xattrRun
}

type xattrRun struct {
	off  uint64
	size uint32
	ids  []uint32 // entries, in units of 4 bytes from the start of the area
}

func (a *xattrArea) build(nodes []*Node) {
	a.of = make([]xattrRun, len(nodes))
	a.runs = make(map[string]xattrRun)
	for i, n := range nodes {
		if len(n.Xattrs) == 0 {
			continue
		}
		if len(a.last) == len(n.Xattrs) && &a.last[0] == &n.Xattrs[0] {
			a.of[i] = a.run
			continue
		}
		var b []byte
		var ids []uint32
		for _, x := range n.Xattrs {
			ids = append(ids, uint32(len(b)/4))
			b = disk.AppendXattr(b, x)
		}
		run, ok := a.runs[string(b)]
		if !ok {
			run = xattrRun{off: uint64(len(a.bytes)), size: uint32(len(b)), ids: ids}
			for j := range ids {
				ids[j] += uint32(run.off / 4)
			}
			a.runs[string(b)] = run
			a.bytes = append(a.bytes, b...)
		}
		a.of[i], a.last, a.run = run, n.Xattrs, run
	}
}
