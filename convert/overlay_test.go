package convert

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/fstree"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// overlay is a mounted overlay in whose upper directory tests write.
type overlay struct{ lower, upper, merged string }

func newOverlay(t *testing.T) *overlay {
	t.Helper()
	testutil.Root(t)
	base := t.TempDir()
	o := &overlay{base + "/lower", base + "/upper", base + "/merged"}
	for _, d := range []string{o.lower, o.upper, o.merged, base + "/work"} {
		must(t, os.Mkdir(d, 0o755))
	}
	t.Cleanup(func() { _ = unix.Unmount(o.merged, unix.MNT_DETACH) })
	return o
}

func (o *overlay) mount(t *testing.T, opts string) {
	t.Helper()
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s/work%s", o.lower, o.upper, filepath.Dir(o.upper), opts)
	if err := unix.Mount("overlay", o.merged, "overlay", 0, data); err != nil {
		testutil.Missing(t, "root", "mount overlay: %v", err)
	}
}

// same compares the overlay mount with lower and upper directory, read and
// merged. Overlayfs counts the links of a lower file although upper layers
// removed some of its names; so link counts are compared through the names that
// share an inode.
func (o *overlay) same(t *testing.T) {
	t.Helper()
	want, err := fstree.Walk(o.merged, fstree.Options{})
	must(t, err)
	s := new(memStore)
	lower, err := FromDir(context.Background(), o.lower, s, DirOptions{})
	must(t, err)
	upper, err := FromDir(context.Background(), o.upper, s, DirOptions{Upper: true})
	must(t, err)
	tree, err := Merge([]*mkdaxfs.Tree{lower, upper})
	must(t, err)
	for p, e := range want {
		if e.Mode == 0 {
			delete(want, p) // readdir shows a name that does not exist
		}
	}
	diffs, _ := fstree.Excused(fstree.Diff(want, asTree(t, s, tree)), func(d fstree.Difference) (string, bool) {
		return "link count", d.Field == "nlink"
	})
	if len(diffs) > 0 {
		t.Fatalf("overlayfs and the merged layers differ:\n%s", fstree.Format(diffs, 20))
	}
	checkTree(t, tree)
}

// TestOverlayUpper does to an overlay what containers do.
func TestOverlayUpper(t *testing.T) {
	o := newOverlay(t)
	for i := range 3 {
		for j := range 3 {
			write(t, fmt.Sprintf("%s/d%d/s%d/f", o.lower, i, j), fmt.Sprint(i, j))
			write(t, fmt.Sprintf("%s/d%d/f%d", o.lower, i, j), fmt.Sprint(i, j))
		}
	}
	must(t, os.Link(o.lower+"/d0/f0", o.lower+"/d1/hard"))
	must(t, os.Symlink("../d0", o.lower+"/d2/sym"))
	must(t, unix.Lsetxattr(o.lower+"/d0", "user.k", []byte("v"), 0))
	o.mount(t, "")
	m := o.merged
	write(t, m+"/d0/f0", "changed") // breaks the hard link
	must(t, os.Remove(m+"/d0/f1"))  // whiteout
	must(t, os.RemoveAll(m+"/d0/s0"))
	must(t, os.RemoveAll(m+"/d0/s1"))
	must(t, os.Mkdir(m+"/d0/s1", 0o700)) // opaque
	write(t, m+"/d0/s1/new", "new")
	must(t, os.RemoveAll(m+"/d1"))
	write(t, m+"/d1", "file now") // directory to file
	must(t, os.Remove(m+"/d2/f0"))
	must(t, os.Mkdir(m+"/d2/f0", 0o755)) // file to directory
	must(t, os.Remove(m+"/d2/sym"))
	must(t, os.Mkdir(m+"/d2/sym", 0o755)) // symlink to directory
	must(t, os.Rename(m+"/d2/f1", m+"/d2/renamed"))
	must(t, os.Rename(m+"/d2/f2", m+"/d0/f2")) // over another
	must(t, os.Link(m+"/d2/renamed", m+"/d2/again"))
	must(t, os.Chmod(m+"/d2/s0", 0o711)) // metadata only
	must(t, os.Chown(m+"/d2/s1/f", 7, 8))
	must(t, unix.Lsetxattr(m+"/d2/s2", "user.k", []byte("v"), 0))
	must(t, unix.Lremovexattr(m+"/d0", "user.k"))
	must(t, unix.Mknod(m+"/d2/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	o.same(t)

	// After a remount nothing is in overlayfs's caches.
	must(t, unix.Unmount(o.merged, 0))
	o.mount(t, "")
	o.same(t)
}

// TestOverlayRandom does random things for as long as it likes.
func TestOverlayRandom(t *testing.T) {
	testutil.Root(t)
	rounds := 30
	if testing.Short() {
		rounds = 5
	}
	for seed := range rounds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(uint64(seed), 3))
			o := newOverlay(t)
			mess(r, o.lower, 60)
			o.mount(t, "")
			mess(r, o.merged, 80)
			must(t, unix.Unmount(o.merged, 0))
			o.mount(t, "")
			o.same(t)
		})
	}
}

// mess does n random things below root. What the kernel refuses is left.
func mess(r *rand.Rand, root string, n int) {
	p := func() string { return filepath.Join(root, randomPath(r)) }
	for range n {
		a, b := p(), p()
		switch r.IntN(14) {
		case 0, 1:
			_ = os.MkdirAll(a, 0o755)
		case 2, 3, 4:
			_ = os.MkdirAll(filepath.Dir(a), 0o755)
			_ = os.WriteFile(a, []byte(fmt.Sprint(r.IntN(1000))), 0o644)
		case 5:
			_ = os.Remove(a)
		case 6:
			_ = os.RemoveAll(a)
		case 7, 8:
			_ = os.Rename(a, b)
		case 9:
			_ = os.Link(a, b)
		case 10:
			_ = os.Symlink(randomTarget(r), a)
		case 11:
			_ = os.Lchown(a, r.IntN(5), r.IntN(5))
		case 12:
			_ = unix.Lsetxattr(a, "user.k"+fmt.Sprint(r.IntN(2)), []byte(fmt.Sprint(r.IntN(9))), 0)
		case 13:
			ts := []unix.Timespec{{}, {Sec: r.Int64N(1e9), Nsec: r.Int64N(1e9)}}
			_ = unix.UtimesNanoAt(unix.AT_FDCWD, a, ts, unix.AT_SYMLINK_NOFOLLOW)
		}
	}
}

// TestUpperRedirects: what makes an upper directory depend on more than paths is
// refused, and named.
func TestUpperRedirects(t *testing.T) {
	for _, tt := range []struct {
		name, opts, want string
		do               func(t *testing.T, m string)
	}{
		{"renamed directory", ",redirect_dir=on", `"there": overlayfs attribute "trusted.overlay.redirect"`,
			func(t *testing.T, m string) { must(t, os.Rename(m+"/d", m+"/there")) }},
		{"metadata only copy-up", ",metacopy=on,redirect_dir=on", `"d/f": overlayfs attribute "trusted.overlay.metacopy"`,
			func(t *testing.T, m string) { must(t, os.Chmod(m+"/d/f", 0o600)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := newOverlay(t)
			write(t, o.lower+"/d/f", "x")
			o.mount(t, tt.opts)
			tt.do(t, o.merged)
			must(t, unix.Unmount(o.merged, 0))
			_, err := FromDir(context.Background(), o.upper, new(memStore), DirOptions{Upper: true})
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) || !errdefs.IsFailedPrecondition(err) {
				t.Errorf("error %v, want %q and failed precondition", err, tt.want)
			}
		})
	}
}

// TestUpperXattrWhiteout: overlayfs's other form of a whiteout, an empty file
// with an attribute (Linux 6.7), as it is found inside a nested upper directory.
func TestUpperXattrWhiteout(t *testing.T) {
	o := newOverlay(t)
	write(t, o.lower+"/d/f", "x")
	write(t, o.lower+"/d/g", "x")
	write(t, o.upper+"/d/f", "")
	must(t, unix.Lsetxattr(o.upper+"/d/f", overlayPrefix+"whiteout", []byte("y"), 0))
	must(t, unix.Lsetxattr(o.upper+"/d", MarkOpaque, []byte("x"), 0))
	must(t, os.Chtimes(o.upper+"/d", entTime, entTime))
	o.mount(t, "")
	// The mark on the directory makes an upper directory's whiteouts count in
	// lower layers only, so the merge is looked at and not overlayfs.
	s := new(memStore)
	lower, err := FromDir(context.Background(), o.lower, s, DirOptions{})
	must(t, err)
	upper, err := FromDir(context.Background(), o.upper, s, DirOptions{Upper: true})
	must(t, err)
	tree, err := Merge([]*mkdaxfs.Tree{lower, upper})
	must(t, err)
	if tree.Find("d/f") != nil || tree.Find("d/g") == nil {
		t.Error("whiteout by attribute was not applied")
	}
}
