package inside

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/fstree"
)

// walk records a tree. The content of Big would take an emulated processor a
// minute to digest: TestBigFile compares it.
func walk(t *testing.T, root string) fstree.Tree {
	t.Helper()
	tree, err := fstree.Walk(root, fstree.Options{NoContent: true})
	must(t, err)
	for path, e := range tree {
		if e.Type() != unix.S_IFREG || path == Big {
			continue
		}
		b, err := os.ReadFile(filepath.Join(root, path))
		must(t, err)
		e.SHA256 = fmt.Sprintf("%x", sha256.Sum256(b))
		tree[path] = e
	}
	return tree
}

// diff leaves out the content that walk leaves out and the one that the host
// changes.
func diff(a, b fstree.Tree) []fstree.Difference {
	rest, _ := fstree.Excused(fstree.Diff(a, b), func(d fstree.Difference) (string, bool) {
		return "content", (d.Path == Live || d.Path == Big) && d.Field == "sha256"
	})
	return rest
}

// TestTree: types, modes, owners, times, sizes, link counts, device numbers,
// targets, attributes, contents and hard links are those of the source.
func TestTree(t *testing.T) {
	onViews(t, "native v8 pool nopages", func(t *testing.T, m *mounted) {
		got := walk(t, m.root)
		if d := diff(m.Tree, got); len(d) > 0 {
			t.Errorf("%d differences, source != mounted:\n%s", len(d), fstree.Format(d, 20))
		}
		if len(got) < ManyNames {
			t.Errorf("%d names, the source has more", len(got))
		}
	})
}

// TestTwin: an image whose data is all another one's too.
func TestTwin(t *testing.T) {
	daxfsOnly(t)
	want := manifest(t, ImageTwin).Tree
	mountDaxfs(t, ImagePool, "")
	got := walk(t, mountDaxfs(t, ImageTwin, ""))
	if d := diff(want, got); len(d) > 0 {
		t.Errorf("%d differences, source != mounted:\n%s", len(d), fstree.Format(d, 20))
	}
}

// TestTreeThroughOverlay: overlayfs takes nothing away.
func TestTreeThroughOverlay(t *testing.T) {
	onViews(t, "overlay", func(t *testing.T, m *mounted) {
		got := walk(t, m.root)
		d, _ := fstree.Excused(diff(m.Tree, got), func(d fstree.Difference) (string, bool) {
			return "the root is the upper directory", d.Path == "." && d.Field == "mtime"
		})
		if len(d) > 0 {
			t.Errorf("%d differences, source != mounted:\n%s", len(d), fstree.Format(d, 20))
		}
	})
}

// TestTreeLikeErofs: the kernel's own reader of the EROFS view shows the same,
// links of directories included. Its inode numbers are places in the image.
func TestTreeLikeErofs(t *testing.T) {
	daxfsOnly(t)
	erofs, daxfs := mountErofs(t), mountDaxfs(t, ImageNative, "")
	want, got := walk(t, erofs), walk(t, daxfs)
	if d := diff(want, got); len(d) > 0 {
		t.Errorf("%d differences, EROFS != DAXFS:\n%s", len(d), fstree.Format(d, 20))
	}
	for path := range got {
		var e, d unix.Stat_t
		must(t, unix.Lstat(filepath.Join(erofs, path), &e))
		must(t, unix.Lstat(filepath.Join(daxfs, path), &d))
		if e.Nlink != d.Nlink || e.Blksize != d.Blksize {
			t.Errorf("%q: nlink %d, blksize %d; EROFS says %d, %d", path, d.Nlink, d.Blksize, e.Nlink, e.Blksize)
		}
	}
}

// TestLikeCopy: cp -a to another file system makes the same tree.
func TestLikeCopy(t *testing.T) {
	onViews(t, "native v8 pool", func(t *testing.T, m *mounted) {
		disk := ext4(t, 240<<20)
		// The large file would only take long, and sockets are what cp skips.
		for _, dir := range []string{"types", "modes", "times", "links", "symlinks", "names", "xattr", "acl", "bin", "lib", "data"} {
			run(t, "cp", "-a", m.path(dir), disk)
			want, err := fstree.Walk(m.path(dir), fstree.Options{})
			must(t, err)
			got, err := fstree.Walk(filepath.Join(disk, dir), fstree.Options{})
			must(t, err)
			d, _ := fstree.Excused(fstree.Diff(want, got), func(d fstree.Difference) (string, bool) {
				// links/ has one name of a file that types/ has too.
				return "a link out of the directory", d.Path == "fifo" && d.Field == "nlink"
			})
			if len(d) > 0 {
				t.Errorf("%s: %d differences, original != copy:\n%s", dir, len(d), fstree.Format(d, 20))
			}
		}
	})
}

// TestTimes: what the format does not store is the modification time.
func TestTimes(t *testing.T) {
	onViews(t, "native v8", func(t *testing.T, m *mounted) {
		for _, rel := range []string{".", "times/last-ns", "times/before-epoch", "symlinks/dangling", "types/dir"} {
			var st unix.Stat_t
			must(t, unix.Lstat(m.path(rel), &st))
			if st.Atim != st.Mtim || st.Ctim != st.Mtim {
				t.Errorf("%s: atime %v, ctime %v, want the mtime, %v", rel, st.Atim, st.Ctim, st.Mtim)
			}
		}
	})
}

// TestInodeNumbers: one for each file, the same for its names, as the whole of
// st_ino in readdir too.
func TestInodeNumbers(t *testing.T) {
	onViews(t, "native v8 pool", func(t *testing.T, m *mounted) {
		names := map[uint64]string{}
		err := filepath.WalkDir(m.root, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			rel, err := filepath.Rel(m.root, path)
			if err != nil {
				return err
			}
			// links: the whole group has the name that comes first.
			id := rel
			if l := m.Tree[rel].Links; l != nil {
				id = l[0]
			}
			if other, ok := names[st.Ino]; ok && other != id {
				t.Errorf("%q and %q both have inode number %d", rel, other, st.Ino)
			}
			names[st.Ino] = id
			return nil
		})
		must(t, err)
		same := map[uint64]bool{}
		for _, rel := range []string{"links/a", "links/b", "links/sub/c"} {
			var st unix.Stat_t
			must(t, unix.Stat(m.path(rel), &st))
			same[st.Ino] = true
		}
		if len(same) != 1 {
			t.Errorf("three names of one file have inode numbers %v", same)
		}
	})
}

// TestSymlinks are followed, as far as they lead somewhere.
func TestSymlinks(t *testing.T) {
	onViews(t, "native v8 overlay", func(t *testing.T, m *mounted) {
		for _, c := range []struct {
			path string
			want error
		}{
			{"symlinks/relative", nil},
			{"symlinks/dir/sub/c", nil},
			{"symlinks/long-way", nil}, // 4010 bytes of target
			{"symlinks/dangling", unix.ENOENT},
			{"symlinks/loop", unix.ELOOP},
			{"symlinks/long-255", unix.ENOENT},
			{"symlinks/long-4095", unix.ENAMETOOLONG},
			{"symlinks/relative/below", unix.ENOTDIR},
		} {
			var st unix.Stat_t
			if err := unix.Stat(m.path(c.path), &st); !errors.Is(err, c.want) {
				t.Errorf("stat %s: %v, want %v", c.path, err, c.want)
			}
		}
		// A buffer that is too small gets the beginning.
		b := make([]byte, 10)
		n, err := unix.Readlink(m.path("symlinks/long-4095"), b)
		if err != nil || string(b[:n]) != strings.Repeat("t", 10) {
			t.Errorf("readlink into 10 bytes: %q, %v", b[:n], err)
		}
		if _, err := unix.Readlink(m.path("types/file"), b); err != unix.EINVAL {
			t.Errorf("readlink of a file: %v, want %v", err, unix.EINVAL)
		}
		if _, err := unix.Open(m.path("symlinks/relative"), unix.O_RDONLY|unix.O_NOFOLLOW, 0); err != unix.ELOOP {
			t.Errorf("open a symlink with O_NOFOLLOW: %v, want %v", err, unix.ELOOP)
		}
	})
}

// TestSpecialFiles: devices, FIFOs and sockets are the kernel's, not ours.
func TestSpecialFiles(t *testing.T) {
	onViews(t, "native pool overlay", func(t *testing.T, m *mounted) {
		null, err := os.OpenFile(m.path("types/null"), os.O_RDWR, 0)
		must(t, err)
		defer null.Close()
		if n, err := null.Write([]byte("gone")); n != 4 || err != nil {
			t.Errorf("write to the null device: %d, %v", n, err)
		}
		if n, err := null.Read(make([]byte, 4)); n != 0 {
			t.Errorf("read the null device: %d, %v, want the end", n, err)
		}

		fifo, err := os.OpenFile(m.path("types/fifo"), os.O_RDWR, 0)
		must(t, err)
		defer fifo.Close()
		other, err := os.OpenFile(m.path("links/fifo"), os.O_RDWR, 0)
		must(t, err)
		defer other.Close()
		if _, err := fifo.WriteString("through"); err != nil {
			t.Errorf("write to the FIFO: %v", err)
		}
		if m.overlay {
			other = fifo // without an index, overlayfs has an inode for each name
		}
		b := make([]byte, 16)
		if n, err := other.Read(b); string(b[:n]) != "through" {
			t.Errorf("read from the FIFO by its other name: %q, %v", b[:n], err)
		}

		for _, c := range []struct {
			path string
			want error
		}{
			{"types/socket", unix.ENXIO},
			{"types/char", unix.ENXIO}, // no such driver
			{"types/block", unix.ENXIO},
		} {
			if fd, err := unix.Open(m.path(c.path), unix.O_RDONLY, 0); !errors.Is(err, c.want) {
				t.Errorf("open %s: %d, %v, want %v", c.path, fd, err, c.want)
			}
		}
	})
}

// TestNodev: a mount without devices has none that can be opened.
func TestNodev(t *testing.T) {
	daxfsOnly(t)
	dir := mountAt(t, "none", "daxfs", unix.MS_RDONLY|unix.MS_NODEV, options(ImageNative, ""))
	if _, err := unix.Open(filepath.Join(dir, "types/null"), unix.O_RDONLY, 0); err != unix.EACCES {
		t.Errorf("open a device on a nodev mount: %v, want %v", err, unix.EACCES)
	}
}
