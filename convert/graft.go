package convert

import (
	"slices"
	"strings"

	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// A layer may have lib/x without an entry for lib, while a lower layer has a
// symlink lib -> usr/lib. Extracting the archive over the lower layers, which
// is what the OCI specification says (layer.md, "Applying Changesets"), and what
// containerd does unless it unpacks layers in parallel, follows the symlink:
// the file becomes usr/lib/x. Taking lib for a directory would hide all of
// /lib. So such directories are moved where the symlink points to.

// move is one directory's old and new path.
type move struct{ from, to []string }

// graftAll makes each layer's directories without an entry stand at paths
// without symlinks. Layers that need it are copied.
func (m *merger) graftAll() {
	owned := false
	for i := 1; i < len(m.layers); i++ {
		if !hasImplicit(m.layers[i].Root) {
			continue
		}
		// What was moved may meet another symlink there, so again until
		// nothing is left. Each round takes a level off the paths that move.
		for round := 0; ; round++ {
			moves := m.findMoves(i)
			if len(moves) == 0 {
				break
			}
			if !owned {
				m.layers = append([]*mkdaxfs.Tree(nil), m.layers...)
				owned = true
			}
			if round == 0 {
				m.layers[i] = copyDirs(m.layers[i])
			}
			for _, mv := range moves {
				graft(m.layers[i].Root, mv)
			}
			m.layers[i].Sort()
		}
	}
}

// hasImplicit reports whether there is a directory below root without an entry
// of its own. Most layers have none, and need no look at the others.
func hasImplicit(root *mkdaxfs.Node) bool {
	stack := []*mkdaxfs.Node{root}
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, c := range n.Children {
			if c.Node.IsDir() {
				if isImplicit(c.Node) {
					return true
				}
				stack = append(stack, c.Node)
			}
		}
	}
	return false
}

// findMoves returns the directories of layer i that have no entry of their own
// and are a symlink below, and where that leads.
func (m *merger) findMoves(i int) (moves []move) {
	type item struct {
		up   *item
		name string
		n    *mkdaxfs.Node
		low  view
	}
	path := func(it *item) (out []string) {
		for ; it.up != nil; it = it.up {
			out = append(out, it.name)
		}
		slices.Reverse(out)
		return out
	}
	top := m.rootView(i + 1)
	if len(top) == 1 {
		return nil // opaque
	}
	stack := []*item{{n: m.layers[i].Root, low: m.rootView(i)}}
	for len(stack) > 0 {
		it := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, c := range it.n.Children {
			if !c.Node.IsDir() {
				continue
			}
			low := it.low.child(c.Name, noLayer)
			sub := &item{it, c.Name, c.Node, low}
			if low.isDir() && !isOpaque(c.Node) {
				stack = append(stack, sub)
			}
			if !low.isSymlink() || !isImplicit(c.Node) {
				continue
			}
			from := path(sub)
			// The layer's own whiteouts and entries count: they are about what
			// is below, wherever in the archive they stand.
			to, v, err := resolve(top, strings.Join(from, "/"), i, true)
			if err != nil || len(v) > 0 && !v.isDir() && v[0].layer != i {
				// Leads in a circle or to a file: extracting would fail there.
				// The directory replaces the symlink.
				continue
			}
			moves = append(moves, move{from, to})
		}
	}
	return moves
}

// graftable reports whether the layer has nothing but directories on a path.
func graftable(root *mkdaxfs.Node, path []string) bool {
	n := root
	for _, e := range path {
		if n = n.Lookup(e); n == nil {
			return true
		}
		if !n.IsDir() {
			return false
		}
	}
	return true
}

// copyDirs copies the directories of a tree; files stay shared.
func copyDirs(t *mkdaxfs.Tree) *mkdaxfs.Tree {
	var clone func(n *mkdaxfs.Node) *mkdaxfs.Node
	clone = func(n *mkdaxfs.Node) *mkdaxfs.Node {
		out := cloneNode(n)
		out.Children = append([]mkdaxfs.Child(nil), n.Children...)
		for i, c := range out.Children {
			if c.Node.IsDir() {
				out.Children[i].Node = clone(c.Node)
			}
		}
		return out
	}
	return &mkdaxfs.Tree{Root: clone(t.Root)}
}

// cloneNode copies a node's metadata.
func cloneNode(n *mkdaxfs.Node) *mkdaxfs.Node {
	return &mkdaxfs.Node{
		Mode: n.Mode, UID: n.UID, GID: n.GID, Rdev: n.Rdev, Mtime: n.Mtime, MtimeNsec: n.MtimeNsec,
		Size: n.Size, Extent: n.Extent, Link: n.Link, Xattrs: n.Xattrs,
	}
}

// graft moves a directory. What the new place has already wins over files.
func graft(root *mkdaxfs.Node, mv move) {
	last := len(mv.from) - 1
	parent := root
	for _, e := range mv.from[:last] {
		parent = parent.Lookup(e)
	}
	moved := parent.Lookup(mv.from[last])
	parent.Delete(mv.from[last])
	if !graftable(root, mv.to) {
		// The layer has a file there or above. Had it come first, extracting
		// would fail; it came later, and replaced what was extracted.
		return
	}
	at := root
	for _, e := range mv.to {
		next := at.Lookup(e)
		if next == nil {
			next = implicitDir()
			at.Set(e, next)
		}
		at = next
	}
	mergeInto(at, moved)
}

func mergeInto(to, from *mkdaxfs.Node) {
	if isOpaque(from) {
		to.SetXattr(MarkOpaque, "y")
	}
	for _, c := range from.Children {
		switch old := to.Lookup(c.Name); {
		case old == nil || old.IsWhiteout():
			to.Set(c.Name, c.Node)
		case old.IsDir() && c.Node.IsDir():
			if isImplicit(old) && !isImplicit(c.Node) {
				opaque := isOpaque(old)
				children := old.Children
				*old = *cloneNode(c.Node)
				old.Children = children
				if opaque {
					old.SetXattr(MarkOpaque, "y")
				}
			}
			mergeInto(old, c.Node)
		}
	}
}
