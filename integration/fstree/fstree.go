// Package fstree records everything that stat(2), readlink(2), listxattr(2) and
// read(2) say about a directory tree, and compares two such records. Names are
// bytes: nothing here assumes UTF-8.
package fstree

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// Entry is one path of a tree. Which fields mean something depends on the type
// in Mode, exactly as for stat(2); the others are zero.
type Entry struct {
	// Mode is st_mode: type, setuid, setgid, sticky and permission bits. It is 0
	// for a ghost: a name that readdir lists and lstat does not find. overlayfs
	// has them, where a whiteout lies in a directory that is not merged.
	Mode uint32
	UID  uint32
	GID  uint32

	// Size in bytes of a regular file or symlink. Directories have none: it is
	// the file system's own business.
	Size int64

	MtimeSec  int64
	MtimeNsec int64

	// Nlink is st_nlink, except for directories, where file systems differ in
	// whether subdirectories count.
	Nlink uint64

	Rdev   uint64            // st_rdev of devices
	Target string            // of symlinks
	SHA256 string            // hex, of regular files' content
	Xattrs map[string]string // all that llistxattr names, values as bytes

	// Links holds all paths of this inode inside the tree, sorted, when there
	// are at least two; else nil. It is what tells a hard link from a copy.
	Links []string
}

// Type returns the S_IFMT bits.
func (e Entry) Type() uint32 { return e.Mode & unix.S_IFMT }

// IsDir reports whether e is a directory.
func (e Entry) IsDir() bool { return e.Type() == unix.S_IFDIR }

// Tree maps a path, relative to the root and without leading slash, to its
// entry. The root itself is ".".
type Tree map[string]Entry

// Paths returns all paths in byte order.
func (t Tree) Paths() []string {
	paths := make([]string, 0, len(t))
	for p := range t {
		paths = append(paths, p)
	}
	sort.Strings(paths)
	return paths
}

// SetLinks fills Links from inode identities: ids maps paths to a key that two
// paths share exactly when they are the same inode.
func (t Tree) SetLinks(ids map[string]any) {
	groups := map[any][]string{}
	for p, id := range ids {
		groups[id] = append(groups[id], p)
	}
	for _, g := range groups {
		if len(g) < 2 {
			continue
		}
		sort.Strings(g)
		for _, p := range g {
			e := t[p]
			e.Links = g
			t[p] = e
		}
	}
}

// Options of Walk.
type Options struct {
	// NoContent leaves SHA256 empty, for tests that compare metadata only.
	NoContent bool
}

// inode identifies an inode on the machine. On overlay mounts the device
// differs between layers, so the inode number alone would not do.
type inode struct{ dev, ino uint64 }

// Walk records the tree at root, which stays within one mount's view: mounts
// below root are followed like directories. The caller must be root to see
// trusted.* and security.* xattrs and files of other owners.
func Walk(root string, o Options) (Tree, error) {
	w := walker{
		tree: Tree{},
		ids:  map[string]any{},
		sums: map[inode]string{},
		opts: o,
		buf:  make([]byte, 1<<20),
	}
	if err := w.visit(root, "."); err != nil {
		return nil, err
	}
	w.tree.SetLinks(w.ids)
	return w.tree, nil
}

type walker struct {
	tree Tree
	ids  map[string]any
	sums map[inode]string // content is read once per inode
	opts Options
	buf  []byte
}

func (w *walker) visit(abs, rel string) error {
	var st unix.Stat_t
	if err := unix.Lstat(abs, &st); errors.Is(err, unix.ENOENT) && rel != "." {
		w.tree[rel] = Entry{}
		return nil
	} else if err != nil {
		return fmt.Errorf("lstat %q: %w", rel, err)
	}
	e := Entry{
		Mode:      st.Mode,
		UID:       st.Uid,
		GID:       st.Gid,
		MtimeSec:  st.Mtim.Sec,
		MtimeNsec: st.Mtim.Nsec,
	}
	var err error
	if e.Xattrs, err = xattrs(abs); err != nil {
		return fmt.Errorf("xattrs of %q: %w", rel, err)
	}
	id := inode{st.Dev, st.Ino}
	if !e.IsDir() {
		e.Nlink = uint64(st.Nlink) //nolint:unconvert // 32 bits on arm64
		w.ids[rel] = id
	}
	switch e.Type() {
	case unix.S_IFREG:
		e.Size = st.Size
		if !w.opts.NoContent {
			if e.SHA256, err = w.sum(abs, id); err != nil {
				return fmt.Errorf("read %q: %w", rel, err)
			}
		}
	case unix.S_IFLNK:
		if e.Target, err = os.Readlink(abs); err != nil {
			return err
		}
		e.Size = st.Size // kept apart from Target: a file system may get one wrong
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Rdev = st.Rdev
	}
	w.tree[rel] = e
	if !e.IsDir() {
		return nil
	}

	d, err := os.Open(abs)
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	d.Close()
	if err != nil {
		return fmt.Errorf("readdir %q: %w", rel, err)
	}
	for _, name := range names {
		child := name
		if rel != "." {
			child = rel + "/" + name
		}
		if _, ok := w.tree[child]; ok {
			return fmt.Errorf("readdir %q: name %q twice", rel, name)
		}
		if err := w.visit(abs+"/"+name, child); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) sum(abs string, id inode) (string, error) {
	if s, ok := w.sums[id]; ok {
		return s, nil
	}
	f, err := os.Open(abs)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	// Hides os.File's WriterTo, which would not use the buffer.
	if _, err := io.CopyBuffer(h, struct{ io.Reader }{f}, w.buf); err != nil {
		return "", err
	}
	s := hex.EncodeToString(h.Sum(nil))
	w.sums[id] = s
	return s, nil
}

// xattrs returns all extended attributes that the caller may list, of a symlink
// itself if abs is one. File systems without any have none.
func xattrs(abs string) (map[string]string, error) {
	list, err := grow(func(b []byte) (int, error) { return unix.Llistxattr(abs, b) })
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var m map[string]string
	for _, name := range strings.Split(string(bytes.TrimSuffix(list, []byte{0})), "\x00") {
		if name == "" {
			continue
		}
		v, err := grow(func(b []byte) (int, error) { return unix.Lgetxattr(abs, name, b) })
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if m == nil {
			m = map[string]string{}
		}
		m[name] = string(v)
	}
	return m, nil
}

// grow calls get with larger buffers until its result fits.
func grow(get func([]byte) (int, error)) ([]byte, error) {
	for size := 256; ; size *= 4 {
		b := make([]byte, size)
		n, err := get(b)
		if errors.Is(err, unix.ERANGE) && size < 1<<20 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return b[:n], nil
	}
}
