package convert

import (
	"fmt"
	"path"
	"strings"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// missingDir is a directory that the archive has no entry for.
func (t *tarImport) missingDir() *mkdaxfs.Node {
	t.meta += nodeMemory
	n := implicitDir()
	if t.opts.Plain {
		n.Xattrs = nil // no lower layer has another opinion
	}
	return n
}

// split returns the elements of an entry's name.
func (t *tarImport) split(name string) ([]string, error) {
	if t.opts.Lenient && len(name) <= maxPath {
		name = path.Clean("/" + name)[1:]
	}
	return splitName(name, !t.opts.Plain)
}

// splitName checks a name and returns its elements; none for the root. The name
// of a whiteout may be longer than a file's, by its prefix.
func splitName(name string, whiteouts bool) ([]string, error) {
	if len(name) > maxPath {
		return nil, fmt.Errorf("path of %d bytes, want at most %d: %w", len(name), maxPath, ErrBadLayer)
	}
	if strings.HasPrefix(name, "/") {
		return nil, fmt.Errorf("path is absolute: %w", ErrBadLayer)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return nil, fmt.Errorf("path contains NUL: %w", ErrBadLayer)
	}
	var out []string
	for _, e := range strings.Split(name, "/") {
		switch e {
		case "", ".":
		case "..":
			return nil, fmt.Errorf("path contains %q: %w", "..", ErrBadLayer)
		default:
			out = append(out, e)
		}
	}
	for i, e := range out {
		limit := disk.MaxNameLen
		if whiteouts && i == len(out)-1 && strings.HasPrefix(e, whiteoutPrefix) {
			limit += len(whiteoutPrefix)
		}
		if len(e) > limit {
			return nil, fmt.Errorf("name of %d bytes, want at most %d: %w", len(e), limit, ErrBadLayer)
		}
	}
	return out, nil
}

// parent returns the directory for the elements of a path, following symlinks
// of this layer inside its root, and making what is missing.
func (t *tarImport) parent(elems []string) (*mkdaxfs.Node, error) {
	dir, _, err := t.walk(elems, true)
	return dir, err
}

// walk follows the elements of a path, symlinks of this layer included, and
// returns the directory and the path without symlinks. If something is missing
// and not to be made, the directory is nil.
func (t *tarImport) walk(elems []string, create bool) (dir *mkdaxfs.Node, real []string, err error) {
	stack := []*mkdaxfs.Node{t.root}
	links := 0
	todo := elems
	for len(todo) > 0 {
		e := todo[0]
		todo = todo[1:]
		switch e {
		case "", ".":
			continue
		case "..": // from a symlink
			if len(real) > 0 {
				stack, real = stack[:len(stack)-1], real[:len(real)-1]
			}
			continue
		}
		var n *mkdaxfs.Node
		if dir := stack[len(stack)-1]; dir != nil {
			n = dir.Lookup(e)
			if n == nil && create {
				n = t.missingDir()
				dir.Set(e, n)
			}
		}
		switch {
		case n == nil:
		case n.IsSymlink():
			if links++; links > maxSymlinks {
				return nil, nil, fmt.Errorf("path crosses more than %d symlinks: %w", maxSymlinks, ErrBadLayer)
			}
			if strings.HasPrefix(n.Link, "/") {
				stack, real = stack[:1], real[:0]
			}
			todo = append(strings.Split(n.Link, "/"), todo...)
			continue
		case !n.IsDir():
			return nil, nil, fmt.Errorf("parent %q is not a directory: %w", e, ErrBadLayer)
		}
		stack, real = append(stack, n), append(real, e)
	}
	return stack[len(stack)-1], real, nil
}
