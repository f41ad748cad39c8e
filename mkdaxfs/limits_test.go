package mkdaxfs_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// mountErofs mounts the EROFS view with the kernel.
func mountErofs(t *testing.T, image string) string {
	t.Helper()
	testutil.Root(t)
	at := t.TempDir()
	if err := unix.Mount(image, at, "erofs", unix.MS_RDONLY, ""); err != nil {
		testutil.Missing(t, "root", "mount image file as EROFS (Linux 6.12 or later): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	return at
}

// TestMillionNames: one directory, a million entries.
func TestMillionNames(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds and 600 MB")
	}
	const n = 1_000_000
	name := func(i int) string { return fmt.Sprintf("entry-%08d", i*7919%n) }
	f, img, stats := build(t, mkdaxfs.BuildOptions{}, func(*mkdaxfs.Builder) *mkdaxfs.Tree {
		root, d := dir(), dir()
		root.Set("d", d)
		nodes := make([]mkdaxfs.Node, n)
		for i := range nodes {
			nodes[i] = mkdaxfs.Node{Mode: disk.TypeRegular | 0o644, Mtime: int64(i)}
			d.Set(name(i), &nodes[i])
		}
		tr := &mkdaxfs.Tree{Root: root}
		tr.Sort()
		return tr
	})
	t.Logf("%d bytes of metadata, %d an entry", stats.MetaBytes, stats.MetaBytes/n)
	fsys := img.FS()
	for _, i := range []int{0, 1, n / 2, n - 1} {
		fi, err := fsys.Lstat("d/" + name(i))
		if err != nil || fi.Sys().(*disk.Inode).Mtime != int64(i) {
			t.Errorf("entry %d: %v, %v", i, fi, err)
		}
	}
	if _, err := fsys.Lstat("d/entry-x"); !os.IsNotExist(err) {
		t.Errorf("a name that is not there: %v", err)
	}
	at := mountErofs(t, f.Name())
	d, err := os.Open(at + "/d")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil || len(names) != n {
		t.Errorf("the kernel lists %d names, %v", len(names), err)
	}
	for _, i := range []int{0, 1, n / 2, n - 1} {
		fi, err := os.Lstat(at + "/d/" + name(i))
		if err != nil || fi.ModTime().Unix() != int64(i) {
			t.Errorf("the kernel: entry %d: %v, %v", i, fi, err)
		}
	}
}

// mostlyZeros is a file of zeros with some bytes at its end.
type mostlyZeros struct {
	left int64
	end  string
}

func (z *mostlyZeros) Read(p []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), z.left))
	clear(p[:n])
	if tail := int64(len(z.end)); z.left-int64(n) < tail {
		// Which part of the end is in p.
		for i := range n {
			if at := z.left - int64(i); at <= tail {
				p[i] = z.end[tail-at]
			}
		}
	}
	z.left -= int64(n)
	return n, nil
}

// TestLargeSparseFile: more than 4 GiB, of which only the end is there. The
// image must not take the space, and both views must find the end.
func TestLargeSparseFile(t *testing.T) {
	if testing.Short() {
		t.Skip("reads 10 GiB of zeros")
	}
	const size, end = 5<<30 + 123, "the end"
	for _, spool := range []bool{false, true} {
		f, img, stats := build(t, mkdaxfs.BuildOptions{Spool: spool}, func(b *mkdaxfs.Builder) *mkdaxfs.Tree {
			n := &mkdaxfs.Node{Mode: disk.TypeRegular | 0o644, Size: size}
			var err error
			if n.Extent, err = b.Put(t.Context(), &mostlyZeros{size, end}, size); err != nil {
				t.Fatal(err)
			}
			root := dir()
			root.Set("sparse", n)
			root.Set("behind", file(t, b, []byte("behind")))
			tr := &mkdaxfs.Tree{Root: root}
			tr.Sort()
			return tr
		})
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		if stats.Size < size || st.Blocks*512 > 8<<20 {
			t.Errorf("spool %v: image of %d bytes takes %d", spool, stats.Size, st.Blocks*512)
		}
		read := func(r io.ReaderAt) string {
			b := make([]byte, len(end)+1)
			if _, err := r.ReadAt(b, size-int64(len(b))); err != nil && err != io.EOF {
				t.Error(err)
			}
			return string(b)
		}
		fl, err := img.FS().Open("sparse")
		if err != nil {
			t.Fatal(err)
		}
		if got := read(fl.(io.ReaderAt)); got != "\x00"+end {
			t.Errorf("spool %v: end reads %q", spool, got)
		}
		at := mountErofs(t, f.Name())
		k, err := os.Open(at + "/sparse")
		if err != nil {
			t.Fatal(err)
		}
		if got := read(k); got != "\x00"+end {
			t.Errorf("spool %v: the kernel reads %q", spool, got)
		}
		if fi, err := k.Stat(); err != nil || fi.Size() != size {
			t.Errorf("the kernel: %v, %v", fi, err)
		}
		k.Close()
	}
}

// TestHoles copies files with holes and data in all kinds of places through
// the spool, which reads no holes, and from a file.
func TestHoles(t *testing.T) {
	const mb = 1 << 20
	var files [][]byte
	for _, pieces := range [][][2]int{
		{}, {{0, 1}}, {{4 * mb, 1}}, {{4*mb + 4095, 2}}, {{2*mb - 1, mb}}, {{65536, 4096}, {3 * mb, 70000}}, {{1, 1}, {mb + 5, 7}, {mb + 80000, 9}, {5*mb - 1, 1}},
	} {
		b := make([]byte, 5*mb)
		for i, p := range pieces {
			copy(b[p[0]:p[0]+p[1]], pattern(p[1], uint64(i)))
		}
		files = append(files, b, b[:len(b)-1], b[:len(b)-4095], b[:len(b)-4097])
	}
	tmp := t.TempDir()
	for _, spool := range []bool{false, true} {
		_, img, _ := build(t, mkdaxfs.BuildOptions{Spool: spool}, func(b *mkdaxfs.Builder) *mkdaxfs.Tree {
			root := dir()
			for i, c := range files {
				f, err := os.Create(fmt.Sprintf("%s/%d", tmp, i))
				if err != nil {
					t.Fatal(err)
				}
				// Written block by block, so that the file has holes.
				for off := 0; off < len(c); off += disk.BlockSize {
					if p := c[off:min(off+disk.BlockSize, len(c))]; len(bytes.Trim(p, "\x00")) > 0 {
						if _, err := f.WriteAt(p, int64(off)); err != nil {
							t.Fatal(err)
						}
					}
				}
				if err := f.Truncate(int64(len(c))); err != nil {
					t.Fatal(err)
				}
				n := &mkdaxfs.Node{Mode: disk.TypeRegular, Size: int64(len(c))}
				if n.Extent, err = b.Put(t.Context(), f, n.Size); err != nil {
					t.Fatal(err)
				}
				f.Close()
				root.Set(fmt.Sprint(i), n)
			}
			tr := &mkdaxfs.Tree{Root: root}
			tr.Sort()
			return tr
		})
		for i, c := range files {
			if got, err := readFS(img, fmt.Sprint(i)); err != nil || !bytes.Equal(got, c) {
				t.Errorf("spool %v: file %d differs, %v", spool, i, err)
			}
		}
	}
}

// TestTooLarge: what no image can hold is refused before it is read.
func TestTooLarge(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "image")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, share := range []bool{false, true} {
		b, err := mkdaxfs.NewBuilder(f, mkdaxfs.BuildOptions{Share: share})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Put(t.Context(), &mostlyZeros{1 << 62, ""}, 1<<62); err == nil || !strings.Contains(err.Error(), "file of 4611686018427387904 bytes") {
			t.Errorf("share %v: %v", share, err)
		}
		_ = b.Close()
	}
}

// TestLongPaths: 2 KiB, and as deep as Linux goes.
func TestLongPaths(t *testing.T) {
	long := strings.TrimSuffix(strings.Repeat(strings.Repeat("p", 127)+"/", 16), "/") // 2047 bytes
	deep := strings.TrimSuffix(strings.Repeat("d/", 2047), "/")                       // 4093 bytes
	f, img, _ := build(t, mkdaxfs.BuildOptions{}, func(b *mkdaxfs.Builder) *mkdaxfs.Tree {
		root := dir()
		for _, p := range []string{long, deep} {
			at := root
			elems := strings.Split(p, "/")
			for _, e := range elems[:len(elems)-1] {
				next := at.Lookup(e)
				if next == nil {
					next = dir()
					at.Set(e, next)
				}
				at = next
			}
			at.Set(elems[len(elems)-1], file(t, b, []byte("found")))
		}
		tr := &mkdaxfs.Tree{Root: root}
		tr.Sort()
		return tr
	})
	for _, p := range []string{long, deep} {
		if b, err := readFS(img, p); err != nil || string(b) != "found" {
			t.Errorf("path of %d bytes: %q, %v", len(p), b, err)
		}
	}
	at := mountErofs(t, f.Name())
	t.Chdir(at) // the mount point would make them too long
	for _, p := range []string{long, deep} {
		if b, err := os.ReadFile(p); err != nil || string(b) != "found" {
			t.Errorf("the kernel: path of %d bytes: %q, %v", len(p), b, err)
		}
	}
}

func readFS(img *mkdaxfs.Image, p string) ([]byte, error) {
	f, err := img.FS().Open(p)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(f)
}

// TestFourMillionInodes builds and checks an image of 4 million files, and
// bounds the memory that takes. It needs 3 GB and a minute.
func TestFourMillionInodes(t *testing.T) {
	if os.Getenv("DAXFS_TEST_LARGE") == "" {
		t.Skip("set DAXFS_TEST_LARGE=1 to build an image of 4 million inodes")
	}
	const dirs, each = 4000, 1000
	f, err := os.CreateTemp(t.TempDir(), "image")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	peak := func(what string) {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		t.Logf("%s: heap %d MB, from the system %d MB", what, m.HeapAlloc>>20, m.Sys>>20)
		if limit := uint64(6 << 30); m.Sys > limit {
			t.Errorf("%s: %d bytes, want at most %d", what, m.Sys, limit)
		}
	}
	stats, err := buildTo(t, f, mkdaxfs.BuildOptions{}, func(*mkdaxfs.Builder) *mkdaxfs.Tree {
		root := dir()
		for i := range dirs {
			d := dir()
			root.Set(fmt.Sprintf("dir-%04d", i), d)
			nodes := make([]mkdaxfs.Node, each)
			for j := range nodes {
				nodes[j] = mkdaxfs.Node{Mode: disk.TypeRegular | 0o644, Mtime: int64(i), MtimeNsec: uint32(j)}
				d.Children = append(d.Children, mkdaxfs.Child{Name: fmt.Sprintf("file-%09d", j), Node: &nodes[j]})
			}
		}
		tr := &mkdaxfs.Tree{Root: root}
		tr.Sort()
		peak("tree")
		return tr
	})
	if err != nil {
		t.Fatal(err)
	}
	peak("image")
	if stats.Inodes != dirs*each+dirs+1 {
		t.Errorf("%d inodes", stats.Inodes)
	}
	img, err := mkdaxfs.Open(f, stats.Size)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mkdaxfs.Check(img, 0); err != nil {
		t.Fatal(err)
	}
	peak("check")
	at := mountErofs(t, f.Name())
	fi, err := os.Lstat(at + "/dir-3999/file-000000999")
	if err != nil || fi.ModTime().Unix() != 3999 || fi.ModTime().Nanosecond() != 999 {
		t.Errorf("the kernel: %v, %v", fi, err)
	}
}
