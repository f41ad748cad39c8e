package mkdaxfs

import (
	"bytes"
	"fmt"
	"sort"

	"github.com/zeebo/blake3"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// Report is what Check found in a sound image.
type Report struct {
	Dialect  string `json:"dialect"` // "native" or "v8"
	Layer    bool   `json:"layer,omitempty"`
	Erofs    bool   `json:"erofs"`
	Inodes   uint32 `json:"inodes"`
	Names    uint64 `json:"names"`
	MetaSize uint64 `json:"metadata_bytes"`
	DataSize uint64 `json:"data_bytes"` // distinct extents
}

// Check proves that img is sound: every record alone, the tree they form, that
// no two files overlap in part and none overlaps the metadata, and, for a
// native image, that superblock and metadata are to the byte what its tree
// makes, the EROFS view included. What is left is the data itself, for which
// an image has no digests (a layer index has; see daxmem's Pool.Check).
//
// origin is as for Image.Tree. The error wraps disk.ErrCorrupt and names the
// record.
func Check(img *Image, origin int64) (*Report, error) {
	_, r, err := CheckedTree(img, origin)
	return r, err
}

// CheckedTree is Check and Image.Tree in one.
func CheckedTree(img *Image, origin int64) (*Tree, *Report, error) {
	tree, err := img.Tree(origin)
	if err != nil {
		return nil, nil, err
	}
	r, err := check(img, tree, origin)
	if err != nil {
		return nil, nil, err
	}
	return tree, r, nil
}

func check(img *Image, tree *Tree, origin int64) (_ *Report, err error) {
	sb := img.sb
	r := &Report{Dialect: "v8", Layer: img.IsLayer(), Erofs: img.HasErofs(), Inodes: sb.InodeCount, Names: sb.Entries, MetaSize: sb.MetaSize}
	if r.DataSize, err = checkData(img, tree, origin); err != nil {
		return nil, err
	}
	if !sb.Native() {
		r.Names = 0
		if err := tree.Nodes(func(n *Node) error {
			for _, c := range n.Children {
				r.Names++
				if err := c.Node.checkFinal(c.Name); err != nil {
					return disk.Corruptf("tree: %v", err)
				}
			}
			return nil
		}); err != nil {
			return nil, err
		}
		r.MetaSize = uint64(sb.InodeCount) * disk.InodeSize
		return r, nil
	}
	r.Dialect = "native"
	if got := blake3.Sum256(img.meta); got != sb.MetaDigest {
		return nil, disk.Corruptf("metadata: digest %x, superblock says %x", got[:8], sb.MetaDigest[:8])
	}
	return r, checkCanonical(img, tree, origin)
}

// checkCanonical writes the tree again and compares: the layout is a function
// of the tree (docs/format.md, "Canonical layout"), so whatever differs was
// not written by a sound builder.
func checkCanonical(img *Image, tree *Tree, origin int64) error {
	sb := img.sb
	if sb.ROCompat != 0 || sb.Compat&^uint64(disk.CompatKnown) != 0 {
		// A reader may ignore them; a proof cannot.
		return fmt.Errorf("superblock: features that the checker does not know: read-only compatible %#x, compatible %#x: %w",
			sb.ROCompat, sb.Compat&^uint64(disk.CompatKnown), disk.ErrUnsupported)
	}
	if sb.BaseOffset != disk.BlockSize {
		return disk.Corruptf("superblock: base at %d, want %d", sb.BaseOffset, disk.BlockSize)
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	l, err := NewLayout(tree, Options{NoErofs: !img.HasErofs() && !img.IsLayer(), Layer: img.IsLayer(), Layers: layers})
	if err != nil {
		return disk.Corruptf("tree: %v", err)
	}
	super, meta, err := l.Emit(Place{Super: origin, Meta: origin + int64(img.metaAddr), End: origin + int64(sb.TotalSize)})
	if err != nil {
		return disk.Corruptf("tree: %v", err)
	}
	if i := firstDifference(meta, img.meta); i >= 0 {
		return disk.Corruptf("metadata: byte %d (address %d) is not what the tree makes", i, img.metaAddr+uint64(i))
	}
	if i := firstDifference(super, img.block); i >= 0 {
		const crc = disk.SuperblockCRC
		if rest := firstDifference(super[crc+4:], img.block[crc+4:]); i/4 == crc/4 && rest >= 0 {
			i = crc + 4 + rest // says more than the checksum
		}
		return disk.Corruptf("superblock: byte %d is not what the tree makes", i)
	}
	return nil
}

func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// checkData reports whether the files' extents are equal or disjoint, and
// outside of superblock and metadata. It returns the bytes of distinct ones.
func checkData(img *Image, tree *Tree, origin int64) (uint64, error) {
	type span struct{ off, end int64 }
	spans := []span{
		{origin, origin + disk.BlockSize},
		{origin + int64(img.metaAddr), origin + int64(img.metaAddr) + int64(len(img.meta))},
	}
	areas := len(spans)
	seen := make(map[span]struct{})
	var total uint64
	_ = tree.Nodes(func(n *Node) error {
		if n.IsRegular() && n.Size > 0 {
			s := span{n.Extent.Offset, n.Extent.Offset + n.Size}
			if _, ok := seen[s]; !ok {
				seen[s] = struct{}{}
				spans = append(spans, s)
				total += uint64(n.Size)
			}
		}
		return nil
	})
	if !img.sb.Native() {
		// Public builders pack small files into one block, and put directories
		// and symlinks between them: only the table is known to be metadata.
		areas = 0
	}
	sort.Slice(spans, func(i, j int) bool { return spans[i].off < spans[j].off })
	for i := 1; i < len(spans); i++ {
		if spans[i].off < spans[i-1].end {
			return 0, disk.Corruptf("file data [%d,%d) overlaps [%d,%d)%s", spans[i].off-origin, spans[i].end-origin,
				spans[i-1].off-origin, spans[i-1].end-origin, map[bool]string{true: " or metadata"}[areas > 0])
		}
	}
	return total, nil
}
