package lab

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/daxfs/containerd-daxfs/integration/lab/sweep"
)

// ImageMountPoints returns where the daemon has mounted images, one element for
// each mount: a stacked mount shows twice.
func (l *Lab) ImageMountPoints() []string {
	l.t.Helper()
	mounts, err := sweep.Mounted()
	if err != nil {
		l.t.Fatal(err)
	}
	var points []string
	for _, m := range mounts {
		if strings.HasPrefix(m.Point, l.ImageMounts()+"/") {
			points = append(points, m.Point)
		}
	}
	return points
}

// ContainerMounts returns the lower directories of every overlay mount whose
// upper directory the daemon keeps.
func (l *Lab) ContainerMounts() [][]string {
	l.t.Helper()
	mounts, err := sweep.Mounted()
	if err != nil {
		l.t.Fatal(err)
	}
	var lowers [][]string
	for _, m := range mounts {
		if m.Type != "overlay" || !strings.Contains(m.Super, "upperdir="+l.Root()+"/") {
			continue
		}
		for _, o := range strings.Split(m.Super, ",") {
			if dirs, ok := strings.CutPrefix(o, "lowerdir="); ok {
				lowers = append(lowers, strings.Split(dirs, ":"))
			}
		}
	}
	return lowers
}

// DiskBytes is what a file, or everything below a directory on the same file
// system, takes on disk: allocated blocks, so holes do not count.
func (l *Lab) DiskBytes(path string) int64 {
	l.t.Helper()
	var root unix.Stat_t
	if err := unix.Lstat(path, &root); err != nil {
		l.t.Fatalf("%s: %v", path, err)
	}
	var total int64
	seen := map[uint64]bool{}
	err := filepath.WalkDir(path, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) {
				return nil // removed while we walk
			}
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			if errors.Is(err, unix.ENOENT) {
				return nil
			}
			return err
		}
		if st.Dev != root.Dev {
			return filepath.SkipDir // an image is mounted here
		}
		if st.Nlink > 1 && !d.IsDir() {
			if seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		total += st.Blocks * 512
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return total
}

// PoolBytes is what the pool takes on disk.
func (l *Lab) PoolBytes() int64 {
	l.t.Helper()
	return l.DiskBytes(l.PoolPath())
}

// Eventually polls until done returns true, for things that happen shortly
// after the call that causes them; it fails the test after half a minute, which a busy disk can take.
func (l *Lab) Eventually(what string, done func() bool) {
	l.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if done() {
			return
		}
		if time.Now().After(deadline) {
			l.t.Errorf("not within half a minute: %s", what)
			return
		}
	}
}

// Collect has containerd collect its garbage now. Removing a snapshot through
// its API only forgets it: the snapshotter hears of it when garbage is
// collected, by default after a hundred changes or the next removal of an image.
func (l *Lab) Collect() {
	l.t.Helper()
	m := l.client.LeasesService()
	ctx := l.Namespace("collect")
	lease, err := m.Create(ctx, leases.WithRandomID())
	if err == nil {
		err = m.Delete(ctx, lease, leases.SynchronousDelete)
	}
	if err != nil {
		l.t.Fatalf("collect garbage: %v", err)
	}
}

// Cleanup has the daemon free what nothing needs, as containerd does at the end
// of a collection that has removed snapshots.
func (l *Lab) Cleanup(ctx context.Context) {
	l.t.Helper()
	conn, err := grpc.NewClient("unix://"+l.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		l.t.Fatal(err)
	}
	defer conn.Close()
	if err := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), Daxfs).(snapshots.Cleaner).Cleanup(ctx); err != nil {
		l.t.Fatalf("clean up: %v", err)
	}
}

// NothingMounted demands that no image and no container is mounted any more, nor
// a loop device held, once containerd has collected its garbage.
func (l *Lab) NothingMounted() {
	l.t.Helper()
	l.Collect()
	l.Eventually("no mounts of the daemon left", func() bool {
		return len(l.ImageMountPoints()) == 0 && len(l.ContainerMounts()) == 0
	})
	if p := l.ImageMountPoints(); len(p) > 0 {
		l.t.Errorf("image mounts left: %q", p)
	}
	l.Eventually("no loop devices left", func() bool { return len(sweep.LoopsOf(l.Dir)) == 0 })
}

// RootFS is where a running container's root file system is mounted on the host,
// without the mounts that the container has inside.
func (c *Container) RootFS() string {
	pattern := c.lab.path("state/io.containerd.runtime.v2.task/*/" + c.ID() + "/rootfs")
	found, _ := filepath.Glob(pattern)
	if len(found) != 1 {
		c.lab.t.Fatalf("%d directories %s, want one", len(found), pattern)
	}
	return found[0]
}
