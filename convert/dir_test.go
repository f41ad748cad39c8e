package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/fstree"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, content string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(content), 0o644))
}

// TestFromDir reads a directory with everything that a directory can hold and
// compares with what stat(2) says.
func TestFromDir(t *testing.T) {
	testutil.Root(t)
	root := t.TempDir()
	write(t, root+"/file", "data")
	write(t, root+"/sub/deep/leaf", "leaf")
	write(t, root+"/"+strings.Repeat("n", 255), "long")
	write(t, root+"/\xff\xfe\n", "bytes")
	write(t, root+"/empty", "")
	must(t, os.Link(root+"/file", root+"/sub/hard"))
	must(t, os.Symlink("no where", root+"/sym"))
	must(t, os.Link(root+"/sym", root+"/sub/symhard"))
	must(t, os.Symlink(strings.Repeat("t", 4095), root+"/sub/longsym"))
	must(t, unix.Mkfifo(root+"/fifo", 0o600))
	must(t, unix.Mknod(root+"/char", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(root+"/block", unix.S_IFBLK|0o660, int(unix.Mkdev(4095, 1<<20-1))))
	// A socket's address has 108 bytes at most.
	wd, err := os.Getwd()
	must(t, err)
	must(t, os.Chdir(root))
	l, err := net.Listen("unix", "socket")
	must(t, os.Chdir(wd))
	must(t, err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	must(t, l.Close())
	sparse, err := os.Create(root + "/sparse")
	must(t, err)
	must(t, sparse.Truncate(3<<20))
	_, err = sparse.WriteAt([]byte("end"), 2<<20)
	must(t, err)
	sparse.Close()
	must(t, os.Chmod(root+"/file", 0o755|os.ModeSetuid))
	must(t, os.Chown(root+"/file", 1234, 4294967294))
	must(t, os.Chmod(root+"/file", 0o755|os.ModeSetuid))
	must(t, os.Chmod(root+"/sub", 0o777|os.ModeSticky))
	must(t, unix.Lsetxattr(root+"/file", "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	must(t, unix.Lsetxattr(root+"/file", "user.a", nil, 0))
	must(t, unix.Lsetxattr(root+"/sub", "user.b", []byte(strings.Repeat("v", 2000)), 0))
	must(t, unix.Lsetxattr(root+"/sym", "trusted.c", []byte("x\x00y"), 0))
	for _, p := range []string{"file", "sym", "sub", "."} {
		ts := []unix.Timespec{{Sec: 1, Nsec: 2}, {Sec: -3, Nsec: 999999999}}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, root+"/"+p, ts, unix.AT_SYMLINK_NOFOLLOW))
	}

	s := new(memStore)
	var last int64
	tree, err := FromDir(context.Background(), root, s, DirOptions{Progress: func(n int64) { last = n }})
	must(t, err)
	want, err := fstree.Walk(root, fstree.Options{})
	must(t, err)
	if diffs := fstree.Diff(want, asTree(t, s, tree)); len(diffs) > 0 {
		t.Errorf("directory and tree differ:\n%s", fstree.Format(diffs, 20))
	}
	checkTree(t, tree)
	if last < 3<<20 {
		t.Errorf("progress ended at %d bytes", last)
	}

	// Names that would steer the merge, and later times.
	must(t, unix.Lsetxattr(root+"/sub", MarkOpaque, []byte("y"), 0))
	must(t, unix.Lsetxattr(root+"/file", MarkLink, []byte("etc/shadow"), 0))
	var warnings []string
	tree, err = FromDir(context.Background(), root, s, DirOptions{MaxTime: 1, Warn: func(w Warning) { warnings = append(warnings, w.Path+": "+w.Reason) }})
	must(t, err)
	if want := []string{`file: xattr "trusted.daxfs.link" is reserved`, `sub: xattr "trusted.overlay.opaque" is reserved`}; fmt.Sprint(warnings) != fmt.Sprint(want) {
		t.Errorf("warnings %q, want %q", warnings, want)
	}
	checkTree(t, tree)
	if n := tree.Find("empty"); n.Mtime != 1 || n.MtimeNsec != 0 {
		t.Errorf("time %d.%d, want at most 1.0", n.Mtime, n.MtimeNsec)
	}
	if n := tree.Find("file"); n.Mtime != -3 {
		t.Errorf("time %d, want the file's own", n.Mtime)
	}
}

func TestFromDirErrors(t *testing.T) {
	ctx := context.Background()
	root := t.TempDir()
	write(t, root+"/d/f", "x")
	if _, err := FromDir(ctx, root+"/no", new(memStore), DirOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if _, err := FromDir(ctx, root+"/d/f", new(memStore), DirOptions{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a file: %v", err)
	}
	full := &os.PathError{Op: "write", Path: "pool", Err: unix.ENOSPC}
	if _, err := FromDir(ctx, root, failing{full}, DirOptions{}); !errdefs.IsResourceExhausted(err) || !strings.HasPrefix(err.Error(), `"d/f": `) {
		t.Errorf("full store: %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := FromDir(cancelled, root, new(memStore), DirOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}

	testutil.Root(t)
	must(t, os.Mkdir(root+"/d/mnt", 0o755))
	must(t, unix.Mount("tmpfs", root+"/d/mnt", "tmpfs", 0, "size=64k"))
	defer func() { must(t, unix.Unmount(root+"/d/mnt", 0)) }()
	if _, err := FromDir(ctx, root, new(memStore), DirOptions{}); err == nil || !strings.HasPrefix(err.Error(), `"d/mnt": on another file system`) {
		t.Errorf("mount inside: %v", err)
	}
}

// changing is a store before whose reads a file changes.
type changing struct {
	memStore
	change func(try int)
	tries  int
}

func (c *changing) Put(ctx context.Context, r io.Reader, size int64) (mkdaxfs.Extent, error) {
	c.change(c.tries)
	c.tries++
	return c.memStore.Put(ctx, r, size)
}

// TestFromDirChanging: a file that shrinks while it is read is read again, one
// that never rests is refused, one that goes is left out.
func TestFromDirChanging(t *testing.T) {
	ctx := context.Background()
	root := t.TempDir()
	f := root + "/f"
	write(t, f, "0123456789")
	s := &changing{change: func(try int) {
		if try == 0 {
			must(t, os.Truncate(f, 4))
		}
	}}
	tree, err := FromDir(ctx, root, s, DirOptions{})
	must(t, err)
	if n := tree.Find("f"); n.Size != 4 || string(s.content(n)) != "0123" {
		t.Errorf("file of %d bytes %q, want what is there now", n.Size, s.content(n))
	}

	write(t, f, strings.Repeat("x", 1000))
	s = &changing{change: func(try int) { must(t, os.Truncate(f, int64(900-try))) }}
	if _, err := FromDir(ctx, root, s, DirOptions{}); err == nil || !strings.HasPrefix(err.Error(), `"f": `) {
		t.Errorf("file that never rests: %v", err)
	}

	write(t, root+"/g", "x")
	s = &changing{change: func(int) { os.Remove(root + "/g") }}
	tree, err = FromDir(ctx, root, s, DirOptions{})
	must(t, err)
	if tree.Find("g") != nil {
		t.Error("a removed file is in the tree")
	}
}

func TestImplicitSince(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/implicit/x", "1")
	write(t, root+"/explicit/x", "1")
	start := time.Now().Add(-time.Minute)
	must(t, os.Chtimes(root+"/explicit", time.Time{}, start.Add(-time.Hour)))
	must(t, os.Chtimes(root+"/implicit/x", time.Time{}, entTime))
	must(t, os.Chtimes(root, time.Time{}, start.Add(-time.Hour)))
	s := new(memStore)
	tree, err := FromDir(context.Background(), root, s, DirOptions{Upper: true, ImplicitSince: start})
	must(t, err)
	for p, want := range map[string]bool{"implicit": true, "explicit": false, ".": false} {
		if n := tree.Find(p); isImplicit(n) != want {
			t.Errorf("%s: implicit %v, want %v", p, isImplicit(n), want)
		} else if want && n.Mtime != 0 {
			t.Errorf("%s: time %d, want none", p, n.Mtime)
		}
	}
}

// TestFromDirACL: POSIX ACLs are attributes like others.
func TestFromDirACL(t *testing.T) {
	testutil.Root(t)
	setfacl := testutil.Tool(t, "setfacl")
	root := t.TempDir()
	write(t, root+"/d/f", "x")
	if out, err := exec.Command(setfacl, "-m", "u:1234:rw", root+"/d/f").CombinedOutput(); err != nil {
		t.Fatalf("setfacl: %v: %s", err, out)
	}
	if out, err := exec.Command(setfacl, "-d", "-m", "g:5:rx", root+"/d").CombinedOutput(); err != nil {
		t.Fatalf("setfacl: %v: %s", err, out)
	}
	s := new(memStore)
	tree, err := FromDir(context.Background(), root, s, DirOptions{})
	must(t, err)
	want, err := fstree.Walk(root, fstree.Options{})
	must(t, err)
	if diffs := fstree.Diff(want, asTree(t, s, tree)); len(diffs) > 0 {
		t.Errorf("differ:\n%s", fstree.Format(diffs, 20))
	}
	if _, ok := tree.Find("d").Xattr("system.posix_acl_default"); !ok {
		t.Error("no default ACL")
	}
	checkTree(t, tree)
}
