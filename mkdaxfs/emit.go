package mkdaxfs

import (
	"github.com/zeebo/blake3"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// Place says where in a region an image goes.
type Place struct {
	// Super is the region offset of the superblock's block, below all data.
	Super int64
	// Meta is the region offset of the metadata, a multiple of
	// disk.BlockSize: right behind the superblock in a pool, behind the data
	// in a native image file.
	Meta int64
	// End is the end of what the image may use: of the file, or of the pool's
	// region.
	End int64
}

// Emit returns the superblock's block (disk.BlockSize bytes) and the metadata
// (MetaSize bytes) for the given place. Every extent of the tree must lie
// inside [at.Super, at.End).
func (l *Layout) Emit(at Place) (super, meta []byte, err error) {
	metaAddr := uint64(at.Meta - at.Super)
	dataAddr := func(n *Node) uint64 { return uint64(n.Extent.Offset - at.Super) }
	for i, n := range l.nodes {
		if !n.IsRegular() || n.Size == 0 {
			continue
		}
		if n.Extent.Offset < at.Super+disk.BlockSize || !disk.Inside(dataAddr(n), uint64(n.Size), uint64(at.End-at.Super)) {
			// The caller's allocator broke its promise: never write such an image.
			return nil, nil, disk.Corruptf("emit image: inode %d has data [%d,+%d) outside region [%d,%d)",
				i+1, n.Extent.Offset, n.Size, at.Super+disk.BlockSize, at.End)
		}
	}
	meta = make([]byte, l.metaSize)
	copy(meta, l.xattrs.bytes)
	rel := metaAddr - disk.BlockSize // of metadata offset 0, relative to base
	lowest := uint64(at.End - at.Super - disk.BlockSize)
	var dataSize uint64
	for i, n := range l.nodes {
		in := disk.Inode{
			Ino: n.ino, Mode: n.Mode, UID: n.UID, GID: n.GID, Nlink: l.nlink[i],
			Rdev: n.Rdev, Mtime: n.Mtime, MtimeNsec: n.MtimeNsec,
		}
		if run := l.xattrs.of[i]; run.size > 0 {
			in.XattrSize, in.XattrOffset = run.size, rel+run.off
		}
		switch {
		case n.IsRegular():
			if in.Size = uint64(n.Size); n.Size > 0 {
				in.DataOffset = dataAddr(n) - disk.BlockSize
				lowest = min(lowest, in.DataOffset)
				dataSize += in.Size
			}
		case n.IsDir():
			if in.Size = l.dirSize(n); in.Size > 0 {
				in.DataOffset = rel + l.dirOff[i]
				l.emitDir(n, meta[l.dirOff[i]:])
				if l.opts.V8 {
					in.Size = uint64(len(n.Children)) * disk.DirentV8Count
				}
			}
		case n.IsSymlink():
			off := l.dirOff[i]
			if l.opts.erofs() {
				off = l.erofs.linkOff(l, i) // written by the EROFS view
			} else {
				copy(meta[off:], n.Link)
			}
			in.Size, in.DataOffset = uint64(len(n.Link)), rel+off
		}
		in.Encode(meta[l.inodeOff+uint64(i)*disk.InodeSize:])
	}
	for i := range l.extents {
		e := l.extents[i]
		e.Offset -= uint64(at.Super) + disk.BlockSize
		e.Encode(meta[l.extentOff+uint64(i)*disk.ExtentSize:])
	}
	for i, d := range l.opts.Layers {
		copy(meta[l.layerOff+uint64(i)*disk.LayerRefSize:], d[:])
	}
	if l.opts.erofs() {
		if err := l.erofs.emit(l, meta, metaAddr, dataAddr); err != nil {
			return nil, nil, err
		}
	}

	super = make([]byte, disk.BlockSize)
	sb := disk.Superblock{
		Version:     disk.VersionNative,
		BlockSize:   disk.BlockSize,
		TotalSize:   uint64(at.End - at.Super),
		BaseOffset:  disk.BlockSize,
		BaseSize:    uint64(at.End-at.Super) - disk.BlockSize,
		InodeOffset: rel + l.inodeOff,
		InodeCount:  uint32(len(l.nodes)),
		RootIno:     disk.RootIno,
		DataOffset:  lowest,
		MetaOffset:  rel,
		MetaSize:    l.metaSize,
		Entries:     l.entries,
		DataSize:    dataSize,
		MetaDigest:  blake3.Sum256(meta),
	}
	copy(sb.UUID[:], sb.MetaDigest[:])
	sb.UUID[6] = sb.UUID[6]&0x0f | 0x80 // RFC 9562 version 8: custom
	sb.UUID[8] = sb.UUID[8]&0x3f | 0x80
	if n := len(l.xattrs.bytes); n > 0 {
		sb.XattrOffset, sb.XattrSize = rel, uint64(n)
	}
	if l.opts.V8 {
		sb.Version = disk.VersionV8
	}
	if l.opts.Layer {
		sb.Incompat |= disk.IncompatLayer
		if len(l.extents) > 0 {
			sb.ExtentOffset, sb.ExtentCount = rel+l.extentOff, uint64(len(l.extents))
		}
	}
	if len(l.opts.Layers) > 0 {
		sb.Compat |= disk.CompatPool
		sb.LayerOffset, sb.LayerCount = rel+l.layerOff, uint64(len(l.opts.Layers))
	}
	if l.opts.erofs() {
		sb.Compat |= disk.CompatErofs
		es := disk.ErofsSuper{
			RootNid:     uint16(l.erofs.nid(0)),
			Inodes:      uint64(len(l.nodes)),
			Blocks:      uint32(min(sb.TotalSize/disk.BlockSize, disk.ErofsMaxBlocks)),
			MetaBlkaddr: uint32((metaAddr + l.erofs.metaOff) / disk.BlockSize),
			UUID:        sb.UUID,
		}
		if sb.XattrSize > 0 {
			es.XattrBlkaddr = uint32(metaAddr / disk.BlockSize)
		}
		es.Encode(super)
	}
	sb.Encode(super)
	return super, meta, nil
}

func (l *Layout) emitDir(n *Node, b []byte) {
	if l.opts.V8 {
		for i, c := range n.Children {
			disk.EncodeDirentV8(b[i*disk.DirentV8Stride:], c.Node.ino, c.Node.Mode, c.Name)
		}
		return
	}
	b[0], b[1], b[2], b[3] = byte(len(n.Children)), byte(len(n.Children)>>8), byte(len(n.Children)>>16), byte(len(n.Children)>>24)
	off := disk.DirHeaderSize + disk.DirentSize*len(n.Children)
	for i, c := range n.Children {
		d := disk.Dirent{Ino: c.Node.ino, NameOff: uint32(off), NameLen: uint16(len(c.Name)), Type: uint8(c.Node.Mode >> 12)}
		d.Encode(b[disk.DirHeaderSize+i*disk.DirentSize:])
		off += copy(b[off:], c.Name)
	}
}

// LayerKey is the identity of a layer index: BLAKE3-256 of its metadata as it
// would be with every extent at the place of its row in the extent table, so
// that it depends on the layer's content and not on where the pool put it.
func (l *Layout) LayerKey() ([32]byte, error) {
	place := make(map[[32]byte]int64, len(l.extents))
	for i, e := range l.extents {
		place[e.Digest] = int64(i+1) * disk.BlockSize
	}
	saved := make([]int64, len(l.nodes))
	defer func() {
		for i, n := range l.nodes {
			n.Extent.Offset = saved[i]
		}
	}()
	extents := l.extents
	l.extents = append([]disk.Extent(nil), extents...)
	defer func() { l.extents = extents }()
	for i := range l.extents {
		l.extents[i].Offset = uint64(i+1) * disk.BlockSize
	}
	for i, n := range l.nodes {
		saved[i] = n.Extent.Offset
		if n.IsRegular() && n.Size > 0 {
			n.Extent.Offset = place[n.Extent.Digest]
		}
	}
	_, meta, err := l.Emit(Place{Super: 0, Meta: disk.BlockSize, End: 1 << 62})
	if err != nil {
		return [32]byte{}, err
	}
	return blake3.Sum256(meta), nil
}
