package convert_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/convert"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// discard is a Store that reads everything and keeps nothing.
type discard struct{}

func (discard) Put(_ context.Context, r io.Reader, size int64) (mkdaxfs.Extent, error) {
	_, err := io.CopyN(io.Discard, r, size)
	return mkdaxfs.Extent{}, err
}

// A container's root is an overlay whose layers are on different file systems:
// its files then have device numbers of their own, and inode numbers repeat.
func TestFromDirReadsOverlay(t *testing.T) {
	testutil.Root(t)
	dir := t.TempDir()
	t.Cleanup(func() { testutil.UnmountBelow(t, dir) })
	at := func(name string) string { return filepath.Join(dir, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"lower", "upper", "merged"} {
		must(os.Mkdir(at(name), 0o755))
	}
	must(unix.Mount("tmpfs", at("lower"), "tmpfs", 0, ""))
	must(unix.Mount("tmpfs", at("upper"), "tmpfs", 0, ""))
	// The same operations give the same inode numbers on both.
	for _, sub := range []string{"lower", "upper/fs"} {
		must(os.MkdirAll(at(sub+"/dir"), 0o755))
		if sub == "lower" {
			must(os.Mkdir(at("lower/pad"), 0o755))
		}
		must(os.WriteFile(at(sub+"/dir/"+filepath.Base(sub)), []byte(sub), 0o644))
		must(os.Link(at(sub+"/dir/"+filepath.Base(sub)), at(sub+"/dir/"+filepath.Base(sub)+"-link")))
	}
	must(os.Mkdir(at("upper/work"), 0o755))
	must(unix.Mount("overlay", at("merged"), "overlay", 0,
		fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,xino=off", at("lower"), at("upper/fs"), at("upper/work"))))
	var root, lower unix.Stat_t
	must(unix.Lstat(at("merged"), &root))
	must(unix.Lstat(at("merged/dir/lower"), &lower))
	if root.Dev == lower.Dev {
		t.Fatalf("all of the overlay is on device %#x: the test proves nothing", root.Dev)
	}

	tree, err := convert.FromDir(context.Background(), at("merged"), discard{}, convert.DirOptions{})
	must(err)
	node := func(path string) *mkdaxfs.Node {
		n := tree.Find(path)
		if n == nil {
			t.Fatalf("%s is missing", path)
		}
		return n
	}
	if node("dir/lower") != node("dir/lower-link") || node("dir/fs") != node("dir/fs-link") {
		t.Error("hard links are not one node")
	}
	if node("dir/lower") == node("dir/fs") {
		t.Error("files of two layers are one node")
	}

	// A mount below is still refused.
	must(unix.Mount("tmpfs", at("merged/pad"), "tmpfs", 0, ""))
	if _, err := convert.FromDir(context.Background(), at("merged"), discard{}, convert.DirOptions{}); err == nil {
		t.Error("a file system mounted below was read")
	}
}
