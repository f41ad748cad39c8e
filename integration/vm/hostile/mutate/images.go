package mutate

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// Image is a sound image that passes mkdaxfs.Check.
type Image struct {
	Name  string
	Bytes []byte
}

// Images returns the images that mutations start from, from 8 to 160 KiB:
// both dialects, with and without EROFS view, alone and of a pool, as our
// builders write them and as the public module's do.
func Images() ([]Image, error) {
	var images []Image
	for _, s := range []struct {
		name string
		opts mkdaxfs.BuildOptions
		tree func(*source) *mkdaxfs.Tree
	}{
		{"full", mkdaxfs.BuildOptions{}, (*source).full},
		{"no-erofs", mkdaxfs.BuildOptions{NoErofs: true}, (*source).full},
		{"shared-data", mkdaxfs.BuildOptions{NoErofs: true, Share: true}, (*source).full},
		{"v8", mkdaxfs.BuildOptions{V8: true}, (*source).plain},
		{"wide", mkdaxfs.BuildOptions{NoErofs: true}, (*source).wide},
		{"v8-wide", mkdaxfs.BuildOptions{V8: true}, (*source).wide},
		{"deep", mkdaxfs.BuildOptions{NoErofs: true}, (*source).deep},
		{"small", mkdaxfs.BuildOptions{NoErofs: true}, (*source).small},
		{"v8-small", mkdaxfs.BuildOptions{V8: true}, (*source).small},
		{"empty", mkdaxfs.BuildOptions{}, (*source).empty},
	} {
		b, err := build(s.opts, s.tree)
		if err != nil {
			return nil, fmt.Errorf("build image %s: %w", s.name, err)
		}
		images = append(images, Image{s.name, b})
	}
	b, err := pool()
	if err != nil {
		return nil, fmt.Errorf("build image pool: %w", err)
	}
	images = append(images, Image{"pool", b})
	b, err = foreign()
	if err != nil {
		return nil, fmt.Errorf("build image v8-foreign: %w", err)
	}
	images = append(images, Image{"v8-foreign", b})
	for _, i := range images {
		img, err := mkdaxfs.Open(bytes.NewReader(i.Bytes), int64(len(i.Bytes)))
		if err == nil {
			_, err = mkdaxfs.Check(img, 0)
		}
		if err != nil {
			return nil, fmt.Errorf("check image %s: %w", i.Name, err)
		}
	}
	return images, nil
}

// putter stores the content of a file.
type putter func(content []byte) mkdaxfs.Extent

// source makes trees.
type source struct{ put putter }

func build(opts mkdaxfs.BuildOptions, tree func(*source) *mkdaxfs.Tree) ([]byte, error) {
	fd, err := unix.MemfdCreate("image", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "image")
	defer f.Close()
	b, err := mkdaxfs.NewBuilder(f, opts)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	ctx := context.Background()
	var putErr error
	t := tree(&source{func(content []byte) mkdaxfs.Extent {
		e, err := b.Put(ctx, bytes.NewReader(content), int64(len(content)))
		if err != nil {
			putErr = err
		}
		return e
	}})
	if putErr != nil {
		return nil, putErr
	}
	stats, err := b.Finish(ctx, t)
	if err != nil {
		return nil, err
	}
	out := make([]byte, stats.Size)
	_, err = f.ReadAt(out, 0)
	return out, err
}

// pool returns an image as it lies in a pool: metadata in front, then the
// others' data and its own.
func pool() ([]byte, error) {
	const data = 64 << 10
	var content []byte
	s := &source{func(b []byte) mkdaxfs.Extent {
		e := mkdaxfs.Extent{Offset: data + int64(len(content))}
		content = append(content, b...)
		content = append(content, make([]byte, -len(content)&(disk.BlockSize-1))...)
		return e
	}}
	l, err := mkdaxfs.NewLayout(s.full(), mkdaxfs.Options{Layers: [][32]byte{{1}, {2}}})
	if err != nil {
		return nil, err
	}
	end := data + int64(len(content))
	super, meta, err := l.Emit(mkdaxfs.Place{Super: 0, Meta: disk.BlockSize, End: end})
	if err != nil {
		return nil, err
	}
	if len(super)+len(meta) > data {
		return nil, fmt.Errorf("%d bytes of metadata, want at most %d", len(meta), data-len(super))
	}
	out := make([]byte, end)
	copy(out, super)
	copy(out[len(super):], meta)
	copy(out[data:], content)
	return out, nil
}

// foreign returns a v8 image with the freedoms that other builders take: names
// in no order, data that is not at a block, records without our additions.
func foreign() ([]byte, error) {
	b, err := build(mkdaxfs.BuildOptions{V8: true}, (*source).plain)
	if err != nil {
		return nil, err
	}
	sb, err := disk.DecodeSuperblock(b)
	if err != nil {
		return nil, err
	}
	base := b[sb.BaseOffset:]
	for i := range sb.InodeCount {
		raw := base[sb.InodeOffset+uint64(i)*disk.InodeSize:]
		in := disk.DecodeInode(raw)
		in.Rdev, in.Mtime, in.MtimeNsec, in.XattrSize, in.XattrOffset = 0, 0, 0, 0, 0
		switch in.Mode & disk.TypeMask {
		case disk.TypeDir:
			n := disk.DirBytes(in.Size, true)
			if n >= 2*disk.DirentV8Stride {
				first, last := base[in.DataOffset:][:disk.DirentV8Stride], base[in.DataOffset+n-disk.DirentV8Stride:][:disk.DirentV8Stride]
				t := bytes.Clone(first)
				copy(first, last)
				copy(last, t)
			}
		case disk.TypeRegular:
			if in.Size > 0 && in.Size < disk.BlockSize-100 {
				copy(base[in.DataOffset+100:], base[in.DataOffset:][:in.Size])
				in.DataOffset += 100
			}
		}
		in.Encode(raw)
	}
	return b, nil
}

func dir(mode uint32) *mkdaxfs.Node {
	return &mkdaxfs.Node{Mode: disk.TypeDir | mode, Mtime: 1_600_000_000, MtimeNsec: 999_999_999}
}

func (s *source) file(mode uint32, content []byte) *mkdaxfs.Node {
	n := &mkdaxfs.Node{Mode: disk.TypeRegular | mode, Size: int64(len(content)), Mtime: -1, MtimeNsec: 1, UID: 1000, GID: 100}
	if n.Size > 0 {
		n.Extent = s.put(content)
	}
	return n
}

func link(target string) *mkdaxfs.Node {
	return &mkdaxfs.Node{Mode: disk.TypeSymlink | 0o777, Link: target}
}

func sorted(root *mkdaxfs.Node) *mkdaxfs.Tree {
	t := &mkdaxfs.Tree{Root: root}
	t.Sort()
	return t
}

func pattern(n int, seed uint64) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(b)
	return b
}

// empty is a root without names.
func (s *source) empty() *mkdaxfs.Tree { return sorted(dir(0o755)) }

// small has one of everything that both dialects can hold.
func (s *source) small() *mkdaxfs.Tree {
	root, d := dir(0o755), dir(0o1777)
	d.SetXattr("system.posix_acl_default", ACL())
	file := s.file(0o644, pattern(100, 1))
	file.SetXattrs([]disk.Xattr{{Name: "user.a", Value: "1"}})
	d.Set("file", file)
	d.Set("hard", file)
	root.Set("d", d)
	root.Set("empty", s.file(0o600, nil))
	root.Set("link", link("d/file"))
	return sorted(root)
}

// plain has everything that both dialects can hold, and a program.
func (s *source) plain() *mkdaxfs.Tree {
	root := dir(0o755)
	for _, n := range []int{1, 4095, 4096, 4097, 10000} {
		root.Set(fmt.Sprintf("file%d", n), s.file(0o644, pattern(n, uint64(n))))
	}
	same := s.file(0o640, pattern(4096, 4096)) // the content of file4096
	root.Set("same", same)
	root.Set("program", s.file(0o4755, Program()))
	root.Set("script", s.file(0o755, []byte("#!program\n")))
	root.Set(strings.Repeat("n", disk.MaxNameLen), s.file(0o644, nil))
	root.Set("\xff\x01 not UTF-8\n", s.file(0, nil))

	sub := dir(0o2775)
	root.Set("sub", sub)
	inner := dir(0o700)
	sub.Set("inner", inner)
	sub.Set("up", link("../sub/up"))
	sub.Set("same", same)
	inner.Set("leaf", s.file(0o444, pattern(3000, 3)))
	inner.Set("long", link(strings.Repeat("t", 300)))
	root.Set("absolute", link("/"))

	attributes := dir(0o755)
	root.Set("attributes", attributes)
	for i := range 4 {
		n := s.file(0o644, []byte{byte(i)})
		n.SetXattrs([]disk.Xattr{
			{Name: "security.capability", Value: "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
			{Name: "security.selinux", Value: "system_u:object_r:bin_t:s0\x00"},
			{Name: "trusted.t", Value: strings.Repeat("v", i*100)},
			{Name: "user." + strings.Repeat("x", 1+i*80), Value: ""},
		})
		attributes.Set(fmt.Sprint(i), n)
	}
	acl := s.file(0o664, nil)
	acl.SetXattr("system.posix_acl_access", ACL())
	attributes.Set("acl", acl)
	attributes.SetXattr("system.posix_acl_default", ACL())

	many := dir(0o755)
	root.Set("many", many)
	for i := range 40 {
		many.Set(fmt.Sprintf("name%d", i*7919%1000), s.file(0o644, nil))
	}
	return sorted(root)
}

// full has everything that the native dialect can hold.
func (s *source) full() *mkdaxfs.Tree {
	t := s.plain()
	special := dir(0o755)
	t.Root.Set("special", special)
	special.Set("fifo", &mkdaxfs.Node{Mode: disk.TypeFIFO | 0o600})
	special.Set("socket", &mkdaxfs.Node{Mode: disk.TypeSocket | 0o666})
	special.Set("char", &mkdaxfs.Node{Mode: disk.TypeChar | 0o666, Rdev: disk.EncodeDev(1, 3)})
	special.Set("block", &mkdaxfs.Node{Mode: disk.TypeBlock | 0o660, Rdev: disk.EncodeDev(0xfff, 0xfffff)})
	t.Sort()
	return t
}

// wide has a directory of 272 names, where counts by 271 and by 272 differ.
func (s *source) wide() *mkdaxfs.Tree {
	root, d := dir(0o755), dir(0o755)
	root.Set("d", d)
	for i := range disk.DirentV8Stride {
		d.Set(fmt.Sprintf("%03d", i), s.file(0o644, nil))
	}
	return sorted(root)
}

// deep has directories in directories.
func (s *source) deep() *mkdaxfs.Tree {
	root := dir(0o755)
	at := root
	for i := range 60 {
		d := dir(0o755)
		at.Set("d", d)
		at.Set("link", link(strings.Repeat("../", i)+"d"))
		at = d
	}
	at.Set("leaf", s.file(0o644, []byte("leaf")))
	return sorted(root)
}

// ACL is the value of a POSIX ACL with a named user, for mode 0664
// (include/uapi/linux/posix_acl_xattr.h).
func ACL() string {
	const undefined = 1<<32 - 1
	b := binary.LittleEndian.AppendUint32(nil, 2) // version
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{0x01, 6, undefined}, {0x02, 4, 1000}, {0x04, 6, undefined}, {0x10, 6, undefined}, {0x20, 4, undefined}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return string(b)
}

// Program is an x86-64 program of one page that ends with status 7.
func Program() []byte {
	const address = 0x400000
	code := []byte{
		0xbf, 7, 0, 0, 0, // mov edi, 7
		0xb8, 60, 0, 0, 0, // mov eax, exit
		0x0f, 0x05, // syscall
	}
	const headers = 64 + 56 // of the file, of one segment
	le := binary.LittleEndian
	b := append([]byte("\x7fELF"), 2, 1, 1) // 64 bits, little-endian, version
	b = append(b, make([]byte, 16-len(b))...)
	b = le.AppendUint16(b, 2)    // executable
	b = le.AppendUint16(b, 0x3e) // x86-64
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, address+headers) // entry
	b = le.AppendUint64(b, 64)              // segments
	b = le.AppendUint64(b, 0)               // no sections
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 1, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 1) // load
	b = le.AppendUint32(b, 5) // readable, executable
	for _, v := range []uint64{0, address, address, headers + uint64(len(code)), headers + uint64(len(code)), 0x1000} {
		b = le.AppendUint64(b, v)
	}
	return append(b, code...)
}
