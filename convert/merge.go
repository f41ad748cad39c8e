package convert

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// Merge flattens layers, lowest first, into the tree that their stack shows
// (OCI image-spec, layer.md, "Applying changesets"): whiteouts, opaque
// directories, replaced types, hard links across layers, and directories
// without an entry of their own, which keep what the layer below says of them.
//
// The result shares nodes of files with the layers and no directories; it has
// no marks left. The layers must not be changed while it is in use. Hard links
// count the names that are left.
func Merge(layers []*mkdaxfs.Tree) (*mkdaxfs.Tree, error) {
	m := merger{layers: layers}
	stack := make([]source, 0, len(layers))
	for i := len(layers) - 1; i >= 0; i-- {
		stack = append(stack, source{layers[i].Root, i})
		if isOpaque(layers[i].Root) {
			// Metadata of an implicit root still comes from below.
			break
		}
	}
	meta := make([]*mkdaxfs.Node, 0, len(layers))
	for i := len(layers) - 1; i >= 0; i-- {
		meta = append(meta, layers[i].Root)
	}
	root, err := m.dir("", stack, meta)
	if err != nil {
		return nil, err
	}
	return &mkdaxfs.Tree{Root: root}, nil
}

type merger struct {
	layers []*mkdaxfs.Tree
	slab   []mkdaxfs.Node
	kids   []mkdaxfs.Child
}

// source is a directory of one layer.
type source struct {
	n     *mkdaxfs.Node
	layer int
}

// dir merges directories, topmost first. meta are those that may give the
// result its metadata: stack and what an opaque mark hides.
func (m *merger) dir(path string, stack []source, meta []*mkdaxfs.Node) (*mkdaxfs.Node, error) {
	out := m.newDir(meta)
	if len(stack) == 1 {
		return out, m.single(path, out, stack[0])
	}
	// Names are sorted in each layer: walk all lists at once.
	pos := make([]int, len(stack))
	cand := make([]source, 0, len(stack))
	size := 0
	for _, s := range stack {
		size = max(size, len(s.n.Children))
	}
	out.Children = make([]mkdaxfs.Child, 0, size)
	for {
		name, found := "", false
		for i, s := range stack {
			if pos[i] < len(s.n.Children) {
				if n := s.n.Children[pos[i]].Name; !found || n < name {
					name, found = n, true
				}
			}
		}
		if !found {
			return out, nil
		}
		cand = cand[:0]
		for i, s := range stack {
			if pos[i] < len(s.n.Children) && s.n.Children[pos[i]].Name == name {
				cand = append(cand, source{s.n.Children[pos[i]].Node, s.layer})
				pos[i]++
			}
		}
		n, err := m.name(path, name, cand)
		if err != nil {
			return nil, err
		}
		if n != nil {
			out.Children = append(out.Children, mkdaxfs.Child{Name: name, Node: n})
		}
	}
}

// single is dir for a directory that only one layer has.
func (m *merger) single(path string, out *mkdaxfs.Node, s source) error {
	out.Children = make([]mkdaxfs.Child, 0, len(s.n.Children))
	cand := make([]source, 1)
	for _, c := range s.n.Children {
		n := c.Node
		if n.IsDir() || n.IsWhiteout() || len(n.Xattrs) > 0 {
			cand[0] = source{n, s.layer}
			var err error
			if n, err = m.name(path, c.Name, cand); err != nil {
				return err
			}
			if n == nil {
				continue
			}
		}
		out.Children = append(out.Children, mkdaxfs.Child{Name: c.Name, Node: n})
	}
	return nil
}

// name decides what a name shows; cand are its nodes, topmost first. Nil means
// nothing.
func (m *merger) name(path, name string, cand []source) (*mkdaxfs.Node, error) {
	top := cand[0].n
	if top.IsWhiteout() {
		return nil, nil
	}
	if !top.IsDir() {
		if target, ok := top.Xattr(MarkLink); ok {
			n := m.lookup(target, cand[0].layer)
			if n == nil {
				return nil, fmt.Errorf("hard link %q: target %q is in no layer: %w", join(path, name), target, ErrBadLayer)
			}
			if n.IsDir() {
				return nil, fmt.Errorf("hard link %q: target %q is a directory: %w", join(path, name), target, ErrBadLayer)
			}
			return n, nil
		}
		return top, nil
	}
	var stack []source
	var meta []*mkdaxfs.Node
	opaque := false
	for _, c := range cand {
		if !c.n.IsDir() {
			break // a whiteout or another type ends the directory
		}
		meta = append(meta, c.n)
		if !opaque {
			stack = append(stack, c)
			opaque = isOpaque(c.n)
		}
	}
	return m.dir(join(path, name), stack, meta)
}

// newDir makes a directory with the metadata of the topmost node that has an
// entry of its own.
func (m *merger) newDir(meta []*mkdaxfs.Node) *mkdaxfs.Node {
	if len(m.slab) == 0 {
		m.slab = make([]mkdaxfs.Node, 128)
	}
	out := &m.slab[0]
	m.slab = m.slab[1:]
	from := meta[len(meta)-1]
	for _, n := range meta {
		if !isImplicit(n) {
			from = n
			break
		}
	}
	*out = mkdaxfs.Node{Mode: from.Mode, UID: from.UID, GID: from.GID, Mtime: from.Mtime, MtimeNsec: from.MtimeNsec, Xattrs: from.Xattrs}
	for _, x := range from.Xattrs {
		if isMark(x.Name) {
			var keep []disk.Xattr
			for _, x := range from.Xattrs {
				if !isMark(x.Name) {
					keep = append(keep, x)
				}
			}
			out.Xattrs = keep
			break
		}
	}
	return out
}

// lookup finds what path shows in the layers below the given one, without
// following symlinks, or nil.
func (m *merger) lookup(path string, below int) *mkdaxfs.Node {
	cand := make([]*mkdaxfs.Node, 0, below)
	for i := below - 1; i >= 0; i-- {
		cand = append(cand, m.layers[i].Root)
	}
	for elem := range bytes.SplitSeq([]byte(path), []byte("/")) {
		var next []*mkdaxfs.Node
		for _, n := range cand {
			c := lookupSorted(n, string(elem))
			if c != nil {
				if c.IsWhiteout() || !c.IsDir() && len(next) > 0 {
					break
				}
				next = append(next, c)
				if !c.IsDir() || isOpaque(c) {
					break
				}
			}
			if isOpaque(n) {
				break
			}
		}
		if len(next) == 0 {
			return nil
		}
		cand = next
	}
	if len(cand) == 0 {
		return nil
	}
	n := cand[0]
	if target, ok := n.Xattr(MarkLink); ok && !n.IsDir() {
		for i := below - 1; i >= 0; i-- {
			if (&mkdaxfs.Tree{Root: m.layers[i].Root}).Find(path) == n {
				return m.lookup(target, i)
			}
		}
	}
	return n
}

func lookupSorted(n *mkdaxfs.Node, name string) *mkdaxfs.Node {
	lo, hi := 0, len(n.Children)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		switch c := strings.Compare(n.Children[mid].Name, name); {
		case c == 0:
			return n.Children[mid].Node
		case c < 0:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return nil
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
