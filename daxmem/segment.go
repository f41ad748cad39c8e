package daxmem

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// row is one row of a layer's extent table, with the offset in the region.
type row struct {
	digest    [32]byte
	off, size int64
}

func (r row) space() int64 { return disk.AlignUp(r.size, blockSize) }

// segment is what the pool needs to know of a segment's bytes.
type segment struct {
	rows   []row      // of a layer, by digest
	layers [][32]byte // of an image, in its order; none: it is self-contained
	copies int64      // bytes behind a self-contained image's segment: its files
}

// spans are the space of a segment at off with size bytes: its own, and that of
// its copies.
func (s *segment) spans(off, size int64) []span {
	out := []span{{off, disk.AlignUp(size, blockSize)}}
	if s.copies > 0 {
		out = append(out, span{off + out[0].size, s.copies})
	}
	return out
}

// parseSegment judges the bytes b of a segment at off in a region of regionSize
// bytes, as far as the pool depends on them. Inodes and names are not looked at:
// that is the image checker's work.
func parseSegment(b []byte, off, regionSize int64, kind Kind) (*segment, error) {
	sb, err := disk.DecodeSuperblock(b)
	if err != nil {
		return nil, err
	}
	if err := sb.Check(uint64(regionSize-off), blockSize); err != nil {
		return nil, err
	}
	if !sb.Native() {
		return nil, disk.Corruptf("segment: version %d, want the native dialect", sb.Version)
	}
	if layer := sb.Incompat&disk.IncompatLayer != 0; layer != (kind == KindLayer) {
		return nil, disk.Corruptf("segment: incompatible features %#x, not those of %v", sb.Incompat, kind)
	}
	meta := sb.BaseOffset + sb.MetaOffset // cannot wrap: Check bounds both by TotalSize
	if !disk.Inside(meta, sb.MetaSize, uint64(len(b))) {
		return nil, disk.Corruptf("segment: metadata [%d,+%d) outside segment of %d bytes", meta, sb.MetaSize, len(b))
	}
	s := &segment{}
	if kind == KindLayer {
		s.rows, err = parseRows(sb, b, off, regionSize)
		return s, err
	}
	if sb.LayerCount == 0 {
		// The image's own size is what it takes: parts of other images are not
		// in it.
		s.copies = int64(sb.TotalSize) - disk.AlignUp(int64(len(b)), blockSize)
		if sb.Compat&disk.CompatPool != 0 || s.copies < 0 || s.copies%blockSize != 0 {
			return nil, disk.Corruptf("segment: image without layers, of %d bytes, compatible features %#x, segment of %d bytes", sb.TotalSize, sb.Compat, len(b))
		}
		return s, nil
	}
	list := b[sb.BaseOffset+sb.LayerOffset:]
	for i := range sb.LayerCount {
		s.layers = append(s.layers, [32]byte(list[i*disk.LayerRefSize:]))
	}
	return s, nil
}

// parseRows reads the extent table and checks that extents lie above the
// segment, inside the region, and apart from each other.
func parseRows(sb *disk.Superblock, b []byte, off, regionSize int64) ([]row, error) {
	if sb.ExtentCount == 0 {
		return nil, nil
	}
	table := b[sb.BaseOffset+sb.ExtentOffset:]
	rows := make([]row, 0, sb.ExtentCount)
	end := off + disk.AlignUp(int64(len(b)), blockSize)
	for i := range sb.ExtentCount {
		x := disk.DecodeExtent(table[i*disk.ExtentSize:])
		if x.Size == 0 || !disk.Inside(x.Offset, x.Size, sb.BaseSize) {
			return nil, disk.Corruptf("extent %d: [%d,+%d) is empty or outside base of %d bytes", i, x.Offset, x.Size, sb.BaseSize)
		}
		r := row{x.Digest, off + int64(sb.BaseOffset+x.Offset), int64(x.Size)}
		if r.off%blockSize != 0 || r.off < end || r.space() > regionSize-r.off {
			return nil, disk.Corruptf("extent %d: [%d,+%d) in the region: not block-aligned, or outside [%d,%d)", i, r.off, r.size, end, regionSize)
		}
		if i > 0 && bytes.Compare(rows[i-1].digest[:], r.digest[:]) >= 0 {
			return nil, disk.Corruptf("extent %d: digest %x does not follow %x", i, r.digest[:8], rows[i-1].digest[:8])
		}
		rows = append(rows, r)
	}
	byOff := slices.SortedFunc(slices.Values(rows), func(a, b row) int { return cmp.Compare(a.off, b.off) })
	for i := 1; i < len(byOff); i++ {
		if p := byOff[i-1]; p.off+p.space() > byOff[i].off {
			return nil, disk.Corruptf("extents [%d,+%d) and [%d,+%d) overlap", p.off, p.size, byOff[i].off, byOff[i].size)
		}
	}
	return rows, nil
}

// salvage says which bytes a segment at off seems to use, when its record or
// its bytes are damaged: only what a superblock with a good checksum names, and
// only what is in bounds. size is that of the segment, 0 when there is none;
// space is what it takes with its copies.
func salvage(r Region, off, dataStart, regionSize int64) (size, space int64, rows []row) {
	if off < dataStart || off%blockSize != 0 || off > regionSize-blockSize {
		return 0, 0, nil
	}
	b := make([]byte, blockSize)
	if _, err := r.ReadAt(b, off); err != nil {
		return 0, 0, nil
	}
	sb, err := disk.DecodeSuperblock(b)
	if err != nil || !sb.Native() || sb.Check(uint64(regionSize-off), blockSize) != nil {
		return 0, 0, nil
	}
	size = int64(sb.BaseOffset + sb.MetaOffset + sb.MetaSize)
	space = disk.AlignUp(size, blockSize)
	if sb.Incompat&disk.IncompatLayer == 0 && sb.LayerCount == 0 {
		space = max(space, int64(sb.TotalSize)&^(blockSize-1))
	}
	// In pieces: the count is only known to fit into the region.
	piece := make([]byte, 1024*disk.ExtentSize)
	at := off + int64(sb.BaseOffset+sb.ExtentOffset)
	for left := sb.ExtentCount; left > 0; {
		n := min(left, 1024)
		if _, err := r.ReadAt(piece[:n*disk.ExtentSize], at); err != nil {
			break
		}
		for i := range n {
			x := disk.DecodeExtent(piece[i*disk.ExtentSize:])
			if x.Size == 0 || !disk.Inside(x.Offset, x.Size, sb.BaseSize) {
				continue
			}
			w := row{x.Digest, off + int64(sb.BaseOffset+x.Offset), int64(x.Size)}
			if w.off%blockSize == 0 && w.off >= dataStart && w.space() <= regionSize-w.off {
				rows = append(rows, w)
			}
		}
		left, at = left-n, at+int64(n*disk.ExtentSize)
	}
	return size, space, rows
}
