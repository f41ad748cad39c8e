package mkdaxfs

import (
	"errors"
	"testing"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// TestVerify takes what Emit made, and refuses it when the tree is another one
// or a byte of the DAXFS view changed.
func TestVerify(t *testing.T) {
	file := &Node{Mode: disk.TypeRegular | 0o644, Size: 5, Extent: Extent{Offset: 1 << 20}}
	dir := &Node{Mode: disk.TypeDir | 0o755, Children: []Child{{"a", file}, {"b", file}}}
	link := &Node{Mode: disk.TypeSymlink | 0o777, Link: "a", Xattrs: []disk.Xattr{{Name: "trusted.x", Value: "y"}}}
	root := &Node{Mode: disk.TypeDir | 0o755, Children: []Child{{"dir", dir}, {"link", link}}}
	l, err := NewLayout(&Tree{Root: root}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	at := Place{Super: 8192, Meta: 8192 + disk.BlockSize, End: 2 << 20}
	super, meta, err := l.Emit(at)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Verify(super, meta, at); err != nil {
		t.Errorf("what was emitted: %v", err)
	}
	for name, change := range map[string]func() (undo func()){
		"mode":   func() func() { file.Mode ^= 1; return func() { file.Mode ^= 1 } },
		"place":  func() func() { file.Extent.Offset += 4096; return func() { file.Extent.Offset -= 4096 } },
		"time":   func() func() { dir.Mtime++; return func() { dir.Mtime-- } },
		"target": func() func() { link.Link = "b"; return func() { link.Link = "a" } },
		"name": func() func() {
			dir.Children[1].Name = "c"
			return func() { dir.Children[1].Name = "b" }
		},
	} {
		undo := change()
		if err := l.Verify(super, meta, at); !errors.Is(err, disk.ErrCorrupt) {
			t.Errorf("%s changed: %v", name, err)
		}
		undo()
	}
	inodes := int(l.inodeOff)
	for i := inodes; i < inodes+len(l.nodes)*disk.InodeSize; i++ {
		meta[i] ^= 0xff
		if err := l.Verify(super, meta, at); err == nil {
			t.Errorf("byte %d of the inode table changed and nothing was found", i-inodes)
		}
		meta[i] ^= 0xff
	}
}
