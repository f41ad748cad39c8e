// Package mkdaxfs builds, reads and checks DAXFS images, with or without the
// EROFS view of the same bytes (docs/format.md).
//
// A Tree is a file tree in memory whose file data lies elsewhere already: in an
// image file being written (Builder), in a pool (package daxmem), or in the
// image it was read from. NewLayout gives every record of a tree its place,
// Layout.Emit writes the metadata, Open and Image.Tree read it back, Check
// proves an image.
package mkdaxfs

import (
	"fmt"
	"sort"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// ErrInvalidTree is wrapped by errors about trees that no image can hold.
var ErrInvalidTree = fmt.Errorf("invalid file tree: %w", errdefs.ErrInvalidArgument)

// Extent is where a regular file's bytes are. The length is the node's Size.
type Extent struct {
	// Offset is the address in the region (image file or pool), a multiple of
	// disk.BlockSize.
	Offset int64
	// Digest is the BLAKE3-256 of the bytes. Only layer indexes need it.
	Digest [32]byte
}

// Node is one inode. Names that are hard links to each other share one Node. A
// node belongs to one Tree and is not safe for concurrent use.
type Node struct {
	Mode      uint32 // S_IFMT and permission bits, as in stat(2)
	UID, GID  uint32
	Rdev      uint32 // disk.EncodeDev
	MtimeNsec uint32
	Mtime     int64 // seconds since 1970
	Size      int64 // regular files: bytes; others 0
	Extent    Extent
	Link      string       // symlinks: the target
	Xattrs    []disk.Xattr // sorted by name; may be shared between nodes, so never changed in place
	Children  []Child      // directories: sorted by name

	ino   uint32         // set by NewLayout
	index map[string]int // Lookup, for large directories
}

// Child is a name in a directory.
type Child struct {
	Name string
	Node *Node
}

// Tree is a file tree.
type Tree struct{ Root *Node }

// IsDir reports whether n is a directory.
func (n *Node) IsDir() bool { return n.Mode&disk.TypeMask == disk.TypeDir }

// IsRegular reports whether n is a regular file.
func (n *Node) IsRegular() bool { return n.Mode&disk.TypeMask == disk.TypeRegular }

// IsSymlink reports whether n is a symbolic link.
func (n *Node) IsSymlink() bool { return n.Mode&disk.TypeMask == disk.TypeSymlink }

// IsWhiteout reports whether n is an overlayfs whiteout: a character device
// with number 0/0 (Documentation/filesystems/overlayfs.rst).
func (n *Node) IsWhiteout() bool { return n.Mode&disk.TypeMask == disk.TypeChar && n.Rdev == 0 }

// Xattr returns the value of an extended attribute.
func (n *Node) Xattr(name string) (string, bool) {
	for _, x := range n.Xattrs {
		if x.Name == name {
			return x.Value, true
		}
	}
	return "", false
}

// SetXattrs replaces the extended attributes, sorted.
func (n *Node) SetXattrs(xs []disk.Xattr) {
	n.Xattrs = append([]disk.Xattr(nil), xs...)
	sort.Slice(n.Xattrs, func(i, j int) bool { return n.Xattrs[i].Name < n.Xattrs[j].Name })
}

// SetXattr sets one extended attribute.
func (n *Node) SetXattr(name, value string) {
	xs := n.WithoutXattr(name)
	n.SetXattrs(append(xs, disk.Xattr{Name: name, Value: value}))
}

// WithoutXattr returns a copy of n's attributes without name.
func (n *Node) WithoutXattr(name string) []disk.Xattr {
	var out []disk.Xattr
	for _, x := range n.Xattrs {
		if x.Name != name {
			out = append(out, x)
		}
	}
	return out
}

// Lookup returns the child with the given name, or nil. While a tree is being
// built with Set, the children need not be sorted.
func (n *Node) Lookup(name string) *Node {
	if i := n.find(name); i >= 0 {
		return n.Children[i].Node
	}
	return nil
}

func (n *Node) find(name string) int {
	if n.index == nil && len(n.Children) > 16 {
		n.index = make(map[string]int, 2*len(n.Children))
		for i, c := range n.Children {
			n.index[c.Name] = i
		}
	}
	if n.index != nil {
		if i, ok := n.index[name]; ok {
			return i
		}
		return -1
	}
	for i, c := range n.Children {
		if c.Name == name {
			return i
		}
	}
	return -1
}

// Set makes child the node of name, replacing what was there. Sort must follow
// before the tree is laid out.
func (n *Node) Set(name string, child *Node) {
	if i := n.find(name); i >= 0 {
		n.Children[i].Node = child
		return
	}
	if n.index != nil {
		n.index[name] = len(n.Children)
	}
	n.Children = append(n.Children, Child{name, child})
}

// Delete removes a name and reports whether it was there.
func (n *Node) Delete(name string) bool {
	i := n.find(name)
	if i < 0 {
		return false
	}
	last := len(n.Children) - 1
	if n.index != nil {
		delete(n.index, name)
		if i != last {
			n.index[n.Children[last].Name] = i
		}
	}
	n.Children[i] = n.Children[last]
	n.Children[last] = Child{}
	n.Children = n.Children[:last]
	return true
}

// Sort orders every directory of the tree bytewise by name and drops the
// indexes of Lookup.
func (t *Tree) Sort() {
	stack := []*Node{t.Root}
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		n.index = nil
		if !sort.SliceIsSorted(n.Children, func(i, j int) bool { return n.Children[i].Name < n.Children[j].Name }) {
			sort.Slice(n.Children, func(i, j int) bool { return n.Children[i].Name < n.Children[j].Name })
		}
		for _, c := range n.Children {
			if c.Node.IsDir() {
				stack = append(stack, c.Node)
			}
		}
	}
}

// Walk calls fn for every name, parents before children, in order of names.
// The root's path is ".". An error stops the walk and is returned.
func (t *Tree) Walk(fn func(path string, n *Node) error) error {
	var walk func(path string, n *Node) error
	walk = func(path string, n *Node) error {
		if err := fn(path, n); err != nil {
			return err
		}
		for _, c := range n.Children {
			p := c.Name
			if path != "." {
				p = path + "/" + c.Name
			}
			if err := walk(p, c.Node); err != nil {
				return err
			}
		}
		return nil
	}
	return walk(".", t.Root)
}

// Nodes calls fn for every inode's every name, the root first. Unlike Walk it
// builds no paths and does not recurse, so a tree of any depth will do.
func (t *Tree) Nodes(fn func(n *Node) error) error {
	stack := []*Node{t.Root}
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if err := fn(n); err != nil {
			return err
		}
		for i := len(n.Children) - 1; i >= 0; i-- {
			stack = append(stack, n.Children[i].Node)
		}
	}
	return nil
}

// Find returns the node at a slash-separated path without following symlinks,
// or nil.
func (t *Tree) Find(path string) *Node {
	n := t.Root
	for _, name := range strings.Split(path, "/") {
		if name == "" || name == "." {
			continue
		}
		if n = n.Lookup(name); n == nil {
			return nil
		}
	}
	return n
}

// check reports whether n, known as name in its directory, can be written.
func (n *Node) check(name string) error {
	switch {
	case !disk.ValidType(n.Mode):
		return fmt.Errorf("%q: mode %#o has no valid type: %w", name, n.Mode, ErrInvalidTree)
	case n.MtimeNsec > 999999999:
		return fmt.Errorf("%q: %d nanoseconds, want at most 999999999: %w", name, n.MtimeNsec, ErrInvalidTree)
	case n.Rdev != 0 && !disk.HasRdev(n.Mode):
		return fmt.Errorf("%q: device number on mode %#o: %w", name, n.Mode, ErrInvalidTree)
	case n.IsSymlink() && (len(n.Link) == 0 || len(n.Link) > disk.MaxLinkLen || strings.IndexByte(n.Link, 0) >= 0):
		return fmt.Errorf("%q: symlink target of %d bytes, want 1 to %d without NUL: %w", name, len(n.Link), disk.MaxLinkLen, ErrInvalidTree)
	case n.IsRegular() && n.Size < 0, !n.IsRegular() && n.Size != 0:
		return fmt.Errorf("%q: size %d on mode %#o: %w", name, n.Size, n.Mode, ErrInvalidTree)
	case n.IsRegular() && n.Size > 0 && n.Extent.Offset%disk.BlockSize != 0:
		return fmt.Errorf("%q: data at %d, not a multiple of %d: %w", name, n.Extent.Offset, disk.BlockSize, ErrInvalidTree)
	case len(n.Children) > 0 && !n.IsDir():
		return fmt.Errorf("%q: names below mode %#o: %w", name, n.Mode, ErrInvalidTree)
	}
	return CheckXattrs(name, n.Xattrs)
}

// checkFinal reports whether n may be in an image, in contrast to a layer index:
// nothing in it may steer the overlayfs that is mounted above.
func (n *Node) checkFinal(name string) error {
	if n.IsWhiteout() {
		return fmt.Errorf("%q: character device 0/0, which overlayfs takes for a whiteout: %w", name, ErrInvalidTree)
	}
	for _, x := range n.Xattrs {
		if strings.HasPrefix(x.Name, "trusted.daxfs.") ||
			strings.HasPrefix(x.Name, "trusted.overlay.") && !strings.HasPrefix(x.Name, "trusted.overlay.overlay.") {
			return fmt.Errorf("%q: xattr %q is for layers: %w", name, x.Name, ErrInvalidTree)
		}
	}
	return nil
}

// CheckXattrs reports whether the format can hold a set of attributes, which
// must be sorted by name; path is for the message.
func CheckXattrs(path string, xs []disk.Xattr) error {
	if len(xs) > disk.ErofsMaxShared {
		return fmt.Errorf("%q: %d xattrs, want at most %d: %w", path, len(xs), disk.ErofsMaxShared, ErrInvalidTree)
	}
	for i, x := range xs {
		if _, _, ok := disk.SplitXattr(x.Name); !ok {
			return fmt.Errorf("%q: xattr %q is in no namespace that the format knows (user, trusted, security, POSIX ACL): %w", path, x.Name, ErrInvalidTree)
		}
		if len(x.Value) > disk.MaxXattrValue {
			return fmt.Errorf("%q: xattr %q has %d bytes, want at most %d: %w", path, x.Name, len(x.Value), disk.MaxXattrValue, ErrInvalidTree)
		}
		if i > 0 && xs[i-1].Name >= x.Name {
			return fmt.Errorf("%q: xattr %q is not in order: %w", path, x.Name, ErrInvalidTree)
		}
	}
	return nil
}
