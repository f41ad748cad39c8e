package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"

	"github.com/urfave/cli/v2"
	"github.com/zeebo/blake3"

	"github.com/daxfs/containerd-daxfs/convert"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// side is one of two trees that are compared.
type side struct {
	name  string
	src   *source // nil: a directory
	files map[string]*file
}

// file is what is compared of one path.
type file struct {
	in     *disk.Inode
	target string
	xattrs []disk.Xattr
	first  string
	digest string // of the content, once it is known
}

func (s *side) Close() {
	if s.src != nil {
		s.src.Close()
	}
}

// openSide reads an image's metadata, or all of a directory.
func openSide(c *cli.Context, name string) (*side, error) {
	s := &side{name: name, files: make(map[string]*file)}
	if fi, err := os.Stat(name); err == nil && fi.IsDir() {
		return s, s.directory(c)
	}
	var err error
	if s.src, err = openSource(c, name); err != nil {
		return nil, err
	}
	var broken error
	err = s.src.whole(func(it item) error {
		f := &file{in: it.in, first: it.first}
		var err error
		if it.in.Mode&disk.TypeMask == disk.TypeSymlink {
			if f.target, err = s.src.Link(it.in); err != nil {
				return s.src.wrap(it.path, err)
			}
		}
		if f.xattrs, err = s.src.Xattrs(it.in); err != nil {
			return s.src.wrap(it.path, err)
		}
		s.files[it.path] = f
		return nil
	}, func(path string, err error) {
		if broken == nil {
			broken = s.src.wrap(path, err)
		}
	})
	if err == nil {
		err = broken
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// hashStore is a convert.Store that keeps digests only.
type hashStore struct{}

func (hashStore) Put(_ context.Context, r io.Reader, size int64) (mkdaxfs.Extent, error) {
	h := blake3.New()
	if n, err := io.Copy(h, io.LimitReader(r, size)); err != nil || n != size {
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return mkdaxfs.Extent{}, err
	}
	return mkdaxfs.Extent{Digest: [32]byte(h.Sum(nil))}, nil
}

func (s *side) directory(c *cli.Context) error {
	t, err := convert.FromDir(c.Context, s.name, hashStore{}, convert.DirOptions{Warn: func(w convert.Warning) {
		fmt.Fprintf(c.App.ErrWriter, "daxfsctl: warning: %s: %s: %s\n", escape(s.name), escape(w.Path), w.Reason)
	}})
	if err != nil {
		return err
	}
	first := make(map[*mkdaxfs.Node]string)
	return t.Walk(func(path string, n *mkdaxfs.Node) error {
		path = "/" + innerPath(path)
		f := &file{in: &disk.Inode{
			Mode: n.Mode, UID: n.UID, GID: n.GID, Size: uint64(n.Size), Rdev: n.Rdev, Mtime: n.Mtime, MtimeNsec: n.MtimeNsec,
		}, target: n.Link, xattrs: n.Xattrs, digest: hex.EncodeToString(n.Extent.Digest[:])}
		if _, ok := first[n]; !ok {
			first[n] = path
		}
		f.first = first[n]
		s.files[path] = f
		return nil
	})
}

// content names a file's bytes by their digest.
func (s *side) content(path string, f *file) (string, error) {
	if f.digest != "" {
		return f.digest, nil
	}
	if one := s.files[f.first]; one.digest != "" { // another name of the inode
		return one.digest, nil
	}
	d, err := s.src.digest(f.in)
	if err != nil {
		return "", s.src.wrap(path, err)
	}
	f.digest = strings.TrimPrefix(d, "blake3:")
	s.files[f.first].digest = f.digest
	return f.digest, nil
}

// sameBytes reports whether two files are the same bytes of the same file.
func sameBytes(a, b *side, fa, fb *file) bool {
	if a.src == nil || b.src == nil || a.src.rec == nil || b.src.rec == nil {
		return false
	}
	oa, _ := a.src.dataOffset(fa.in)
	ob, _ := b.src.dataOffset(fb.in)
	return oa == ob
}

func compare(a, b *side) ([]difference, error) {
	paths := make([]string, 0, len(a.files))
	for p := range a.files {
		paths = append(paths, p)
	}
	for p := range b.files {
		if a.files[p] == nil {
			paths = append(paths, p)
		}
	}
	sort.Strings(paths)
	var out []difference
	for _, p := range paths {
		fa, fb := a.files[p], b.files[p]
		switch {
		case fa == nil:
			out = append(out, difference{Path: escape(p), Change: "added"})
		case fb == nil:
			out = append(out, difference{Path: escape(p), Change: "removed"})
		default:
			fields, err := compareFiles(p, a, b, fa, fb)
			if err != nil {
				return nil, err
			}
			if len(fields) > 0 {
				out = append(out, difference{escape(p), "changed", fields})
			}
		}
	}
	return out, nil
}

func compareFiles(path string, a, b *side, fa, fb *file) (out []fieldDiff, err error) {
	add := func(field, va, vb string) {
		if va != vb {
			out = append(out, fieldDiff{field, va, vb})
		}
	}
	ia, ib := fa.in, fb.in
	add("type", typeName(ia.Mode), typeName(ib.Mode))
	add("mode", fmt.Sprintf("%04o", ia.Mode&0o7777), fmt.Sprintf("%04o", ib.Mode&0o7777))
	add("uid", fmt.Sprint(ia.UID), fmt.Sprint(ib.UID))
	add("gid", fmt.Sprint(ia.GID), fmt.Sprint(ib.GID))
	add("mtime", mtime(ia.Mtime, ia.MtimeNsec), mtime(ib.Mtime, ib.MtimeNsec))
	add("target", escape(fa.target), escape(fb.target))
	add("hard_link_to", linkOf(path, fa), linkOf(path, fb))
	if ia.Mode&disk.TypeMask == ib.Mode&disk.TypeMask {
		switch ia.Mode & disk.TypeMask {
		case disk.TypeChar, disk.TypeBlock:
			add("device", device(ia.Rdev), device(ib.Rdev))
		case disk.TypeRegular:
			add("size", fmt.Sprint(ia.Size), fmt.Sprint(ib.Size))
			if ia.Size != ib.Size || ia.Size == 0 || sameBytes(a, b, fa, fb) {
				break
			}
			da, err := a.content(path, fa)
			if err != nil {
				return nil, err
			}
			db, err := b.content(path, fb)
			if err != nil {
				return nil, err
			}
			add("content", "blake3:"+da, "blake3:"+db)
		}
	}
	compareXattrs(fa.xattrs, fb.xattrs, add)
	return out, nil
}

func linkOf(path string, f *file) string {
	if f.first == path {
		return ""
	}
	return escape(f.first)
}

// compareXattrs merges two sorted lists.
func compareXattrs(a, b []disk.Xattr, add func(field, a, b string)) {
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0].Name < b[0].Name:
			add("xattr "+escape(a[0].Name), "="+escape(a[0].Value), "none")
			a = a[1:]
		case len(a) == 0 || b[0].Name < a[0].Name:
			add("xattr "+escape(b[0].Name), "none", "="+escape(b[0].Value))
			b = b[1:]
		default:
			add("xattr "+escape(a[0].Name), "="+escape(a[0].Value), "="+escape(b[0].Value))
			a, b = a[1:], b[1:]
		}
	}
}
