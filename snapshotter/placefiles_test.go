package snapshotter

import (
	"fmt"
	"slices"
	"testing"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// Files follow each other in blocks, each inode once whatever its names, and
// large ones at 2 MiB where that wastes little.
func TestPlaceFiles(t *testing.T) {
	const mib = 1 << 20
	root := &mkdaxfs.Node{Mode: disk.TypeDir | 0o755}
	var first *mkdaxfs.Node
	for i, size := range []int64{5000, 0, 40 * mib, 3 * mib, 1} {
		n := &mkdaxfs.Node{Mode: disk.TypeRegular | 0o644, Size: size, Extent: mkdaxfs.Extent{Offset: int64(i) * 4096}}
		root.Set(fmt.Sprint(i), n)
		if first == nil {
			first = n
		}
	}
	root.Set("again", first)
	tree := &mkdaxfs.Tree{Root: root}
	tree.Sort()
	files, copies, end, err := placeFiles(tree, 8192+64)
	want := []daxmem.Copy{
		{From: 0, To: 12288, Size: 5000},
		{From: 2 * 4096, To: 2 * mib, Size: 40 * mib},
		{From: 3 * 4096, To: 42 * mib, Size: 3 * mib},
		{From: 4 * 4096, To: 45 * mib, Size: 1},
	}
	if err != nil || end != 45*mib+4096 || !slices.Equal(copies, want) || len(files) != len(copies) || files[0] != first {
		t.Errorf("%d files, copies %+v up to %d, %v", len(files), copies, end, err)
	}
}
