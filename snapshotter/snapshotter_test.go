package snapshotter_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

var ctx = context.Background()

// layer prepares a snapshot on parent, lets fill write into its mount, and
// commits it.
func (r *rig) layer(t testing.TB, name, parent string, fill func(dir string)) {
	t.Helper()
	mounts, err := r.Prepare(ctx, "prepare-"+name, parent)
	if err != nil {
		t.Fatal(err)
	}
	if err := mount.WithTempMount(ctx, mounts, func(dir string) error { fill(dir); return nil }); err != nil {
		t.Fatal(err)
	}
	if err := r.Commit(ctx, name, "prepare-"+name); err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) base(t testing.TB) {
	t.Helper()
	r.layer(t, "base", "", func(d string) {
		write(t, d+"/etc/os", "daxfs")
		write(t, d+"/big", strings.Repeat("0123456789abcdef", 1<<16))
	})
}

// lowerOf returns the lower directory of an overlay mount.
func lowerOf(t testing.TB, mounts []mount.Mount) string {
	t.Helper()
	for _, o := range mounts[0].Options {
		if l, ok := strings.CutPrefix(o, "lowerdir="); ok {
			return l
		}
	}
	t.Fatalf("no lower directory in %+v", mounts)
	return ""
}

func mountID(t testing.TB, path string) uint64 {
	t.Helper()
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &st); err != nil {
		t.Fatal(err)
	}
	return st.Mnt_id
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (r *rig) used(t testing.TB) int64 {
	t.Helper()
	if err := r.pool.Sync(ctx); err != nil { // what is removed is free after a sync
		t.Fatal(err)
	}
	st, err := r.pool.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return st.Segments + st.Extents + st.Copies + st.Inflight + st.Retired + st.Quarantined
}

func (r *rig) check(t testing.TB) {
	t.Helper()
	rep, err := r.pool.Check(ctx, daxmem.CheckOptions{Data: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range rep.Problems {
		t.Errorf("pool: %+v", p)
	}
}

func (r *rig) reopen(t testing.TB) {
	t.Helper()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	next, err := open(t, r.root)
	if err != nil {
		t.Fatal(err)
	}
	*r = *next
}

// TestOneMount has fifty containers prepared at once: one image, one mount,
// gone with the last of them.
func TestOneMount(t *testing.T) {
	r := start(t)
	r.base(t)
	const n = 50
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if _, err := r.Prepare(ctx, fmt.Sprint("c", i), "base"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if at := testutil.MountsBelow(t, r.root); len(at) != 1 {
		t.Errorf("mounts: %v", at)
	}
	st, err := r.pool.Stat()
	if err != nil || st.ImageCount != 1 {
		t.Errorf("%d images, %v", st.ImageCount, err)
	}
	info, err := r.Stat(ctx, "c1")
	if err != nil || !strings.HasPrefix(info.Labels[snapshotter.LabelEngine], "erofs/") {
		t.Errorf("labels %v, %v", info.Labels, err)
	}
	for i := range n {
		if err := r.Remove(ctx, fmt.Sprint("c", i)); err != nil {
			t.Error(err)
		}
	}
	if at := testutil.MountsBelow(t, r.root); len(at) != 0 {
		t.Errorf("mounts after the last container: %v", at)
	}
	if err := r.Remove(ctx, "base"); err != nil {
		t.Fatal(err)
	}
	if u := r.used(t); u != 0 {
		t.Errorf("%d bytes of the pool in use after the last snapshot", u)
	}
	r.check(t)
}

// TestRestart closes and opens: mounts stay, and go when nobody needs them.
func TestRestart(t *testing.T) {
	r := start(t)
	r.base(t)
	mounts, err := r.Prepare(ctx, "c", "base")
	if err != nil {
		t.Fatal(err)
	}
	lower := lowerOf(t, mounts)
	before := mountID(t, lower)
	r.reopen(t)
	if got := mountID(t, lower); got != before {
		t.Errorf("mount %d became %d", before, got)
	}
	again, err := r.Mounts(ctx, "c")
	if err != nil || fmt.Sprint(again) != fmt.Sprint(mounts) {
		t.Errorf("mounts %v, %v, want %v", again, err, mounts)
	}
	if err := r.Remove(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if at := testutil.MountsBelow(t, r.root); len(at) != 0 {
		t.Errorf("left: %v", at)
	}

	// Stacked mounts, as a daemon killed at the wrong moment could leave.
	if _, err := r.Prepare(ctx, "c", "base"); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(lower, lower, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(r.root+"/snapshots/new-orphan/fs", 0o700); err != nil {
		t.Fatal(err)
	}
	next, err := open(t, r.root)
	if err != nil {
		t.Fatal(err)
	}
	*r = *next
	if _, err := os.Stat(r.root + "/snapshots/new-orphan"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("orphan directory: %v", err)
	}
	if _, err := r.Mounts(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if at := testutil.MountsBelow(t, r.root); len(at) != 1 {
		t.Errorf("stacked mounts became %v", at)
	}
	if got := read(t, lower+"/etc/os"); got != "daxfs" {
		t.Errorf("read %q", got)
	}
}

// TestReboot takes all mounts away, as a reboot does.
func TestReboot(t *testing.T) {
	r := start(t)
	r.base(t)
	mounts, err := r.Prepare(ctx, "c", "base")
	if err != nil {
		t.Fatal(err)
	}
	write(t, r.root+"/marker", "")
	if err := mount.WithTempMount(ctx, mounts, func(dir string) error { write(t, dir+"/mine", "kept"); return nil }); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	testutil.UnmountBelow(t, r.root)
	next, err := open(t, r.root)
	if err != nil {
		t.Fatal(err)
	}
	*r = *next
	again, err := r.Mounts(ctx, "c")
	if err != nil {
		t.Fatal(err)
	}
	if err := mount.WithTempMount(ctx, again, func(dir string) error {
		if read(t, dir+"/mine") != "kept" || read(t, dir+"/etc/os") != "daxfs" {
			t.Error("contents changed")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// TestKernelStillReads removes every snapshot while a file of the image is
// open: the bytes must stay until it is closed, whatever is imported meanwhile.
func TestKernelStillReads(t *testing.T) {
	r := start(t)
	r.base(t)
	mounts, err := r.Prepare(ctx, "c", "base")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(lowerOf(t, mounts) + "/big")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, name := range []string{"c", "base"} {
		if err := r.Remove(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 2 {
		if at := testutil.MountsBelow(t, r.root); len(at) != 0 {
			t.Errorf("mounts: %v", at)
		}
		r.layer(t, fmt.Sprint("other", round), "", func(d string) {
			for i := range 20 {
				write(t, fmt.Sprint(d, "/f", i), strings.Repeat(fmt.Sprint(round, i), 1<<20))
			}
		})
		b := make([]byte, 1<<20)
		if _, err := f.ReadAt(b, 0); err != nil || string(b) != strings.Repeat("0123456789abcdef", 1<<16) {
			t.Fatalf("round %d: bytes of an open file changed: %q, %v", round, b[:32], err)
		}
		r.reopen(t) // a new daemon must know it too
	}
	f.Close()
	for _, name := range []string{"other0", "other1"} {
		if err := r.Remove(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Cleanup(ctx); err != nil {
		t.Fatal(err)
	}
	if u := r.used(t); u != 0 {
		t.Errorf("%d bytes in use after the file was closed", u)
	}
}

// TestCommitOfRunning commits a snapshot that is mounted: the container must
// not lose its files.
func TestCommitOfRunning(t *testing.T) {
	r := start(t)
	r.base(t)
	mounts, err := r.Prepare(ctx, "c", "base")
	if err != nil {
		t.Fatal(err)
	}
	at := t.TempDir()
	if err := mount.All(mounts, at); err != nil {
		t.Fatal(err)
	}
	defer mount.UnmountAll(at, 0)
	write(t, at+"/new", "new")
	if err := os.Remove(at + "/etc/os"); err != nil {
		t.Fatal(err)
	}
	if err := r.Commit(ctx, "committed", "c"); err != nil {
		t.Fatal(err)
	}
	if read(t, at+"/new") != "new" || len(read(t, at+"/big")) != 1<<20 {
		t.Error("running container lost files")
	}
	view, err := r.View(ctx, "v", "committed")
	if err != nil {
		t.Fatal(err)
	}
	if view[0].Type != "bind" || read(t, view[0].Source+"/new") != "new" {
		t.Errorf("view %+v", view)
	}
	if _, err := os.Stat(view[0].Source + "/etc/os"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("whiteout is lost: %v", err)
	}
	if err := mount.UnmountAll(at, 0); err != nil {
		t.Fatal(err)
	}
	if err := r.Cleanup(ctx); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(r.root + "/snapshots")
	if err != nil || len(left) != 1 { // of the view
		t.Errorf("directories %v, %v", left, err)
	}
}

// TestRoot looks at the root directory, which overlayfs takes from the upper
// one.
func TestRoot(t *testing.T) {
	r := start(t)
	r.layer(t, "base", "", func(d string) {
		if err := os.Chmod(d, 0o751); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(d, 11, 12); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(d, time.Unix(5, 7), time.Unix(5, 7)); err != nil {
			t.Fatal(err)
		}
	})
	mounts, err := r.Prepare(ctx, "c", "base")
	if err != nil {
		t.Fatal(err)
	}
	if err := mount.WithReadonlyTempMount(ctx, mounts, func(dir string) error {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return err
		}
		if st.Mode&0o7777 != 0o751 || st.Uid != 11 || st.Gid != 12 || st.Mtim.Sec != 5 || st.Mtim.Nsec != 7 {
			t.Errorf("root has %o %d:%d %d.%d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// TestImplicitDirectories unpacks without labels and with: directories that
// the layer does not list keep what the lower layer says.
func TestImplicitDirectories(t *testing.T) {
	r := start(t)
	old := time.Unix(1000000000, 5)
	r.layer(t, "base", "", func(d string) {
		write(t, d+"/usr/share/a", "a")
		if err := os.Chmod(d+"/usr", 0o700); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{"/usr/share/a", "/usr/share", "/usr"} {
			if err := os.Chtimes(d+p, old, old); err != nil {
				t.Fatal(err)
			}
		}
	})
	unpackKey := "default/7/extract-1-Ab sha256:" + strings.Repeat("0", 64)
	for name, opts := range map[string][]snapshots.Opt{
		"default/1/extract-other": {snapshots.WithLabels(map[string]string{"containerd.io/snapshot.ref": "sha256:" + strings.Repeat("0", 64)})},
		unpackKey:                 nil,
	} {
		mounts, err := r.Prepare(ctx, name, "base", opts...)
		if err != nil {
			t.Fatal(err)
		}
		var upper string
		for _, o := range mounts[0].Options {
			if u, ok := strings.CutPrefix(o, "upperdir="); ok {
				upper = u
			}
			if strings.HasPrefix(o, "lowerdir=") {
				t.Errorf("unpack got a lower directory: %v", mounts)
			}
		}
		write(t, upper+"/usr/share/b", "b")
		if err := os.Mkdir(upper+"/usr/own", 0o750); err != nil {
			t.Fatal(err)
		}
		own := time.Unix(1500000000, 0)
		if err := os.Chtimes(upper+"/usr/own", own, own); err != nil {
			t.Fatal(err)
		}
		top := "top-" + name
		if err := r.Commit(ctx, top, name); err != nil {
			t.Fatal(err)
		}
		view, err := r.View(ctx, "view-"+name, top)
		if err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]struct {
			mode os.FileMode
			time time.Time
		}{"/usr": {0o700, old}, "/usr/share": {0o755, old}, "/usr/own": {0o750, own}} {
			fi, err := os.Stat(view[0].Source + path)
			if err != nil {
				t.Fatal(err)
			}
			if fi.Mode().Perm() != want.mode || !fi.ModTime().Equal(want.time) {
				t.Errorf("%s: %v %v, want %v %v", path, fi.Mode(), fi.ModTime(), want.mode, want.time)
			}
		}
	}
}

// TestErrors names, for each mistake, the class and what is left.
func TestErrors(t *testing.T) {
	r := start(t)
	r.base(t)
	if _, err := r.Prepare(ctx, "c", "nothing"); !errdefs.IsNotFound(err) {
		t.Errorf("unknown parent: %v", err)
	}
	if _, err := r.Prepare(ctx, "c", "base", snapshots.WithLabels(map[string]string{snapshotter.LabelLayer: "x"})); !errdefs.IsInvalidArgument(err) {
		t.Errorf("own label: %v", err)
	}
	if _, err := r.Prepare(ctx, "c", "base", snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotUIDMapping: "0:x:1"})); !errdefs.IsInvalidArgument(err) {
		t.Errorf("id mapping: %v", err)
	}
	if _, err := r.Stat(ctx, "c"); !errdefs.IsNotFound(err) {
		t.Errorf("failed prepare left a snapshot: %v", err)
	}
	if _, err := r.Mounts(ctx, "base"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("mounts of a committed snapshot: %v", err)
	}
	if err := r.Commit(ctx, "x", "base"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("commit of a committed snapshot: %v", err)
	}
	mounts, err := r.Prepare(ctx, "c", "base")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Commit(ctx, "base", "c"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("commit to a taken name: %v", err)
	}
	if err := r.Remove(ctx, "base"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("remove of a parent: %v", err)
	}
	// A redirect cannot be expressed in a layer.
	var upper string
	for _, o := range mounts[0].Options {
		if u, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = u
		}
	}
	if err := os.Mkdir(upper+"/moved", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(upper+"/moved", "trusted.overlay.redirect", []byte("etc"), 0); err != nil {
		t.Fatal(err)
	}
	before := r.used(t)
	if err := r.Commit(ctx, "x", "c"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), `"moved"`) {
		t.Errorf("redirect: %v", err)
	}
	if u := r.used(t); u != before {
		t.Errorf("failed commit left %d bytes", u-before)
	}
}

// TestFullPool commits more than fits.
func TestFullPool(t *testing.T) {
	r := start(t)
	r.base(t)
	before := r.used(t)
	if _, err := r.Prepare(ctx, "c", ""); err != nil {
		t.Fatal(err)
	}
	info, err := r.Usage(ctx, "c")
	if err != nil || info.Size <= 0 {
		t.Errorf("usage %+v, %v", info, err)
	}
	mounts, err := r.Mounts(ctx, "c")
	if err != nil {
		t.Fatal(err)
	}
	write(t, mounts[0].Source+"/small", "small")
	big, err := os.Create(mounts[0].Source + "/zbig")
	if err != nil {
		t.Fatal(err)
	}
	if err := big.Truncate(5 << 30); err != nil { // sparse: the pool has 4 GiB
		t.Fatal(err)
	}
	big.Close()
	err = r.Commit(ctx, "x", "c")
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "5368709120") {
		t.Errorf("commit: %v", err)
	}
	if u := r.used(t); u != before {
		t.Errorf("failed commit left %d bytes", u-before)
	}
	if err := os.Remove(big.Name()); err != nil {
		t.Fatal(err)
	}
	if err := r.Commit(ctx, "x", "c"); err != nil {
		t.Errorf("commit of what fits: %v", err)
	}
}

// TestLostPool starts with an empty pool: the snapshots say what is wrong, and
// new images work.
func TestLostPool(t *testing.T) {
	r := start(t)
	r.base(t)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(r.root + "/pool"); err != nil {
		t.Fatal(err)
	}
	next, err := open(t, r.root)
	if err != nil {
		t.Fatal(err)
	}
	*r = *next
	_, err = r.Prepare(ctx, "c", "base")
	if !errors.Is(err, snapshotter.ErrLayerLost) || !errdefs.IsFailedPrecondition(err) {
		t.Errorf("prepare on a lost layer: %v", err)
	}
	if _, err := r.Stat(ctx, "c"); !errdefs.IsNotFound(err) {
		t.Errorf("left: %v", err)
	}
	r.layer(t, "new", "", func(d string) { write(t, d+"/x", "x") })
	if _, err := r.Prepare(ctx, "c", "new"); err != nil {
		t.Error(err)
	}
	if err := r.Remove(ctx, "base"); err != nil {
		t.Error(err)
	}
}

// TestIDMap looks at what containerd gets for a mapped container.
func TestIDMap(t *testing.T) {
	r := start(t)
	r.base(t)
	mounts, err := r.Prepare(ctx, "c", "base", snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotUIDMapping: "0:100000:65536", snapshots.LabelSnapshotGIDMapping: "0:200000:65536",
	}))
	if err != nil {
		t.Fatal(err)
	}
	if err := mount.WithTempMount(ctx, mounts, func(dir string) error {
		for _, p := range []string{"/", "/etc", "/etc/os", "/big"} {
			var st unix.Stat_t
			if err := unix.Stat(dir+p, &st); err != nil {
				return err
			}
			if st.Uid != 100000 || st.Gid != 200000 {
				t.Errorf("%s belongs to %d:%d", p, st.Uid, st.Gid)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	du, err := r.Usage(ctx, "c")
	if err != nil || du.Inodes > 2 {
		t.Errorf("usage %+v, %v: files were copied up", du, err)
	}
}

// TestMountsAgainstRemove asks for the mounts of snapshots that are being
// removed: no mount may stay.
func TestMountsAgainstRemove(t *testing.T) {
	r := start(t)
	r.base(t)
	for i := range 100 {
		key := fmt.Sprint("c", i)
		if _, err := r.Prepare(ctx, key, "base"); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if _, err := r.Mounts(ctx, key); err != nil && !errdefs.IsNotFound(err) {
					t.Error(err)
				}
			})
		}
		wg.Go(func() {
			if err := r.Remove(ctx, key); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
	}
	if at := testutil.MountsBelow(t, r.root); len(at) != 0 {
		t.Errorf("mounts are left: %v", at)
	}
}

// TestLostMetadata starts without metadata.db: what containers wrote must not
// be taken for orphans.
func TestLostMetadata(t *testing.T) {
	r := start(t)
	mounts, err := r.Prepare(ctx, "c", "")
	if err != nil {
		t.Fatal(err)
	}
	mine := mounts[0].Source + "/mine"
	write(t, mine, "precious")
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	metadata := r.root + "/metadata.db"
	if err := os.Rename(metadata, metadata+".away"); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, r.root); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "metadata.db is missing") {
		t.Errorf("start without metadata: %v", err)
	}
	if err := os.Rename(metadata+".away", metadata); err != nil {
		t.Fatal(err)
	}
	next, err := open(t, r.root)
	if err != nil {
		t.Fatal(err)
	}
	*r = *next
	if got := read(t, mine); got != "precious" {
		t.Errorf("read %q", got)
	}
}
