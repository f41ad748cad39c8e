package convert

import (
	"fmt"
	"strings"

	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// view is what a path shows in a stack of layers, topmost first: one node that
// is no directory, or the directories whose names show. Empty is nothing.
type view []source

func (v view) isDir() bool     { return len(v) > 0 && v[0].n.IsDir() }
func (v view) isSymlink() bool { return len(v) > 0 && v[0].n.IsSymlink() }

const noLayer = -1

// rootView is the root in the layers below the given one.
func (m *merger) rootView(below int) view {
	v := make(view, 0, below)
	for i := below - 1; i >= 0; i-- {
		v = append(v, source{m.layers[i].Root, i})
		if isOpaque(m.layers[i].Root) {
			break
		}
	}
	return v
}

// child is what name shows in a directory. A directory of layer over that has
// no entry of its own does not hide a symlink.
func (v view) child(name string, over int) view {
	if !v.isDir() {
		return nil
	}
	var out view
	for _, s := range v {
		n := lookupSorted(s.n, name)
		if n == nil {
			continue
		}
		if n.IsSymlink() && len(out) == 1 && out[0].layer == over && isImplicit(out[0].n) {
			return view{{n, s.layer}}
		}
		if n.IsWhiteout() || !n.IsDir() && len(out) > 0 {
			break
		}
		out = append(out, source{n, s.layer})
		if !n.IsDir() || isOpaque(n) && s.layer != over {
			break
		}
	}
	if len(out) > 1 && isOpaque(out[0].n) {
		out = out[:1] // of layer over, and no symlink below
	}
	return out
}

// resolve walks a path through a stack of layers. Symlinks on the way are
// followed inside the root, as chroot would; one at the end only if follow is
// set. It returns the path without symlinks and what it shows: nothing, if a
// name on the way or the last one is missing, or has something below it that is
// not a directory. over is as for child.
func resolve(root view, path string, over int, follow bool) (real []string, v view, err error) {
	stack := []view{root}
	todo := strings.Split(path, "/")
	for links := 0; len(todo) > 0; {
		elem := todo[0]
		todo = todo[1:]
		switch elem {
		case "", ".":
			continue
		case "..":
			if len(real) > 0 {
				real, stack = real[:len(real)-1], stack[:len(stack)-1]
			}
			continue
		}
		next := stack[len(stack)-1].child(elem, over)
		if next.isSymlink() && (follow || len(todo) > 0) {
			if links++; links > maxSymlinks {
				return nil, nil, fmt.Errorf("%q crosses more than %d symlinks: %w", path, maxSymlinks, ErrBadLayer)
			}
			target := next[0].n.Link
			if strings.HasPrefix(target, "/") {
				real, stack = real[:0], stack[:1]
			}
			todo = append(strings.Split(target, "/"), todo...)
			continue
		}
		real, stack = append(real, elem), append(stack, next)
	}
	return real, stack[len(stack)-1], nil
}

// linkTarget finds the file that a hard link of the given layer means.
func (m *merger) linkTarget(path string, layer int) (*mkdaxfs.Node, error) {
	for {
		_, v, err := resolve(m.rootView(layer), path, noLayer, false)
		switch {
		case err != nil:
			return nil, err
		case len(v) == 0:
			return nil, fmt.Errorf("target %q is in no layer: %w", path, ErrBadLayer)
		case v.isDir():
			return nil, fmt.Errorf("target %q is a directory: %w", path, ErrBadLayer)
		}
		next, ok := v[0].n.Xattr(MarkLink)
		if !ok {
			return v[0].n, nil
		}
		// A link itself, to a layer that is lower still.
		path, layer = next, v[0].layer
	}
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
