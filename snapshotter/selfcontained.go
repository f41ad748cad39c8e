package snapshotter

import (
	"context"
	"fmt"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// publishSelfContained puts a flattened tree into the pool with copies of its
// files. The extents of the tree's nodes, which are the layers', become those
// of the image. The layers are pinned.
func (im *images) publishSelfContained(ctx context.Context, c chain, tree *mkdaxfs.Tree) (*daxmem.Record, error) {
	layout, err := mkdaxfs.NewLayout(tree, mkdaxfs.Options{})
	if err != nil {
		return nil, err
	}
	size := disk.BlockSize + layout.MetaSize()
	files, copies, space, err := placeFiles(tree, size)
	if err != nil {
		return nil, err
	}
	return im.pool.PublishSelfContained(ctx, c.key(), size, space, copies, func(off int64) ([]byte, error) {
		for i, n := range files {
			n.Extent.Offset = off + copies[i].To
		}
		return emit(layout, mkdaxfs.Place{Super: off, Meta: off + disk.BlockSize, End: off + space})
	}, daxmem.RecordMeta{Entries: layout.Entries()})
}

// placeFiles gives each inode's data a place behind start, and says what has to
// be copied there and where it all ends. Inodes with the same bytes get a copy
// each.
func placeFiles(tree *mkdaxfs.Tree, start int64) (files []*mkdaxfs.Node, copies []daxmem.Copy, end int64, err error) {
	end = disk.AlignUp(start, disk.BlockSize)
	seen := make(map[*mkdaxfs.Node]bool)
	err = tree.Nodes(func(n *mkdaxfs.Node) error {
		if !n.IsRegular() || n.Size == 0 || seen[n] {
			return nil
		}
		seen[n] = true
		space := disk.AlignUp(n.Size, disk.BlockSize)
		// As mkdaxfs does: the pool aligns large images to 2 MiB.
		if huge := disk.AlignUp(end, disk.HugeSize); space >= disk.HugeSize && huge-end <= space/16 {
			end = huge
		}
		if end > 1<<62 {
			return fmt.Errorf("files of more than %d bytes: %w", int64(1<<62), mkdaxfs.ErrInvalidTree)
		}
		files = append(files, n)
		copies = append(copies, daxmem.Copy{From: n.Extent.Offset, To: end, Size: n.Size})
		end += space
		return nil
	})
	return files, copies, end, err
}
