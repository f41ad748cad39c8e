package mkdaxfs_test

import (
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// TestKernelAgrees mounts the EROFS view and compares every file with our own
// reader.
func TestKernelAgrees(t *testing.T) {
	testutil.Root(t)
	f, img, _ := build(t, mkdaxfs.BuildOptions{}, func(b *mkdaxfs.Builder) *mkdaxfs.Tree { return nastyTree(t, b, 60000) })
	at := t.TempDir()
	if err := unix.Mount(f.Name(), at, "erofs", unix.MS_RDONLY, ""); err != nil {
		testutil.Missing(t, "root", "mount image file as EROFS (Linux 6.12 or later): %v", err)
	}
	defer func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	}()
	sameLines(t, "kernel", ownLines(t, img), mountedLines(t, at))
}

// mountedLines is what the kernel shows below a directory.
func mountedLines(t *testing.T, root string) []line {
	t.Helper()
	var out []line
	buf := make([]byte, 1<<17)
	err := filepath.Walk(root, func(p string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		var link, content string
		size := st.Size
		switch st.Mode & disk.TypeMask {
		case disk.TypeSymlink:
			if link, err = os.Readlink(p); err != nil {
				return err
			}
		case disk.TypeRegular:
			f, err := os.Open(p)
			if err != nil {
				return err
			}
			content = hashReader(t, f)
			f.Close()
		}
		n, err := unix.Llistxattr(p, buf)
		if err != nil {
			return err
		}
		var xs []disk.Xattr
		for _, name := range strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
			if name == "" {
				continue
			}
			value := make([]byte, 1<<16)
			m, err := unix.Lgetxattr(p, name, value)
			if err != nil {
				return err
			}
			xs = append(xs, disk.Xattr{Name: name, Value: string(value[:m])})
		}
		sort.Slice(xs, func(i, j int) bool { return xs[i].Name < xs[j].Name })
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		var rdev uint32
		if disk.HasRdev(st.Mode) {
			rdev = disk.EncodeDev(unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		describe(&out, rel, st.Mode, st.Uid, st.Gid, rdev, uint32(st.Nlink), size, st.Mtim.Sec, uint32(st.Mtim.Nsec), link, xs, content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return sortLines(out)
}
