package main

import (
	"fmt"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// item is one name of an image.
type item struct {
	path string // from the root, "/" for the root itself
	in   *disk.Inode
	// first is the first path of this inode, in the order of the walk.
	first string
}

// maxPath bounds the paths of a walk. Those of sound images are shorter than
// the kernel's PATH_MAX; a damaged or hostile one can nest directories until
// their paths fill the memory.
const maxPath = 64 << 10

// walker visits names below a directory, parents before children, in order of
// names. Of a damaged image it shows what can be read.
type walker struct {
	src  *source
	fn   func(item) error
	bad  func(path string, err error)
	seen map[uint32]string // first paths by inode
}

// walk visits root, whose path is p, and what is below. bad is told of what
// cannot be read; fn's error ends the walk.
func (s *source) walk(p string, root *disk.Inode, fn func(item) error, bad func(path string, err error)) error {
	w := &walker{src: s, fn: fn, bad: bad, seen: make(map[uint32]string)}
	return w.visit(p, root)
}

func (w *walker) visit(p string, in *disk.Inode) error {
	first, again := w.seen[in.Ino]
	isDir := in.Mode&disk.TypeMask == disk.TypeDir
	if again && isDir {
		w.bad(p, disk.Corruptf("directory %d has a second name, %s, or contains itself", in.Ino, escape(first)))
		return nil
	}
	if !again {
		first = p
		w.seen[in.Ino] = p
	}
	if err := w.fn(item{p, in, first}); err != nil {
		return err
	}
	if !isDir {
		return nil
	}
	if len(p) > maxPath {
		w.bad(p[:256], disk.Corruptf("directory %d: path of more than %d bytes", in.Ino, maxPath))
		return nil
	}
	list, err := w.src.Dir(in)
	if err != nil {
		w.bad(p, err)
		return nil
	}
	for i := range list.Len() {
		name := list.Name(i)
		at := joinPath(p, string(name))
		if err := disk.CheckName(name); err != nil {
			w.bad(at, err)
			continue
		}
		child, err := w.src.Inode(list.Ino(i))
		if err != nil {
			w.bad(at, err)
			continue
		}
		if err := w.visit(at, &child); err != nil {
			return err
		}
	}
	return nil
}

func joinPath(dir, name string) string {
	if dir == "/" {
		return dir + name
	}
	return dir + "/" + name
}

// whole walks all of the image.
func (s *source) whole(fn func(item) error, bad func(path string, err error)) error {
	root, err := s.Inode(disk.RootIno)
	if err != nil {
		return fmt.Errorf("%s: %w", escape(s.name), err)
	}
	return s.walk("/", &root, fn, bad)
}
