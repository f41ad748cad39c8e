package integration

import (
	"context"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/daxfs/containerd-daxfs/integration/fstree"
	"github.com/daxfs/containerd-daxfs/integration/lab"
	"github.com/daxfs/containerd-daxfs/integration/ocitree"
)

// The daemon dies at many points of a pull. Pulling again after its restart
// gives the right image, and once that is removed nothing of any try is left.
func TestKilledWhilePulling(t *testing.T) {
	l := lab.New(t, lab.Config{Rebase: true, Parallel: 4})
	ctx := l.Namespace("killed")
	want, _ := l.Expected("debian", ocitree.Options{})
	// How long a whole pull takes here, and what an empty pool takes after one.
	start := time.Now()
	l.MustPull(ctx, "debian", lab.Daxfs, lab.PullUnpack)
	whole := time.Since(start)
	l.RemoveImage(ctx, "debian")
	empty := daemonBytes(l)

	const rounds = 5
	for i := range rounds {
		after := whole * time.Duration(i+1) / (rounds + 1)
		t.Run(fmt.Sprintf("after %d of %d", i+1, rounds+1), func(t *testing.T) {
			l := l.For(t)
			done := make(chan error)
			go func() {
				_, err := l.Pull(ctx, "debian", lab.Daxfs, lab.Methods[i%len(lab.Methods)])
				done <- err
			}()
			time.Sleep(after)
			if i == rounds-1 {
				l.KillDaemon()
				<-done
				l.Reboot()
			} else {
				l.KillDaemon()
				err := <-done
				t.Logf("killed after %v, pull: %v", after.Round(time.Millisecond), err)
				l.StartDaemon()
			}
			img := l.MustPull(ctx, "debian", lab.Daxfs, lab.Methods[(i+1)%len(lab.Methods)])
			if diffs := fstree.Diff(want, l.ViewTree(ctx, img, lab.Daxfs)); len(diffs) > 0 && !lab.Standin() {
				t.Errorf("%d differences, wanted != got:\n%s", len(diffs), fstree.Format(diffs, 20))
			}
			if out, err := l.Run(ctx, img, lab.Daxfs, "cat", "/app/data/only"); err != nil || out != "one\n" {
				t.Errorf("run: %v %q", err, out)
			}
			removeAll(t, l, ctx, []string{"debian"})
			// A mebibyte is for databases, which do not shrink.
			l.Eventually("space given back", func() bool { return daemonBytes(l) < empty+1<<20 })
			if got := daemonBytes(l); got >= empty+1<<20 {
				t.Errorf("%d bytes below the daemon's root with nothing left, %d before", got, empty)
			}
		})
	}
}

// daemonBytes is what the daemon keeps on disk, pool and all.
func daemonBytes(l *lab.Lab) int64 { return l.DiskBytes(l.Root()) }

// After a reboot, everything that containerd believes in works: images, stopped
// and formerly running containers with their changes, views, commits.
func TestReboot(t *testing.T) {
	l := lab.New(t, lab.Config{})
	ctx := l.Namespace("reboot")
	l.Image("debian")
	l.Image("nasty")
	img := l.MustPull(ctx, "debian", lab.Daxfs, lab.PullUnpack)
	nasty := l.MustPull(ctx, "nasty", lab.Daxfs, lab.Transfer)
	debianTree, nastyTree := l.ViewTree(ctx, img, lab.Daxfs), l.ViewTree(ctx, nasty, lab.Daxfs)

	running, err := l.StartContainer(ctx, img, lab.Daxfs, []string{"sleep", "1000"}, lab.ContainerOpts{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := running.Exec(ctx, "sh", "-c", "echo kept >/kept; rm /etc/debian_version; rm -rf /srv; mkdir /srv; sync"); err != nil {
		t.Fatal(err)
	}
	stopped, err := l.CreateContainer(ctx, img, lab.Daxfs, []string{"cat", "/etc/debian_version"}, lab.ContainerOpts{})
	if err != nil {
		t.Fatal(err)
	}
	sn := l.Client().SnapshotService(lab.Daxfs)
	root := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "test"})
	if _, err := sn.View(ctx, "view", l.ChainID(ctx, nasty), root); err != nil {
		t.Fatal(err)
	}
	rootfs := running.RootFS()
	live, err := fstree.Walk(rootfs, fstree.Options{})
	if err != nil {
		t.Fatal(err)
	}

	l.Reboot()
	sn = l.Client().SnapshotService(lab.Daxfs)

	if got := mountsOfAll(t, l, ctx); len(got) < 3 {
		t.Errorf("mounts answered for %d snapshots only: %v", len(got), got)
	}
	mounts, err := sn.Mounts(ctx, "view")
	if err != nil {
		t.Fatal(err)
	}
	same(t, "view over the reboot", nastyTree, l.MountTree(mounts))
	if img, err = l.Client().GetImage(ctx, l.Ref("debian")); err != nil {
		t.Fatal(err)
	}
	same(t, "debian over the reboot", debianTree, l.ViewTree(ctx, img, lab.Daxfs))

	mounts, err = sn.Mounts(ctx, running.ID())
	if err != nil {
		t.Fatal(err)
	}
	same(t, "a container's changes", live, l.MountTree(mounts))
	for _, old := range []struct {
		id   string
		args []string
	}{{running.ID(), nil}, {stopped.ID(), nil}} {
		c, err := l.Client().LoadContainer(ctx, old.id)
		if err != nil {
			t.Fatal(err)
		}
		started, err := l.StartTask(ctx, c)
		if err != nil {
			t.Fatalf("start %s again: %v", old.id, err)
		}
		if old.id == stopped.ID() {
			if out, err := started.Wait(ctx); err != nil || out == "" {
				t.Errorf("stopped container: %v %q", err, out)
			}
			if err := c.Delete(ctx, client.WithSnapshotCleanup); err != nil {
				t.Error(err)
			}
			continue
		}
		if out, err := started.Exec(ctx, "sh", "-c", "cat /kept; test ! -e /etc/debian_version"); err != nil || out != "kept\n" {
			t.Errorf("formerly running container: %v %q", err, out)
		}
		if err := started.Remove(ctx); err != nil {
			t.Error(err)
		}
	}
	if err := sn.Remove(ctx, "view"); err != nil {
		t.Error(err)
	}
	removeAll(t, l, ctx, []string{"debian", "nasty"})
}

// A second reboot before anything was used, and one with the daemon started
// after containerd, are no different.
func TestRebootTwice(t *testing.T) {
	l := lab.New(t, lab.Config{})
	ctx := l.Namespace("reboot")
	l.Image("nasty")
	img := l.MustPull(ctx, "nasty", lab.Daxfs, lab.PullUnpack)
	tree := l.ViewTree(ctx, img, lab.Daxfs)
	c, err := l.CreateContainer(ctx, img, lab.Daxfs, []string{"true"}, lab.ContainerOpts{})
	if err != nil {
		t.Fatal(err)
	}
	l.Reboot()
	l.Reboot()
	l.KillDaemon()
	l.RestartContainerd()
	l.StartDaemon()
	if img, err = l.Client().GetImage(ctx, l.Ref("nasty")); err != nil {
		t.Fatal(err)
	}
	same(t, "nasty over two reboots", tree, l.ViewTree(ctx, img, lab.Daxfs))
	started := l.MustStartAgain(ctx, c.ID())
	if out, err := started.Wait(ctx); err != nil {
		t.Errorf("%v %s", err, out)
	}
	if err := started.Delete(ctx, client.WithSnapshotCleanup); err != nil {
		t.Error(err)
	}
	removeAll(t, l, ctx, []string{"nasty"})
}

// mountsOfAll asks for the mounts of every active snapshot and view.
func mountsOfAll(t *testing.T, l *lab.Lab, ctx context.Context) []string {
	t.Helper()
	sn := l.Client().SnapshotService(lab.Daxfs)
	var keys []string
	err := sn.Walk(ctx, func(ctx context.Context, i snapshots.Info) error {
		if i.Kind == snapshots.KindCommitted {
			return nil
		}
		keys = append(keys, i.Name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		if _, err := sn.Mounts(ctx, key); err != nil {
			t.Errorf("mounts of %s: %v", key, err)
		}
	}
	return keys
}

// same demands that two trees are equal in everything.
func same(t *testing.T, what string, want, got fstree.Tree) {
	t.Helper()
	if reflect.DeepEqual(want, got) {
		return
	}
	diffs := fstree.Diff(want, got)
	t.Errorf("%s: %d differences, wanted != got:\n%s", what, len(diffs), fstree.Format(diffs, 20))
}
