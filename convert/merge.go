package convert

import (
	"fmt"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// Merge flattens layers, lowest first, into the tree that their stack shows
// (OCI image-spec, layer.md, "Applying changesets"): whiteouts, opaque
// directories, replaced types, hard links across layers, directories without an
// entry of their own, which keep what the layer below says of them, and names
// below a symlink of a lower layer, which are where it points to.
//
// The result shares nodes of files with the layers and no directories; it has
// no marks left. The layers must not be changed while it is in use. Hard links
// count the names that are left.
func Merge(layers []*mkdaxfs.Tree) (*mkdaxfs.Tree, error) {
	m := merger{layers: layers}
	m.graftAll()
	m.linkAll()
	layers = m.layers
	stack := m.rootView(len(layers))
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
	layers []*mkdaxfs.Tree // lowest first
	slab   []mkdaxfs.Node
	// linked are files with what links of higher layers say about them, by what
	// their own layer has: see linkAll.
	linked map[*mkdaxfs.Node]*mkdaxfs.Node
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
		if n.IsDir() || n.IsWhiteout() || len(n.Xattrs) > 0 || len(m.linked) > 0 {
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
			n, err := m.linkTarget(target, cand[0].layer)
			if err != nil {
				return nil, fmt.Errorf("hard link %q: %w", join(path, name), err)
			}
			return m.file(n), nil
		}
		return m.file(top), nil
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

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
