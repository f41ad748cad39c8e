package convert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sort"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// DirOptions says how a directory is read.
type DirOptions struct {
	// Upper reads an overlayfs upper directory: whiteouts and opaque marks are
	// kept, overlayfs's other attributes are dropped, redirects refused.
	Upper bool
	// ImplicitSince, if not zero, marks directories (MarkImplicit) whose
	// modification time lies between it and the call. It is for a layer that
	// containerd's differ unpacked after that time: it sets every directory of
	// the archive to the archive's time, so that only those made for their
	// children keep the time of unpacking.
	ImplicitSince time.Time
	MaxTime       int64 // as in TarOptions
	Progress      func(bytes int64)
	// Warn, if not nil, is told of attributes that are left out.
	Warn func(Warning)
}

// FromDir reads the directory at root, which must be on one file system and
// should not change meanwhile; files that do are read again, then refused.
// File contents go to store. The result is a sorted layer tree.
func FromDir(ctx context.Context, root string, store Store, opts DirOptions) (*mkdaxfs.Tree, error) {
	d := &dirImport{ctx: ctx, store: store, opts: opts, now: time.Now(), links: make(map[fileID]*mkdaxfs.Node)}
	var st unix.Stat_t
	if err := unix.Lstat(root, &st); err != nil {
		return nil, fmt.Errorf("read %s: %w", root, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, fmt.Errorf("read %s: not a directory: %w", root, errdefs.ErrInvalidArgument)
	}
	d.dev = st.Dev
	n, err := d.node(root, ".", &st)
	if err != nil {
		return nil, err
	}
	return &mkdaxfs.Tree{Root: n}, nil
}

type dirImport struct {
	ctx   context.Context
	store Store
	opts  DirOptions
	now   time.Time
	dev   uint64
	links map[fileID]*mkdaxfs.Node // files with several names
	bytes int64
	buf   []byte
}

// fileID is an inode. On an overlay mount files of different layers can have
// different device numbers and the same inode number
// (Documentation/filesystems/overlayfs.rst, "Inode properties").
type fileID struct{ dev, ino uint64 }

// node reads the file at path; rel is its name for messages.
func (d *dirImport) node(path, rel string, st *unix.Stat_t) (*mkdaxfs.Node, error) {
	// Of an overlay, only directories have the device number of the mount.
	if st.Dev != d.dev && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil, fmt.Errorf("%q: on another file system: %w", rel, errdefs.ErrInvalidArgument)
	}
	n := &mkdaxfs.Node{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid,
		Mtime: st.Mtim.Sec, MtimeNsec: uint32(st.Mtim.Nsec),
	}
	if disk.HasRdev(n.Mode) {
		n.Rdev = disk.EncodeDev(unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	xs, err := d.xattrs(path, rel)
	if err != nil {
		return nil, err
	}
	if d.opts.Upper {
		var white bool
		if xs, white, err = upperXattrs(rel, xs); err != nil {
			return nil, err
		}
		if white {
			return whiteout(), nil
		}
	} else {
		xs = d.plainXattrs(rel, xs)
	}
	if d.opts.Upper && n.IsWhiteout() {
		return whiteout(), nil
	}
	if n.IsDir() && !d.opts.ImplicitSince.IsZero() {
		if t := time.Unix(st.Mtim.Sec, st.Mtim.Nsec); !t.Before(d.opts.ImplicitSince) && !t.After(d.now) {
			n.Mtime, n.MtimeNsec = 0, 0
			xs = append(xs, disk.Xattr{Name: MarkImplicit, Value: "y"})
		}
	}
	clampTime(n, d.opts.MaxTime)
	n.SetXattrs(xs)
	if err := mkdaxfs.CheckXattrs(rel, n.Xattrs); err != nil {
		return nil, err
	}
	switch {
	case n.IsSymlink():
		if n.Link, err = os.Readlink(path); err != nil {
			return nil, fmt.Errorf("%q: %w", rel, err)
		}
	case n.IsRegular():
		if err := d.file(n, path, rel, st); err != nil {
			return nil, fmt.Errorf("%q: %w", rel, storeError(err))
		}
	case n.IsDir():
		if err := d.children(n, path, rel); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func (d *dirImport) children(dir *mkdaxfs.Node, path, rel string) error {
	if err := d.ctx.Err(); err != nil {
		return err
	}
	entries, err := readNames(path)
	if err != nil {
		return fmt.Errorf("%q: %w", rel, err)
	}
	dir.Children = make([]mkdaxfs.Child, 0, len(entries))
	for _, name := range entries {
		sub := name
		if rel != "." {
			sub = rel + "/" + name
		}
		p := path + "/" + name
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			if errors.Is(err, unix.ENOENT) {
				continue // removed by a running container meanwhile
			}
			return fmt.Errorf("%q: %w", sub, err)
		}
		var child *mkdaxfs.Node
		several := st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR
		if several {
			child = d.links[fileID{st.Dev, st.Ino}]
		}
		if child == nil {
			if child, err = d.node(p, sub, &st); err != nil {
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				return err
			}
			if several {
				d.links[fileID{st.Dev, st.Ino}] = child
			}
		}
		dir.Children = append(dir.Children, mkdaxfs.Child{Name: name, Node: child})
	}
	return nil
}

func readNames(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	sort.Strings(names)
	return names, nil
}

// file stores a regular file's content. A file that changes size while it is
// read is tried again.
func (d *dirImport) file(n *mkdaxfs.Node, path, rel string, st *unix.Stat_t) error {
	if st.Size == 0 {
		return nil
	}
	const tries = 5
	for try := 0; ; try++ {
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		var now unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &now); err != nil {
			f.Close()
			return err
		}
		if now.Ino != st.Ino || now.Mode&unix.S_IFMT != unix.S_IFREG {
			f.Close()
			return fmt.Errorf("replaced while it was read: %w", errdefs.ErrUnavailable)
		}
		n.Size = now.Size
		n.Mtime, n.MtimeNsec = now.Mtim.Sec, uint32(now.Mtim.Nsec)
		clampTime(n, d.opts.MaxTime)
		n.Extent, err = d.store.Put(d.ctx, f, now.Size)
		f.Close()
		if err == nil {
			d.bytes += now.Size
			if d.opts.Progress != nil {
				d.opts.Progress(d.bytes)
			}
			return nil
		}
		var later unix.Stat_t
		if unix.Lstat(path, &later) != nil || later.Size >= now.Size || try == tries {
			return err
		}
	}
}

// xattrs reads all extended attributes of a file.
func (d *dirImport) xattrs(path, rel string) ([]disk.Xattr, error) {
	if d.buf == nil {
		d.buf = make([]byte, 128<<10)
	}
	// Both buffers are as large as Linux allows (XATTR_LIST_MAX, XATTR_SIZE_MAX).
	list, value := d.buf[:64<<10], d.buf[64<<10:]
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) {
			return nil, nil
		}
		return nil, fmt.Errorf("%q: list xattrs: %w", rel, err)
	}
	var out []disk.Xattr
	for name := range bytes.SplitSeq(list[:n], []byte{0}) {
		if len(name) == 0 {
			continue
		}
		m, err := unix.Lgetxattr(path, string(name), value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%q: read xattr %q: %w", rel, name, err)
		}
		out = append(out, disk.Xattr{Name: string(name), Value: string(value[:m])})
	}
	return out, nil
}

// upperXattrs sorts out overlayfs's attributes: the opaque mark stays, a
// whiteout in the form of an attribute is reported, what would make the upper
// directory depend on its lower ones is refused, the rest is bookkeeping.
func upperXattrs(rel string, xs []disk.Xattr) (keep []disk.Xattr, white bool, err error) {
	for _, x := range xs {
		switch {
		case x.Name == MarkOpaque:
			if x.Value == "y" {
				keep = append(keep, x)
			}
		case x.Name == overlayPrefix+"whiteout":
			white = true
		case x.Name == overlayPrefix+"redirect", x.Name == overlayPrefix+"metacopy":
			return nil, false, fmt.Errorf("%q: overlayfs attribute %q: the directory was written with redirect_dir or metacopy, which a layer cannot express: %w",
				rel, x.Name, errdefs.ErrFailedPrecondition)
		case isMark(x.Name):
		default:
			keep = append(keep, x)
		}
	}
	return keep, white, nil
}

// plainXattrs drops what would be taken for marks.
func (d *dirImport) plainXattrs(rel string, xs []disk.Xattr) []disk.Xattr {
	var keep []disk.Xattr
	for _, x := range xs {
		if !isMark(x.Name) {
			keep = append(keep, x)
		} else if d.opts.Warn != nil {
			d.opts.Warn(Warning{rel, fmt.Sprintf("xattr %q is reserved", x.Name)})
		}
	}
	return keep
}
