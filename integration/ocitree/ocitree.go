// Package ocitree says what a chain of layers must look like when mounted: a
// plain model of the OCI layer specification, made from the layers' tars alone.
// It mounts nothing and shares no code with what it judges.
//
// https://github.com/opencontainers/image-spec/blob/main/layer.md
package ocitree

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/fstree"
)

// FixedTime is the mtime of a directory that no layer has an entry for. The
// specification is silent about it; the time of unpacking, which is what
// appliers leave there, would make every unpacking another image.
var FixedTime = time.Unix(0, 0)

// Options of Flatten.
type Options struct {
	// Walking models layers that reached us through containerd's own applier
	// (the "walking" differ), which loses some things on the way:
	//
	//   - the tar entry of the root directory,
	//   - mtimes before 1970 and after 2262-04-11, which become 1970,
	//   - trusted.* xattrs, and user.* on anything but files and directories,
	//   - security.capability of a file that a hard link entry names again:
	//     the kernel drops it on the chown,
	//   - the mtime of a file that takes the place of a directory of its own layer:
	//     it gets the directory's, which is set at the end, by name,
	//   - the whiteout of a name that its layer makes again: a directory made again
	//     keeps its lower content.
	Walking bool
}

// Notes says where the answer is one that other implementations decide otherwise.
type Notes struct {
	// Implied holds directories without entry in the topmost layer that has
	// something below them.
	Implied map[string]bool
	// Unlinked holds paths that lost another name of theirs to an upper layer.
	Unlinked map[string]bool
	// Followed holds symlinks of lower layers that an entry's path went through,
	// with the directories that they led to. The specification has archives
	// extracted "like a regular tar archive", which follows them.
	Followed map[string]string
	// RootOpaque: some layer has an opaque marker in the root directory.
	RootOpaque bool
}

// inode is what hard links share.
type inode struct {
	fstree.Entry
	names int // it was given in the tars, before anything was removed
}

type node struct {
	*inode
	implied  bool
	opaque   bool
	children map[string]*node // of directories
	gone     map[string]bool  // names whited out here, in a layer's tree
}

func newDir() *node {
	n := &node{inode: &inode{}, implied: true, children: map[string]*node{}, gone: map[string]bool{}}
	n.Mode = unix.S_IFDIR | 0o755
	n.SetMtime(FixedTime)
	return n
}

// Flatten merges layers, lowest first.
func Flatten(layers []io.Reader, o Options) (fstree.Tree, *Notes, error) {
	var (
		merged *node
		notes  = &Notes{Implied: map[string]bool{}, Unlinked: map[string]bool{}, Followed: map[string]string{}}
	)
	for i, r := range layers {
		root, err := readLayer(r, merged, o, notes)
		if err != nil {
			return nil, nil, fmt.Errorf("layer %d: %w", i, err)
		}
		notes.RootOpaque = notes.RootOpaque || root.opaque
		merged = merge(merged, root)
	}
	if merged == nil {
		merged = newDir()
	}
	tree, ids := fstree.Tree{}, map[string]any{}
	walk(merged, ".", func(p string, n *node) {
		tree[p] = n.Entry
		if n.IsDir() {
			notes.Implied[p] = n.implied
			return
		}
		ids[p] = n.inode
	})
	tree.SetLinks(ids)
	for p := range ids {
		e := tree[p]
		e.Nlink = uint64(max(1, len(e.Links)))
		tree[p] = e
		if int(e.Nlink) != ids[p].(*inode).names {
			notes.Unlinked[p] = true
		}
	}
	return tree, notes, nil
}

func walk(n *node, p string, f func(string, *node)) {
	f(p, n)
	for name, c := range n.children {
		walk(c, path.Join(p, name), f)
	}
}

// merge puts a layer's directory on what lies below it, nil if nothing does.
func merge(low, up *node) *node {
	out := newDir()
	out.inode, out.implied = up.inode, up.implied
	if low != nil {
		if up.implied {
			out.inode = low.inode
		}
		if !up.opaque {
			for name, c := range low.children {
				if !up.gone[name] {
					out.children[name] = c
				}
			}
		}
	}
	for name, c := range up.children {
		if !c.IsDir() {
			out.children[name] = c
			continue
		}
		var below *node
		if low != nil && !up.gone[name] && low.children[name] != nil && low.children[name].IsDir() {
			below = low.children[name]
		}
		// Under an opaque directory the lower one gives its attributes to an
		// implied one, but none of its names.
		if up.opaque {
			c.opaque = true
		}
		out.children[name] = merge(below, c)
	}
	return out
}

// readLayer builds the tree of one layer. lower is what it lies on, for hard
// links to files of lower layers.
func readLayer(r io.Reader, lower *node, o Options, notes *Notes) (*node, error) {
	root := newDir()
	tr := tar.NewReader(r)
	var dirs []*tar.Header
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := add(root, lower, h, tr, o, notes); err != nil {
			return nil, fmt.Errorf("%q: %w", h.Name, err)
		}
		if h.Typeflag == tar.TypeDir {
			dirs = append(dirs, h)
		}
	}
	for _, h := range dirs {
		if n, err := find(root, nil, h.Name); err == nil && o.Walking && n.Type() != unix.S_IFLNK {
			n.SetMtime(bound(h.ModTime))
		}
	}
	return root, nil
}

func add(root, lower *node, h *tar.Header, r io.Reader, o Options, notes *Notes) error {
	name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	if name == "" {
		if !o.Walking {
			root.implied = false
			return setAttributes(root.inode, h, o)
		}
		return nil
	}
	dirName, base := path.Split(name)
	dir, followed, err := resolve(root, lower, dirName, true)
	if err != nil {
		return err
	}
	for from, to := range followed {
		notes.Followed[from] = to
	}
	if base == ".wh..wh..opq" {
		dir.opaque = true
		return nil
	}
	if gone, ok := strings.CutPrefix(base, ".wh."); ok {
		dir.gone[gone] = true
		return nil
	}

	n := &node{inode: &inode{}}
	switch h.Typeflag {
	case tar.TypeDir:
		if old := dir.children[base]; old != nil && old.IsDir() {
			n = old
		} else {
			n = newDir()
		}
		n.implied = false
	case tar.TypeLink:
		target, err := find(root, lower, h.Linkname)
		if err != nil {
			return err
		}
		n.inode = target.inode
		if o.Walking {
			delete(n.Xattrs, "security.capability")
		}
	case tar.TypeReg:
		n.Mode = unix.S_IFREG
		sum := sha256.New()
		if n.Size, err = io.Copy(sum, r); err != nil {
			return err
		}
		n.SHA256 = hex.EncodeToString(sum.Sum(nil))
	case tar.TypeSymlink:
		n.Mode, n.Target, n.Size = unix.S_IFLNK|0o777, h.Linkname, int64(len(h.Linkname))
	case tar.TypeChar, tar.TypeBlock:
		n.Mode = unix.S_IFCHR
		if h.Typeflag == tar.TypeBlock {
			n.Mode = unix.S_IFBLK
		}
		n.Rdev = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	case tar.TypeFifo:
		n.Mode = unix.S_IFIFO
	default:
		return fmt.Errorf("type %q", h.Typeflag)
	}
	if old := dir.children[base]; old != nil && old.inode != n.inode {
		old.names--
	}
	if !n.IsDir() {
		n.names++
	}
	dir.children[base] = n
	if o.Walking {
		delete(dir.gone, base)
	}
	return setAttributes(n.inode, h, o)
}

// setAttributes takes over a header's metadata. For a hard link that is the
// shared inode's: the last header wins.
func setAttributes(n *inode, h *tar.Header, o Options) error {
	if n.Type() != unix.S_IFLNK {
		n.Mode = n.Type() | uint32(h.Mode)&0o7777
	}
	n.UID, n.GID = uint32(h.Uid), uint32(h.Gid)
	n.SetMtime(h.ModTime)
	if o.Walking {
		n.SetMtime(bound(h.ModTime))
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok {
			continue
		}
		plain := n.Type() == unix.S_IFREG || n.IsDir()
		if strings.HasPrefix(name, "user.") && !plain {
			continue // the kernel has no such thing
		}
		if o.Walking && strings.HasPrefix(name, "trusted.") {
			continue
		}
		if n.Xattrs == nil {
			n.Xattrs = map[string]string{}
		}
		n.Xattrs[name] = value
	}
	if len(n.Xattrs) == 0 {
		n.Xattrs = nil
	}
	return nil
}

// bound is what containerd's applier makes of times outside its range.
func bound(t time.Time) time.Time {
	if t.Unix() < 0 || t.After(time.Unix(0, 1<<63-1)) {
		return time.Unix(0, 0)
	}
	return t
}

var errNotFound = errors.New("not found")

// place is a directory of a layer with the one that it lies on, nil if nothing
// of that shows through.
type place struct {
	path    string
	up, low *node
}

// resolve finds the directory name in a layer as a path in a chroot would be
// found in the rootfs below the layer: following its symlinks and those of
// lower layers that it does not hide. With create, missing directories are
// made. The last result says whether a symlink of a lower layer was followed,
// as the paths from and to.
func resolve(root, lower *node, name string, create bool) (*node, map[string]string, error) {
	at := []place{{".", root, lower}} // the way down, for ".."
	followed := map[string]string{}
	link := "" // the lower symlink being followed, until its last element
	rest := 0  // elements left of name behind it
	todo := strings.Split(strings.Trim(name, "/"), "/")
	for hops := 0; len(todo) > 0; {
		if link != "" && len(todo) == rest {
			followed[link] = at[len(at)-1].path
			link = ""
		}
		c := todo[0]
		todo = todo[1:]
		dir := at[len(at)-1]
		switch c {
		case "", ".":
			continue
		case "..":
			if len(at) > 1 {
				at = at[:len(at)-1]
			}
			continue
		}
		next := place{path: path.Join(dir.path, c), up: dir.up.children[c]}
		if dir.low != nil && !dir.up.opaque && !dir.up.gone[c] {
			next.low = dir.low.children[c]
		}
		sym := next.up
		if sym == nil && next.low != nil && next.low.Type() == unix.S_IFLNK {
			sym = next.low
			if link == "" {
				link, rest = next.path, len(todo)
			}
		}
		switch {
		case sym != nil && sym.Type() == unix.S_IFLNK:
			if hops++; hops > 255 {
				return nil, nil, errors.New("too many symlinks")
			}
			if strings.HasPrefix(sym.Target, "/") {
				at = at[:1]
			}
			todo = append(strings.Split(sym.Target, "/"), todo...)
			continue
		case next.up == nil && create:
			next.up = newDir()
			dir.up.children[c] = next.up
		case next.up == nil:
			return nil, nil, errNotFound
		case !next.up.IsDir():
			return nil, nil, errors.New("parent is no directory")
		}
		if next.low != nil && !next.low.IsDir() {
			next.low = nil
		}
		at = append(at, next)
	}
	if link != "" {
		followed[link] = at[len(at)-1].path
	}
	return at[len(at)-1].up, followed, nil
}

// find returns the file that a hard link names, in its own layer or below.
func find(root, lower *node, name string) (*node, error) {
	dirName, base := path.Split(path.Clean("/" + name))
	for _, tree := range []*node{root, lower} {
		if tree == nil {
			continue
		}
		dir, _, err := resolve(tree, nil, dirName, false)
		if err != nil {
			continue
		}
		if n := dir.children[base]; n != nil && !n.IsDir() {
			return n, nil
		}
	}
	return nil, fmt.Errorf("hard link to %q: %w", name, errNotFound)
}
