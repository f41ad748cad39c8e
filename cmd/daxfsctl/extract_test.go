package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

func ctl(args ...string) (out, errOut string, code int) {
	var o, e bytes.Buffer
	code = run(context.Background(), append([]string{"daxfsctl"}, args...), &o, &e)
	return o.String(), e.String(), code
}

func sampleImage(t *testing.T) string {
	t.Helper()
	img := filepath.Join(t.TempDir(), "s.img")
	if err := writeSample(img, false); err != nil {
		t.Fatal(err)
	}
	return img
}

func TestExtract(t *testing.T) {
	testutil.Root(t)
	img, dest := sampleImage(t), filepath.Join(t.TempDir(), "out")
	if _, errOut, code := ctl("image", "extract", img, "/", dest); code != 0 {
		t.Fatal(errOut)
	}
	if out, errOut, code := ctl("image", "diff", img, dest); code != 0 {
		t.Errorf("the copy differs:\n%s%s", out, errOut)
	}
	// Beside what diff compares: files with holes, and the same inode.
	var a, b, zeros unix.Stat_t
	for name, st := range map[string]*unix.Stat_t{"dir/linked": &a, "dir/again": &b, "dir/zeros": &zeros} {
		if err := unix.Lstat(filepath.Join(dest, name), st); err != nil {
			t.Fatal(err)
		}
	}
	if a.Ino != b.Ino || a.Nlink != 2 {
		t.Errorf("hard links are inodes %d and %d with %d names", a.Ino, b.Ino, a.Nlink)
	}
	if zeros.Size != 20003 || zeros.Blocks*512 > 8192 {
		t.Errorf("file of 20003 bytes, nearly all zeros, takes %d", zeros.Blocks*512)
	}

	// Nothing is overwritten.
	for _, args := range [][]string{{"/", dest}, {"/dir/linked", dest}, {"/dir/linked", dest + "/link"}} {
		_, errOut, code := ctl(append([]string{"image", "extract", img}, args...)...)
		if code != 1 || !strings.Contains(errOut, "exists") {
			t.Errorf("extract %q: status %d, %s", args, code, errOut)
		}
	}
	if _, _, code := ctl("image", "diff", img, dest); code != 0 {
		t.Error("the copy was changed")
	}
}

func TestExtractPart(t *testing.T) {
	testutil.Root(t)
	img, dir := sampleImage(t), t.TempDir()
	// An empty directory will do; links to what is not copied stay plain files.
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, errOut, code := ctl("image", "extract", img, "dir", sub); code != 0 {
		t.Fatal(errOut)
	}
	fi, err := os.Stat(sub)
	if err != nil || fi.Mode().Perm() != 0o777 || fi.Mode()&os.ModeSticky == 0 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	one := filepath.Join(dir, "one")
	if _, errOut, code := ctl("image", "extract", img, "/dir/linked", one); code != 0 {
		t.Fatal(errOut)
	}
	var st unix.Stat_t
	if err := unix.Lstat(one, &st); err != nil || st.Nlink != 1 || st.Mode != unix.S_IFREG|0o4755 || st.Uid != 1000 || st.Mtim.Nsec != 123456789 {
		t.Errorf("%+v, %v", st, err)
	}
	caps := make([]byte, 64)
	if n, err := unix.Lgetxattr(one, "security.capability", caps); err != nil || n != 20 {
		t.Errorf("capability of %d bytes, %v", n, err)
	}
	null := filepath.Join(dir, "null")
	if _, errOut, code := ctl("image", "extract", img, "null", null); code != 0 {
		t.Fatal(errOut)
	}
	if err := unix.Lstat(null, &st); err != nil || st.Mode != unix.S_IFCHR|0o666 || st.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("%+v, %v", st, err)
	}
}

// A failure leaves nothing behind, and says where it was.
func TestExtractFails(t *testing.T) {
	testutil.Root(t)
	img, dir := sampleImage(t), t.TempDir()
	t.Cleanup(func() { testutil.UnmountBelow(t, dir) })
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Fatal(err)
	}
	_, errOut, code := ctl("image", "extract", img, "/", filepath.Join(dir, "x"))
	if code != 1 {
		t.Fatalf("status %d", code)
	}
	wants(t, errOut, "daxfsctl: extract to "+dir+"/x: /", "no space left on device")
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	_, errOut, code = ctl("image", "extract", img, "/", filepath.Join(dir, "no/such"))
	if code != 1 {
		t.Errorf("status %d", code)
	}
	wants(t, errOut, "no such file or directory")
}
