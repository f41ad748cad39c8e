package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/fstree"
	"github.com/daxfs/containerd-daxfs/integration/lab"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// ctrRun is the command line of a container of the lab.
func ctrRun(ctx context.Context, l *lab.Lab, name, id, option string, args ...string) []string {
	ns, _ := namespaces.Namespace(ctx)
	return append([]string{
		filepath.Join(lab.CacheDir(), "bin/ctr"), "--address", filepath.Join(l.Dir, "c.sock"), "--namespace", ns,
		"run", "--rm", "--snapshotter", lab.Daxfs, "--runc-root", filepath.Join(l.Dir, "runc"), "--fifo-dir", filepath.Join(l.Dir, "fifo"),
		option, l.Ref(name), id,
	}, args...)
}

// hold keeps an image mounted by a container that opens no more files, until
// the function that it returns is called.
func hold(t *testing.T, l *lab.Lab, ctx context.Context, img client.Image) (end func()) {
	t.Helper()
	c, err := l.StartContainer(ctx, img, lab.Daxfs, []string{"/bin/sh", "-c", "mkfifo /f; : > /ready; read x < /f"}, lab.ContainerOpts{})
	if err != nil {
		t.Fatal(err)
	}
	end = func() {
		if err := c.Remove(ctx); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.Exec(ctx, "/bin/sh", "-c", "until test -e /ready; do :; done"); err != nil {
		end()
		t.Fatal(err)
	}
	return end
}

// A container's files are recorded from its first one on, in order, whether its
// image is mounted when it starts or not, and nothing that it wrote.
func TestRecord(t *testing.T) {
	l := lab.New(t, lab.Config{})
	ctx := l.Namespace("record")
	l.Image("debian")
	img := l.MustPull(ctx, "debian", lab.Daxfs, lab.Transfer)
	script := `cat /etc/debian_version; echo new > /written; cat /written
		echo more >> /etc/pam.conf; cat /etc/pam.conf
		rm /etc/shells; echo other > /etc/shells; cat /etc/shells
		cat /etc/hosts.allow 2>/dev/null; ls /usr/share > /dev/null; exit 7`
	list := filepath.Join(l.Dir, "hot.list")
	var late bool // whether it says that it may have missed something
	record := func(t *testing.T, id string) []string {
		out, err := l.Daxfsctl(append([]string{"record", "-o", list, "--"}, ctrRun(ctx, l, "debian", id, "--env=A=B", "/bin/sh", "-c", script)...)...)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 7 {
			t.Fatalf("%v, want the command's exit status 7", err)
		}
		late = strings.Contains(out, "the first files may be missing")
		if strings.Count(out, "daxfsctl: warning") > 1 || !late && strings.Contains(out, "daxfsctl: warning") {
			t.Errorf("warnings:\n%s", out)
		}
		return readList(t, list)
	}

	// What a shell needs to come up, as strace and ldd of any Debian show it.
	start := []string{"usr/bin/dash", "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "etc/ld.so.cache", "usr/lib/x86_64-linux-gnu/libc.so.6"}
	var lists [][]string
	for _, mounted := range []bool{false, true} {
		t.Run(fmt.Sprintf("mounted before %v", mounted), func(t *testing.T) {
			if mounted {
				defer hold(t, l, ctx, img)()
			}
			got := record(t, fmt.Sprintf("recorded-%v", mounted))
			t.Logf("late: %v, %q", late, got)
			if mounted && late {
				t.Error("something was missed of an image that was mounted before")
			}
			if !late {
				lists = append(lists, got)
			}
			// The runtime looks into files like /etc/passwd before.
			if i := slices.Index(got, start[0]); i < 0 || len(got) < i+len(start) || !slices.Equal(got[i:i+len(start)], start) {
				t.Errorf("%q, want %q next to each other", got, start)
			}
			at := -1
			for _, p := range []string{"usr/bin/dash", "usr/bin/cat", "etc/debian_version", "etc/pam.conf", "usr/bin/rm", "usr/bin/ls"} {
				i := slices.Index(got, p)
				if i <= at {
					t.Errorf("%s is number %d of %q, want it later than %d", p, i, got, at)
				}
				at = i
			}
			for _, p := range []string{"written", "etc/shells", "usr/share", "usr/bin/perl", "bin/sh"} {
				if slices.Contains(got, p) {
					t.Errorf("%s is in the list", p)
				}
			}
		})
	}
	if t.Failed() {
		return
	}
	// ctr reads /etc/group and /etc/passwd as soon as it can, which may be missed
	// the first time; then that was said.
	if len(lists) == 2 && !slices.Equal(lists[0], lists[1]) {
		t.Errorf("recorded %q the first time and %q the second", lists[0], lists[1])
	}
	// A read-only container has the image itself as its root, without an overlay.
	t.Run("read-only", func(t *testing.T) {
		// Mounted throughout, so that nothing can be missed.
		defer hold(t, l, ctx, img)()
		list := filepath.Join(l.Dir, "other.list")
		var lists [][]string
		for _, option := range []string{"--read-only", "--env=A=B"} {
			out, err := l.Daxfsctl(append([]string{"record", "-o", list, "--"}, ctrRun(ctx, l, "debian", strings.Trim(option, "-=AB"), option, "/bin/cat", "/etc/debian_version")...)...)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			lists = append(lists, readList(t, list))
			t.Logf("%s: %s", option, out)
		}
		if got := lists[0]; len(got) < 5 || got[len(got)-1] != "etc/debian_version" || !slices.Equal(got, lists[1]) {
			t.Errorf("recorded %q, want what another container shows: %q", got, lists[1])
		}
	})
	t.Run("prefetch", func(t *testing.T) { prefetched(t, l.For(t), ctx, list) })
}

// prefetched makes images of the debian image with and without the list, and
// compares where the files of the list lie, and the trees.
func prefetched(t *testing.T, l *lab.Lab, ctx context.Context, list string) {
	dir := t.TempDir()
	mk := filepath.Join(dir, "mkdaxfs")
	if out, err := exec.Command("go", "build", "-o", mk, "../cmd/mkdaxfs").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	layout := l.Image("debian").Dir
	build := func(name string, more ...string) string {
		image := filepath.Join(dir, name)
		var errOut bytes.Buffer
		cmd := exec.Command(mk, append([]string{"--json", "--oci", layout, "-o", image}, more...)...)
		cmd.Stderr = &errOut
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v\n%s", err, errOut.String())
		}
		if len(more) > 0 {
			var res struct{ Prefetch mkdaxfs.PrefetchStats }
			if err := json.Unmarshal(out, &res); err != nil {
				t.Fatal(err)
			}
			if p := res.Prefetch; p.Listed == 0 || p.Files != p.Listed {
				t.Errorf("%+v: not all paths that were recorded name a file with data", p)
			}
		}
		return image
	}
	plain, hot, again := build("plain"), build("hot", "--prefetch", list), build("again", "--prefetch", list)
	if err := exec.Command("cmp", hot, again).Run(); err != nil {
		t.Errorf("the same list gives other bytes: %v", err)
	}
	paths := readList(t, list)
	before, after := spanOf(t, plain, paths), spanOf(t, hot, paths)
	t.Logf("%d files of %d bytes: %d ranges over %d bytes without the list, %d over %d with it; read from the image's start to have them and the metadata: %d and %d",
		len(paths), before.bytes, before.ranges, before.span, after.ranges, after.span, before.reach, after.reach)
	if !after.ordered || after.ranges != 1 || after.span != after.blocks {
		t.Errorf("with the list: %+v, want one dense range in its order", after)
	}
	if before.ranges < 2 || before.span < 2*after.span {
		t.Errorf("without the list: %+v: nothing is gained", before)
	}
	// The kernel is the judge of what is in both.
	a, b := mountedTree(t, plain), mountedTree(t, hot)
	for _, d := range fstree.Diff(a, b) {
		t.Errorf("the list changes the tree: %v", d)
	}
	if want := l.ViewTree(ctx, l.MustPull(ctx, "debian", lab.Overlayfs, lab.Transfer), lab.Overlayfs); len(a) != len(want) {
		t.Errorf("%d files in the image, %d on overlayfs", len(a), len(want))
	}
}

// span says how the data of files lies in an image.
type span struct {
	ranges  int   // that do not touch
	bytes   int64 // of the files
	blocks  int64 // the same in whole blocks
	span    int64 // from the first byte to the last
	reach   int64 // from the image's first byte to the last one of metadata and these files
	ordered bool  // each file lies behind the one before
}

// spanOf reads the extents of files in an image.
func spanOf(t *testing.T, image string, paths []string) span {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	img, err := mkdaxfs.Open(f, fi.Size())
	if err != nil {
		t.Fatal(err)
	}
	type extent struct{ off, end int64 }
	sb := img.Superblock()
	s := span{ordered: true, reach: int64(sb.BaseOffset + sb.MetaOffset + sb.MetaSize)}
	var all []extent
	for _, p := range paths {
		fi, err := img.FS().Lstat(p)
		if err != nil {
			t.Fatal(err)
		}
		in := fi.Sys().(*disk.Inode)
		e := extent{off: int64(sb.BaseOffset + in.DataOffset)}
		e.end = e.off + int64(disk.AlignUp(in.Size, disk.BlockSize))
		if len(all) > 0 && e.off < all[len(all)-1].end {
			s.ordered = false
		}
		all = append(all, e)
		s.bytes += int64(in.Size)
		s.blocks += e.end - e.off
	}
	slices.SortFunc(all, func(a, b extent) int { return int(a.off - b.off) })
	for i, e := range all {
		if i == 0 || e.off != all[i-1].end {
			s.ranges++
		}
	}
	s.span = all[len(all)-1].end - all[0].off
	s.reach = max(s.reach, all[len(all)-1].end)
	return s
}

// mountedTree is what the kernel's EROFS shows of an image file.
func mountedTree(t *testing.T, image string) fstree.Tree {
	t.Helper()
	at := t.TempDir()
	if err := unix.Mount(image, at, "erofs", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	}()
	tree, err := fstree.Walk(at, fstree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func readList(t *testing.T, name string) []string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	paths, err := mkdaxfs.ReadPrefetch(f)
	if err != nil {
		t.Fatal(err)
	}
	return paths
}
