package integration

import (
	"context"
	"fmt"
	"os"
	"sort"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/fstree"
	"github.com/daxfs/containerd-daxfs/integration/lab"
	"github.com/daxfs/containerd-daxfs/integration/ocitree"
)

// Fifty containers of one image share one mount of it, and outlive the daemon.
func TestFiftyContainers(t *testing.T) {
	const n = 50
	l := lab.New(t, lab.Config{Rebase: true, Parallel: 4})
	ctx := l.Namespace("fifty")
	want, _ := l.Expected("debian", ocitree.Options{})
	img := l.MustPull(ctx, "debian", lab.Daxfs, lab.PullUnpack)

	containers := make([]*lab.Container, n)
	each(t, n, func(i int) (err error) {
		containers[i], err = l.StartContainer(ctx, img, lab.Daxfs, []string{"sleep", "1000"}, lab.ContainerOpts{})
		return err
	})
	if t.Failed() {
		return
	}
	checkMounts(t, l, n)

	l.KillDaemon()
	dropCaches(t)
	// Every container reads files that nobody has read since they were unpacked.
	files := regularFiles(want)
	read := func(i int) error {
		for k := range 3 {
			path := files[(i*3+k)*len(files)/(n*3)]
			out, err := containers[i].Exec(ctx, "sha256sum", "/"+path)
			if err != nil {
				return err
			}
			if !strings.HasPrefix(out, want[path].SHA256) {
				return fmt.Errorf("%s: read %s, want %s", path, out, want[path].SHA256)
			}
		}
		_, err := containers[i].Exec(ctx, "sh", "-c", "echo written without a daemon >/written && grep -q without /written")
		return err
	}
	each(t, n, read)

	l.StartDaemon()
	checkMounts(t, l, n)
	each(t, n, func(i int) error {
		_, err := containers[i].Exec(ctx, "cat", "/written")
		return err
	})
	// One more, and half of them gone: the mount stays for the others.
	if out, err := l.Run(ctx, img, lab.Daxfs, "cat", "/etc/debian_version"); err != nil {
		t.Errorf("container after the restart: %v %s", err, out)
	}
	each(t, n/2, func(i int) error { return containers[i].Remove(ctx) })
	l.Collect()
	checkMounts(t, l, n-n/2)
	each(t, n-n/2, func(i int) error { return containers[n/2+i].Remove(ctx) })
	l.NothingMounted()
	l.RemoveImage(ctx, "debian")
	if left := l.Snapshots(ctx, lab.Daxfs); len(left) > 0 {
		t.Errorf("snapshots left: %q", left)
	}
}

// A graceful stop of the daemon, and a restart of containerd, leave containers
// running too.
func TestContainersOutliveRestarts(t *testing.T) {
	l := lab.New(t, lab.Config{})
	ctx := l.Namespace("outlive")
	l.Image("debian")
	img := l.MustPull(ctx, "debian", lab.Daxfs, lab.PullUnpack)
	c, err := l.StartContainer(ctx, img, lab.Daxfs, []string{"sleep", "1000"}, lab.ContainerOpts{})
	if err != nil {
		t.Fatal(err)
	}
	l.StopDaemon()
	dropCaches(t)
	if _, err := c.Exec(ctx, "sha256sum", "/bin/bash"); err != nil {
		t.Errorf("after the daemon's graceful stop: %v", err)
	}
	l.RestartContainerd()
	l.StartDaemon()
	// A client of the restarted containerd finds the container running.
	loaded, err := l.Client().LoadContainer(ctx, c.ID())
	if err != nil {
		t.Fatal(err)
	}
	again, err := l.Attach(ctx, loaded)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Exec(ctx, "sha256sum", "/usr/bin/perl"); err != nil {
		t.Errorf("after containerd's restart: %v", err)
	}
	if err := again.Remove(ctx); err != nil {
		t.Error(err)
	}
	l.NothingMounted()
}

// checkMounts demands one image mount for n containers, and that it is the only
// lower directory of each.
func checkMounts(t *testing.T, l *lab.Lab, n int) {
	t.Helper()
	if lab.Standin() {
		return
	}
	points := l.ImageMountPoints()
	if len(points) != 1 {
		t.Errorf("image mounts %q, want one", points)
	}
	mounts := l.ContainerMounts()
	if len(mounts) != n {
		t.Errorf("%d containers' overlays mounted, want %d", len(mounts), n)
	}
	for _, lower := range mounts {
		if len(lower) != 1 || len(points) != 1 || !strings.HasPrefix(lower[0], points[0]) {
			t.Fatalf("lower directories %q, want only the image mounted at %q", lower, points)
		}
	}
}

// each calls f for 0…n-1, eight at a time, and fails the test for every error.
func each(t *testing.T, n int, f func(int) error) {
	t.Helper()
	var wg sync.WaitGroup
	next := make(chan int)
	for range 8 {
		wg.Go(func() {
			for i := range next {
				if err := f(i); err != nil {
					t.Errorf("%d of %d: %v", i, n, err)
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

// regularFiles lists a tree's files that have content, in a fixed order that
// spreads them over the directories.
func regularFiles(tree fstree.Tree) []string {
	var files []string
	for p, e := range tree {
		if e.Type() == unix.S_IFREG && e.Size > 0 {
			files = append(files, p)
		}
	}
	sort.Strings(files)
	return files
}

// dropCaches makes the next reads come from the pool and not from what writing
// it has left in memory.
func dropCaches(t *testing.T) {
	t.Helper()
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0); err != nil {
		t.Logf("caches not dropped: %v", err)
	}
}

// Many pulls at once, of images that share layers.
func TestConcurrentPulls(t *testing.T) {
	l := lab.New(t, lab.Config{Rebase: true, Parallel: 4})
	var names []string
	for i := range 5 {
		name := fmt.Sprintf("family%d", i)
		l.Image(name)
		names = append(names, name)
	}
	ctx := l.Namespace("concurrent")
	each(t, len(names), func(i int) error {
		img, err := l.Pull(ctx, names[i], lab.Daxfs, lab.Methods[i%len(lab.Methods)])
		if err != nil {
			return err
		}
		out, err := l.Run(ctx, img, lab.Daxfs, "cat", "/srv/name")
		if want := fmt.Sprintf("family %d\n", i); err == nil && out != want {
			err = fmt.Errorf("%s: read %q, want %q", names[i], out, want)
		}
		return err
	})
	removeAll(t, l, ctx, names)
}

// removeAll removes images and demands that nothing of them is left.
func removeAll(t *testing.T, l *lab.Lab, ctx context.Context, names []string) {
	t.Helper()
	l.NothingMounted()
	for _, name := range names {
		l.RemoveImage(ctx, name)
	}
	if left := l.Snapshots(ctx, lab.Daxfs); len(left) > 0 {
		t.Errorf("snapshots left: %q", left)
	}
}
