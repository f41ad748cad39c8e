package mkdaxfs_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"sort"
	"strings"
	"testing"

	erofs "github.com/erofs/go-erofs"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// build writes a self-contained image of a tree whose contents come from
// content, and opens it.
func build(t testing.TB, opts mkdaxfs.BuildOptions, make func(b *mkdaxfs.Builder) *mkdaxfs.Tree) (*os.File, *mkdaxfs.Image, *mkdaxfs.BuildStats) {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "image")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	b, err := mkdaxfs.NewBuilder(f, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	tree := make(b)
	stats, err := b.Finish(context.Background(), tree)
	if err != nil {
		t.Fatal(err)
	}
	img, err := mkdaxfs.Open(f, stats.Size)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mkdaxfs.Check(img, 0); err != nil {
		t.Fatalf("check of a fresh image: %v", err)
	}
	return f, img, stats
}

func file(t testing.TB, b *mkdaxfs.Builder, content []byte) *mkdaxfs.Node {
	t.Helper()
	n := &mkdaxfs.Node{Mode: disk.TypeRegular | 0o644, Size: int64(len(content)), Mtime: 1700000000, MtimeNsec: 123456789}
	var err error
	if n.Extent, err = b.Put(context.Background(), bytes.NewReader(content), n.Size); err != nil {
		t.Fatal(err)
	}
	return n
}

func dir() *mkdaxfs.Node {
	return &mkdaxfs.Node{Mode: disk.TypeDir | 0o755, Mtime: 1600000000}
}

func pattern(n int, seed uint64) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)}).Read(b)
	return b
}

// nastyTree has every type and every edge of the layout. One xattr has the
// given size: go-erofs reads shared entries of less than a block only.
func nastyTree(t testing.TB, b *mkdaxfs.Builder, xattrSize int) *mkdaxfs.Tree {
	root := dir()
	root.Set("empty", file(t, b, nil))
	for _, n := range []int{1, 4095, 4096, 4097, 8192, 1 << 20, 1<<20 + 1, 3 << 20, 40 << 20} {
		root.Set(fmt.Sprintf("file%d", n), file(t, b, pattern(n, uint64(n))))
	}
	sparse := make([]byte, 5<<20)
	copy(sparse[4<<20:], "end")
	root.Set("sparse", file(t, b, sparse))
	shared := file(t, b, []byte("linked"))
	shared.Mode = disk.TypeRegular | 0o4755
	root.Set("link-a", shared)
	sub := dir()
	root.Set("sub", sub)
	sub.Set("link-b", shared)
	root.Set("!before-dots", file(t, b, []byte("x")))
	root.Set("\xff\xfe not utf8 \n", file(t, b, []byte("y")))
	root.Set(strings.Repeat("n", 255), file(t, b, []byte("z")))
	for _, n := range []int{1, 59, 60, 3900, 3967, 3968, 3969, 4000, 4095} {
		root.Set(fmt.Sprintf("symlink%d", n), &mkdaxfs.Node{Mode: disk.TypeSymlink | 0o777, Link: strings.Repeat("s", n), Mtime: -5})
	}
	root.Set("char", &mkdaxfs.Node{Mode: disk.TypeChar | 0o600, Rdev: disk.EncodeDev(1, 3)})
	root.Set("block", &mkdaxfs.Node{Mode: disk.TypeBlock | 0o600, Rdev: disk.EncodeDev(259, 70000)})
	root.Set("fifo", &mkdaxfs.Node{Mode: disk.TypeFIFO | 0o644})
	root.Set("socket", &mkdaxfs.Node{Mode: disk.TypeSocket | 0o755})
	x := file(t, b, []byte("xattrs"))
	x.UID, x.GID = 1<<32-2, 65534
	x.SetXattrs([]disk.Xattr{{Name: "user.a", Value: "1"}, {Name: "security.capability", Value: "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}, {Name: "trusted.t", Value: ""}, {Name: "user.big", Value: strings.Repeat("v", xattrSize)}})
	root.Set("xattrs", x)
	y := dir()
	y.Mode |= 0o1777
	y.SetXattrs([]disk.Xattr{{Name: "user.a", Value: "1"}})
	root.Set("xdir", y)
	for _, n := range []int{100, 135, 136, 271, 272, 273, 5000} {
		d := dir()
		root.Set(fmt.Sprintf("dir%d", n), d)
		for i := range n {
			d.Set(fmt.Sprintf("entry-%05d", i), &mkdaxfs.Node{Mode: disk.TypeRegular | 0o600, Mtime: int64(i)})
		}
	}
	deep := sub
	for range 200 {
		d := dir()
		deep.Set("deeper-than", d)
		deep = d
	}
	deep.Set("leaf", file(t, b, []byte("leaf")))
	tree := &mkdaxfs.Tree{Root: root}
	tree.Sort()
	return tree
}

// line describes one file as a reader shows it.
type line struct {
	path, rest string
}

func describe(lines *[]line, p string, mode, uid, gid, rdev, nlink uint32, size, mtime int64, nsec uint32, link string, xs []disk.Xattr, content string) {
	if mode&disk.TypeMask == disk.TypeDir {
		size = 0
	}
	*lines = append(*lines, line{p, fmt.Sprintf("mode %o owner %d:%d dev %#x nlink %d size %d mtime %d.%09d link %q xattrs %q content %s",
		mode, uid, gid, rdev, nlink, size, mtime, nsec, link, xs, content)})
}

func sortLines(lines []line) []line {
	sort.Slice(lines, func(i, j int) bool { return lines[i].path < lines[j].path })
	return lines
}

func sameLines(t *testing.T, name string, want, got []line) {
	t.Helper()
	if len(want) != len(got) {
		t.Errorf("%s shows %d files, want %d", name, len(got), len(want))
	}
	bad := 0
	for i := range min(len(want), len(got)) {
		if want[i] != got[i] {
			t.Errorf("%s: %.80q is\n\t%.300s\nwant %.80q\n\t%.300s", name, got[i].path, got[i].rest, want[i].path, want[i].rest)
			if bad++; bad == 10 {
				t.Fatal("more differences not shown")
			}
		}
	}
}

func hashReader(t *testing.T, r io.Reader) string {
	t.Helper()
	sum, err := digest(r)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// ownLines is what our reader shows.
func ownLines(t *testing.T, img *mkdaxfs.Image) []line {
	t.Helper()
	fsys := img.FS()
	var out []line
	var walk func(p string)
	walk = func(p string) {
		fi, err := fsys.Lstat(p)
		if err != nil {
			t.Fatal(err)
		}
		in := fi.Sys().(*disk.Inode)
		var link, content string
		switch in.Mode & disk.TypeMask {
		case disk.TypeSymlink:
			if link, err = fsys.ReadLink(p); err != nil {
				t.Fatal(err)
			}
		case disk.TypeRegular:
			r, err := img.Data(in)
			if err != nil {
				t.Fatal(err)
			}
			content = hashReader(t, r)
		}
		xs, err := fsys.Xattrs(p)
		if err != nil {
			t.Fatal(err)
		}
		describe(&out, p, in.Mode, in.UID, in.GID, in.Rdev, in.Nlink, int64(in.Size), in.Mtime, in.MtimeNsec, link, xs, content)
		if fi.IsDir() {
			list, err := img.Dir(in)
			if err != nil {
				t.Fatal(err)
			}
			for i := range list.Len() {
				walk(path.Join(p, string(list.Name(i))))
			}
		}
	}
	walk(".")
	return sortLines(out)
}

// erofsLines is what go-erofs shows of the EROFS view.
func erofsLines(t *testing.T, r io.ReaderAt) []line {
	t.Helper()
	fsys, err := erofs.Open(r)
	if err != nil {
		t.Fatalf("go-erofs: %v", err)
	}
	var out []line
	var walk func(p string, info fs.FileInfo)
	walk = func(p string, info fs.FileInfo) {
		st, ok := info.Sys().(*erofs.Stat)
		if !ok {
			t.Fatalf("go-erofs: Sys of %q is %T", p, info.Sys())
		}
		mode := rawMode(st.Mode)
		var link, content string
		switch mode & disk.TypeMask {
		case disk.TypeSymlink:
			if link, err = fsys.(fs.ReadLinkFS).ReadLink(p); err != nil {
				t.Fatal(err)
			}
		case disk.TypeRegular:
			f, err := fsys.Open(p)
			if err != nil {
				t.Fatalf("go-erofs: open %q: %v", p, err)
			}
			content = hashReader(t, f)
			_ = f.Close()
		}
		var xs []disk.Xattr
		for k, v := range st.Xattrs {
			// go-erofs 0.3.1 ends the ACLs' names, which have no suffix, with the
			// dot that stands before one. The kernel does not.
			if n, ok := strings.CutSuffix(k, "."); ok && strings.HasPrefix(k, "system.posix_acl_") {
				k = n
			}
			xs = append(xs, disk.Xattr{Name: k, Value: v})
		}
		sort.Slice(xs, func(i, j int) bool { return xs[i].Name < xs[j].Name })
		rdev := st.Rdev
		if !disk.HasRdev(mode) {
			rdev = 0
		}
		describe(&out, p, mode, st.UID, st.GID, rdev, uint32(st.Nlink), st.Size, int64(st.Mtime), st.MtimeNs, link, xs, content)
		if info.IsDir() {
			entries, err := fs.ReadDir(fsys, p)
			if err != nil {
				t.Fatalf("go-erofs: read directory %q: %v", p, err)
			}
			for _, e := range entries {
				sub, err := e.Info()
				if err != nil {
					t.Fatal(err)
				}
				walk(path.Join(p, e.Name()), sub)
			}
		}
	}
	info, err := fs.Stat(fsys, ".")
	if err != nil {
		t.Fatal(err)
	}
	walk(".", info)
	return sortLines(out)
}

// rawMode is the inverse of mkdaxfs.GoMode.
func rawMode(m fs.FileMode) uint32 {
	r := uint32(m.Perm())
	for _, b := range []struct {
		go_ fs.FileMode
		raw uint32
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if m&b.go_ != 0 {
			r |= b.raw
		}
	}
	switch {
	case m&fs.ModeDir != 0:
		r |= disk.TypeDir
	case m&fs.ModeSymlink != 0:
		r |= disk.TypeSymlink
	case m&fs.ModeNamedPipe != 0:
		r |= disk.TypeFIFO
	case m&fs.ModeSocket != 0:
		r |= disk.TypeSocket
	case m&fs.ModeCharDevice != 0:
		r |= disk.TypeChar
	case m&fs.ModeDevice != 0:
		r |= disk.TypeBlock
	default:
		r |= disk.TypeRegular
	}
	return r
}
