package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// extractor writes inodes into a directory. Everything is done relative to
// open directories: paths may be longer than the system's limit.
type extractor struct {
	ctx   context.Context
	src   *source
	root  int               // directory that paths in first are relative to
	first map[uint32]string // where an inode with several names was written first
	names int
	bytes int64
	buf   []byte
}

// children writes the names of a directory into dir; rel is its path below the
// root, "" or ending with a slash.
func (x *extractor) children(in *disk.Inode, dir int, rel string) error {
	list, err := x.src.Dir(in)
	if err != nil {
		return fmt.Errorf("/%s: %w", escape(rel), err)
	}
	for i := range list.Len() {
		name := string(list.Name(i))
		at := rel + name
		if err := x.ctx.Err(); err != nil {
			return err
		}
		// What the walk of a whole image would find: names that lead out.
		if err := disk.CheckName([]byte(name)); err != nil {
			return fmt.Errorf("/%s: %w", escape(at), err)
		}
		child, err := x.src.Inode(list.Ino(i))
		if err != nil {
			return fmt.Errorf("/%s: %w", escape(at), err)
		}
		if err := x.node(&child, dir, name, at); err != nil {
			return err
		}
	}
	return nil
}

// node writes one inode as name in dir; path is for messages and hard links.
func (x *extractor) node(in *disk.Inode, dir int, name, path string) error {
	fail := func(err error) error { return fmt.Errorf("/%s: %w", escape(path), err) }
	x.names++
	if in.Mode&disk.TypeMask == disk.TypeDir {
		return x.directory(in, dir, name, path)
	}
	if in.Nlink > 1 {
		if first, ok := x.first[in.Ino]; ok {
			if err := unix.Linkat(x.root, first, dir, name, 0); err != nil {
				return fail(fmt.Errorf("link to /%s: %w", escape(first), err))
			}
			return nil
		}
		x.first[in.Ino] = path
	}
	var err error
	switch in.Mode & disk.TypeMask {
	case disk.TypeRegular:
		err = x.file(in, dir, name)
	case disk.TypeSymlink:
		var target string
		if target, err = x.src.Link(in); err == nil {
			err = unix.Symlinkat(target, dir, name)
		}
	default:
		major, minor := disk.DecodeDev(in.Rdev)
		err = unix.Mknodat(dir, name, in.Mode&disk.TypeMask|0o600, int(unix.Mkdev(major, minor)))
	}
	if err != nil {
		return fail(err)
	}
	return x.metadata(in, dir, name, path)
}

func (x *extractor) directory(in *disk.Inode, dir int, name, path string) error {
	fail := func(err error) error { return fmt.Errorf("/%s: %w", escape(path), err) }
	if _, ok := x.first[in.Ino]; ok {
		return fail(disk.Corruptf("directory %d has a second name or contains itself", in.Ino))
	}
	x.first[in.Ino] = path
	if err := unix.Mkdirat(dir, name, 0o700); err != nil {
		return fail(err)
	}
	fd, err := unix.Openat(dir, name, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	err = x.children(in, fd, path+"/")
	_ = unix.Close(fd)
	if err != nil {
		return err
	}
	return x.metadata(in, dir, name, path)
}

// file writes contents, with holes where there are blocks of zeros.
func (x *extractor) file(in *disk.Inode, dir int, name string) error {
	r, err := x.src.Data(in)
	if err != nil {
		return err
	}
	fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if x.buf == nil {
		x.buf = make([]byte, 1<<20)
	}
	for off := int64(0); off < int64(in.Size); {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		b := x.buf[:min(int64(len(x.buf)), int64(in.Size)-off)]
		if n, err := io.ReadFull(r, b); err != nil {
			return disk.Corruptf("%d bytes of data, want %d (%v)", off+int64(n), in.Size, err)
		}
		if err := writeSparse(f, b, off); err != nil {
			return err
		}
		off += int64(len(b))
	}
	x.bytes += int64(in.Size)
	if err := f.Truncate(int64(in.Size)); err != nil {
		return err
	}
	return f.Close()
}

var zeros [disk.BlockSize]byte

// writeSparse writes b at off, a multiple of the block size, without its
// blocks of zeros.
func writeSparse(f *os.File, b []byte, off int64) error {
	start := 0
	flush := func(end int) error {
		if end == start {
			return nil
		}
		_, err := f.WriteAt(b[start:end], off+int64(start))
		return err
	}
	for at := 0; at < len(b); at += len(zeros) {
		end := min(at+len(zeros), len(b))
		if !bytes.Equal(b[at:end], zeros[:end-at]) {
			continue
		}
		if err := flush(at); err != nil {
			return err
		}
		start = end
	}
	return flush(len(b))
}

// metadata sets what the image says of an inode. The order matters: chown
// drops setuid bits and capabilities, and everything changes times.
func (x *extractor) metadata(in *disk.Inode, dir int, name, path string) error {
	fail := func(what string, err error) error {
		return fmt.Errorf("/%s: set %s: %w", escape(path), what, err)
	}
	if err := unix.Fchownat(dir, name, int(in.UID), int(in.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fail(fmt.Sprintf("owner %d:%d", in.UID, in.GID), err)
	}
	symlink := in.Mode&disk.TypeMask == disk.TypeSymlink
	if !symlink {
		if err := unix.Fchmodat(dir, name, in.Mode&0o7777, 0); err != nil {
			return fail(fmt.Sprintf("mode %#o", in.Mode&0o7777), err)
		}
	}
	xs, err := x.src.Xattrs(in)
	if err != nil {
		return fmt.Errorf("/%s: %w", escape(path), err)
	}
	// There is no setxattrat before Linux 6.13.
	at := fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
	for _, a := range xs {
		if err := unix.Lsetxattr(at, a.Name, []byte(a.Value), 0); err != nil {
			return fail("xattr "+escape(a.Name), err)
		}
	}
	t := unix.Timespec{Sec: in.Mtime, Nsec: int64(in.MtimeNsec)}
	if err := unix.UtimesNanoAt(dir, name, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fail("time", err)
	}
	return nil
}
