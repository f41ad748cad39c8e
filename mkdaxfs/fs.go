package mkdaxfs

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// FS gives an image as an fs.FS with ReadLink and Lstat (fs.ReadLinkFS),
// ReadDir, Stat and xattrs. Unlike other file systems it accepts names that
// are not UTF-8. Open and Stat follow symlinks inside the image.
type FS struct{ img *Image }

var (
	_ fs.ReadLinkFS = (*FS)(nil)
	_ fs.ReadDirFS  = (*FS)(nil)
	_ fs.StatFS     = (*FS)(nil)
)

// FS returns the file system of img.
func (img *Image) FS() *FS { return &FS{img} }

// maxLinks is how many symlinks one path may cross (MAXSYMLINKS in the kernel's
// include/linux/namei.h).
const maxLinks = 40

// FileInfo describes a file; Sys returns its *disk.Inode.
type FileInfo struct {
	name string
	in   disk.Inode
}

// Name returns the last element of the path.
func (i FileInfo) Name() string { return i.name }

// Size returns the bytes of a file or symlink.
func (i FileInfo) Size() int64 { return int64(i.in.Size) }

// Mode returns type and permissions as Go writes them.
func (i FileInfo) Mode() fs.FileMode { return GoMode(i.in.Mode) }

// ModTime returns the modification time.
func (i FileInfo) ModTime() time.Time { return time.Unix(i.in.Mtime, int64(i.in.MtimeNsec)) }

// IsDir reports whether the file is a directory.
func (i FileInfo) IsDir() bool { return i.in.Mode&disk.TypeMask == disk.TypeDir }

// Sys returns the *disk.Inode.
func (i FileInfo) Sys() any { in := i.in; return &in }

// GoMode converts the mode of stat(2) to fs.FileMode.
func GoMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	switch mode & disk.TypeMask {
	case disk.TypeDir:
		m |= fs.ModeDir
	case disk.TypeSymlink:
		m |= fs.ModeSymlink
	case disk.TypeChar:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case disk.TypeBlock:
		m |= fs.ModeDevice
	case disk.TypeFIFO:
		m |= fs.ModeNamedPipe
	case disk.TypeSocket:
		m |= fs.ModeSocket
	}
	if mode&0o4000 != 0 {
		m |= fs.ModeSetuid
	}
	if mode&0o2000 != 0 {
		m |= fs.ModeSetgid
	}
	if mode&0o1000 != 0 {
		m |= fs.ModeSticky
	}
	return m
}

// validPath is fs.ValidPath without the demand for UTF-8: names are bytes.
func validPath(name string) bool {
	if name == "." {
		return true
	}
	for _, e := range strings.Split(name, "/") {
		if e == "" || e == "." || e == ".." {
			return false
		}
	}
	return true
}

// resolve walks name from the root; follow says whether a symlink at its end
// is followed too.
func (f *FS) resolve(op, name string, follow bool) (disk.Inode, error) {
	fail := func(err error) (disk.Inode, error) {
		return disk.Inode{}, &fs.PathError{Op: op, Path: name, Err: err}
	}
	if !validPath(name) {
		return fail(fs.ErrInvalid)
	}
	root, err := f.img.Inode(disk.RootIno)
	if err != nil {
		return fail(err)
	}
	stack := []disk.Inode{root}
	todo := strings.Split(name, "/")
	links := 0
	for len(todo) > 0 {
		elem := todo[0]
		todo = todo[1:]
		switch elem {
		case "", ".":
			continue
		case "..":
			if len(stack) > 1 {
				stack = stack[:len(stack)-1]
			}
			continue
		}
		dir := stack[len(stack)-1]
		if dir.Mode&disk.TypeMask != disk.TypeDir {
			return fail(fmt.Errorf("not a directory: %w", fs.ErrNotExist))
		}
		list, err := f.img.Dir(&dir)
		if err != nil {
			return fail(err)
		}
		i := list.Lookup([]byte(elem))
		if i < 0 {
			return fail(fs.ErrNotExist)
		}
		in, err := f.img.Inode(list.Ino(i))
		if err != nil {
			return fail(err)
		}
		if in.Mode&disk.TypeMask == disk.TypeSymlink && (follow || len(todo) > 0) {
			if links++; links > maxLinks {
				return fail(fmt.Errorf("more than %d symlinks: %w", maxLinks, fs.ErrInvalid))
			}
			target, err := f.img.Link(&in)
			if err != nil {
				return fail(err)
			}
			if strings.HasPrefix(target, "/") {
				stack = stack[:1]
			}
			todo = append(strings.Split(target, "/"), todo...)
			continue
		}
		stack = append(stack, in)
	}
	return stack[len(stack)-1], nil
}

// Lstat describes a file without following a symlink at the path's end.
func (f *FS) Lstat(name string) (fs.FileInfo, error) {
	in, err := f.resolve("lstat", name, false)
	if err != nil {
		return nil, err
	}
	return FileInfo{path.Base(name), in}, nil
}

// Stat describes a file.
func (f *FS) Stat(name string) (fs.FileInfo, error) {
	in, err := f.resolve("stat", name, true)
	if err != nil {
		return nil, err
	}
	return FileInfo{path.Base(name), in}, nil
}

// ReadLink returns the target of a symlink.
func (f *FS) ReadLink(name string) (string, error) {
	in, err := f.resolve("readlink", name, false)
	if err != nil {
		return "", err
	}
	t, err := f.img.Link(&in)
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return t, nil
}

// Xattrs returns the extended attributes of a file without following a symlink
// at the path's end.
func (f *FS) Xattrs(name string) ([]disk.Xattr, error) {
	in, err := f.resolve("listxattr", name, false)
	if err != nil {
		return nil, err
	}
	xs, err := f.img.Xattrs(&in)
	if err != nil {
		return nil, &fs.PathError{Op: "listxattr", Path: name, Err: err}
	}
	return xs, nil
}

// ReadDir returns the entries of a directory in order of names.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	in, err := f.resolve("readdir", name, true)
	if err != nil {
		return nil, err
	}
	out, err := f.readDir(&in)
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	return out, nil
}

func (f *FS) readDir(in *disk.Inode) ([]fs.DirEntry, error) {
	list, err := f.img.Dir(in)
	if err != nil {
		return nil, err
	}
	out := make([]fs.DirEntry, 0, list.Len())
	for i := range list.Len() {
		if err := disk.CheckName(list.Name(i)); err != nil {
			return nil, err
		}
		cin, err := f.img.Inode(list.Ino(i))
		if err != nil {
			return nil, err
		}
		out = append(out, fs.FileInfoToDirEntry(FileInfo{string(list.Name(i)), cin}))
	}
	return out, nil
}

// Open opens a file or directory. Regular files also are io.Seeker and
// io.ReaderAt, directories fs.ReadDirFile.
func (f *FS) Open(name string) (fs.File, error) {
	in, err := f.resolve("open", name, true)
	if err != nil {
		return nil, err
	}
	info := FileInfo{path.Base(name), in}
	switch in.Mode & disk.TypeMask {
	case disk.TypeDir:
		entries, err := f.readDir(&in)
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		return &openDir{info: info, entries: entries}, nil
	case disk.TypeRegular:
		r, err := f.img.Data(&in)
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		return &openFile{r, info}, nil
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("mode %#o cannot be read: %w", in.Mode, errdefs.ErrInvalidArgument)}
}

type openFile struct {
	*io.SectionReader
	info FileInfo
}

func (o *openFile) Stat() (fs.FileInfo, error) { return o.info, nil }
func (o *openFile) Close() error               { return nil }

type openDir struct {
	info    FileInfo
	entries []fs.DirEntry
}

func (o *openDir) Stat() (fs.FileInfo, error) { return o.info, nil }
func (o *openDir) Close() error               { return nil }
func (o *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: o.info.name, Err: fmt.Errorf("is a directory: %w", fs.ErrInvalid)}
}

func (o *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if n <= 0 {
		out := o.entries
		o.entries = nil
		return out, nil
	}
	if len(o.entries) == 0 {
		return nil, io.EOF
	}
	n = min(n, len(o.entries))
	out := o.entries[:n]
	o.entries = o.entries[n:]
	return out, nil
}
