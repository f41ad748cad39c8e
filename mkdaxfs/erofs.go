package mkdaxfs

import (
	"fmt"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// The EROFS view is written here and not with go-erofs because it has to point
// at data of the same device at addresses that are already fixed, share data,
// xattrs and symlink targets with the DAXFS view, and put its superblock into
// DAXFS's first block; go-erofs's writer owns the whole file, copies data
// behind the metadata or points to a second device. go-erofs reads the result
// in the tests. See docs/design/0002-erofs-view.md.

// erofsLayout places the EROFS inodes and directory blocks. Offsets are
// relative to the start of the metadata.
type erofsLayout struct {
	metaOff uint64       // inode area, a multiple of the block size: meta_blkaddr
	inode   []uint64     // by ino-1: offset of the inode in the inode area
	data    []erofsPlace // by ino-1: directories and symlinks
	block   []erofsEntry // of emitDir
}

type erofsEntry struct {
	name string
	nid  uint64
	typ  uint8
}

// erofsPlace says where a directory's or symlink's bytes are.
type erofsPlace struct {
	size     uint64 // i_size
	inline   uint32 // bytes of the tail behind the inode; 0 if flat-plain
	blockOff uint64 // offset in the metadata of the full blocks; 0 if there are none
}

// firstSlot keeps nid 0, and with it inode number 0, unused: some programs
// take d_ino 0 for a deleted entry.
const firstSlot = 2 * disk.ErofsSlotSize

// erofsGaps is how many partly filled blocks are kept open for small inodes.
const erofsGaps = 16

func (e *erofsLayout) place(l *Layout, pos uint64) uint64 {
	e.metaOff = pos
	e.inode = make([]uint64, len(l.nodes))
	e.data = make([]erofsPlace, len(l.nodes))
	type gap struct{ off, end uint64 }
	var gaps []gap
	next := gap{firstSlot, disk.BlockSize} // the block being filled
	alloc := func(n uint64) uint64 {
		n = disk.AlignUp(n, uint64(disk.ErofsSlotSize))
		for i := range gaps {
			if g := &gaps[i]; g.end-g.off >= n {
				off := g.off
				g.off += n
				return off
			}
		}
		if next.end-next.off < n {
			if next.end-next.off >= disk.ErofsInodeSize {
				if len(gaps) == erofsGaps {
					gaps = append(gaps[:0], gaps[1:]...)
				}
				gaps = append(gaps, next)
			}
			next = gap{next.end, next.end + disk.BlockSize}
		}
		off := next.off
		next.off += n
		return off
	}
	for i, n := range l.nodes {
		head := erofsHead(len(l.xattrs.of[i].ids))
		p := &e.data[i]
		switch {
		case n.IsDir():
			p.size = erofsDirSize(n)
		case n.IsSymlink():
			p.size = uint64(len(n.Link))
		}
		if tail := p.size % disk.BlockSize; tail != 0 {
			// A symlink's NUL is for the DAXFS view of the same bytes.
			room := tail
			if n.IsSymlink() {
				room++
			}
			if head+room <= disk.BlockSize {
				p.inline = uint32(tail)
				e.inode[i] = alloc(head + room)
				continue
			}
		}
		e.inode[i] = alloc(head)
	}
	pos += next.end
	for i := range e.data {
		p := &e.data[i]
		if full := p.size - uint64(p.inline); full > 0 {
			p.blockOff = pos
			pos += disk.AlignUp(full, disk.BlockSize)
		}
	}
	return pos
}

// erofsHead is the size of an inode with n shared xattrs.
func erofsHead(n int) uint64 {
	if n == 0 {
		return disk.ErofsInodeSize
	}
	return disk.ErofsInodeSize + disk.ErofsXattrHeader + 4*uint64(n)
}

// erofsNames calls fn for each name of a directory in EROFS's order: "." and
// ".." are entries like others, sorted among the rest. child is -1 and -2 for
// them.
func erofsNames(n *Node, fn func(name string, child int)) {
	dots := [...]string{".", ".."}
	d := 0
	for i, c := range n.Children {
		for d < 2 && dots[d] < c.Name {
			fn(dots[d], -1-d)
			d++
		}
		fn(c.Name, i)
	}
	for ; d < 2; d++ {
		fn(dots[d], -1-d)
	}
}

// erofsDirSize is the i_size of a directory: full blocks, then what the last
// one uses.
func erofsDirSize(n *Node) uint64 {
	var size, used uint64
	erofsNames(n, func(name string, _ int) {
		need := uint64(disk.ErofsDirentSize + len(name))
		if used+need > disk.BlockSize {
			size += disk.BlockSize
			used = 0
		}
		used += need
	})
	return size + used
}

// linkOff is the offset in the metadata of a symlink's bytes.
func (e *erofsLayout) linkOff(l *Layout, i int) uint64 {
	if e.data[i].inline > 0 {
		return e.metaOff + e.inode[i] + erofsHead(len(l.xattrs.of[i].ids))
	}
	return e.data[i].blockOff
}

func (e *erofsLayout) nid(i int) uint64 { return e.inode[i] / disk.ErofsSlotSize }

// emit writes the view into meta, which lies at address metaAddr of the image.
func (e *erofsLayout) emit(l *Layout, meta []byte, metaAddr uint64, dataAddr func(*Node) uint64) error {
	for i, n := range l.nodes {
		in := disk.ErofsInode{
			Mode: uint16(n.Mode), Ino: n.ino, UID: n.UID, GID: n.GID,
			Mtime: n.Mtime, MtimeNsec: n.MtimeNsec, Nlink: l.nlink[i], U: n.Rdev,
		}
		ids := l.xattrs.of[i].ids
		if len(ids) > 0 {
			in.XattrIcount = uint16(1 + len(ids))
		}
		b := meta[e.metaOff+e.inode[i]:]
		p := e.data[i]
		if n.IsRegular() {
			in.Size = uint64(n.Size)
			if n.Size > 0 {
				first := dataAddr(n) / disk.BlockSize
				if last := first + (uint64(n.Size)-1)/disk.BlockSize; last > disk.ErofsMaxBlocks {
					return fmt.Errorf("file data ends at block %d of the image, the EROFS view reaches %d: %w", last, uint64(disk.ErofsMaxBlocks), ErrInvalidTree)
				}
				in.U = uint32(first)
			}
		} else if p.size > 0 {
			in.Size = p.size
			if p.inline > 0 {
				in.Layout = disk.ErofsFlatInline
			}
			if p.blockOff > 0 {
				in.U = uint32((metaAddr + p.blockOff) / disk.BlockSize)
			}
		}
		in.Encode(b)
		if len(ids) > 0 {
			disk.PutErofsXattrHeader(b[disk.ErofsInodeSize:], ids)
		}
		switch {
		case n.IsDir():
			tail := b[erofsHead(len(ids)):]
			blocks := p.size - uint64(p.inline)
			e.emitDir(l, i, func(block uint64) []byte {
				if block*disk.BlockSize >= blocks {
					return tail
				}
				return meta[p.blockOff+block*disk.BlockSize:]
			})
		case n.IsSymlink():
			copy(meta[e.linkOff(l, i):], n.Link)
		}
	}
	return nil
}

// emitDir writes the blocks of directory i; at returns where a block begins.
func (e *erofsLayout) emitDir(l *Layout, i int, at func(block uint64) []byte) {
	dir := l.nodes[i]
	block := e.block[:0]
	used, number := 0, uint64(0)
	flush := func() {
		b := at(number)
		off := disk.ErofsDirentSize * len(block)
		for j, en := range block {
			disk.PutErofsDirent(b[disk.ErofsDirentSize*j:], en.nid, uint16(off), en.typ)
			off += copy(b[off:], en.name)
		}
		block, used = block[:0], 0
		number++
	}
	erofsNames(dir, func(name string, child int) {
		en := erofsEntry{name: name}
		switch child {
		case -1:
			en.nid, en.typ = e.nid(i), disk.ErofsFileType(disk.TypeDir)
		case -2:
			en.nid, en.typ = e.nid(int(l.parent[i])-1), disk.ErofsFileType(disk.TypeDir)
		default:
			c := dir.Children[child].Node
			en.nid, en.typ = e.nid(int(c.ino)-1), disk.ErofsFileType(c.Mode)
		}
		if used+disk.ErofsDirentSize+len(name) > disk.BlockSize {
			flush()
		}
		used += disk.ErofsDirentSize + len(name)
		block = append(block, en)
	})
	flush()
	e.block = block
}
