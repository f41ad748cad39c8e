package integration

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"

	"github.com/daxfs/containerd-daxfs/integration/fstree"
	"github.com/daxfs/containerd-daxfs/integration/lab"
)

// changes is what a container does to a debian image: every kind of change that
// an overlay's upper directory has a form of its own for. The last line gives
// everything touched one mtime, so that two containers end up the same.
const changes = `
set -e
touch /marker; sleep 0.1
echo root2:x:0:0::/root:/bin/sh >>/etc/passwd
rm /etc/debian_version
rm -rf /usr/share/zoneinfo
rm -rf /srv && mkdir /srv && echo new >/srv/new
mv /usr/share/perl5 /usr/share/perl5-moved
mv /usr/bin/perl /usr/local/bin/perl-moved
mkdir /opt/dir && mv /opt/dir /opt/renamed
rm /usr/bin/setpriv && mkdir /usr/bin/setpriv && echo in >/usr/bin/setpriv/in
rm -rf /usr/share/common-licenses && echo file >/usr/share/common-licenses
rm -rf /var/mail && ln -s /nowhere /var/mail
ln /usr/bin/sed /usr/bin/sed-linked
cp -p /usr/bin/sort /usr/bin/sort-copy && chown 77:88 /usr/bin/sort-copy && chmod 4711 /usr/bin/sort-copy
setcap cap_net_raw+ep /usr/local/bin/perl-moved
setfattr -n user.note -v added /etc/passwd
chmod 700 /home
chown 1234:5678 /usr/games
mkfifo /fifo
mknod /null c 1 3
printf 'a%.0s' $(seq 1 200000) >/big
truncate -s 30M /sparse
printf 'x' >"/$(printf 'n%.0s' $(seq 1 255))"
touch "/$(printf '\377\376')"
rm -rf /app/data && mkdir -p /app/data/a/b && touch /app/data/a/b/c
echo changed | dd of=/bin/bash conv=notrunc bs=1 seek=100 status=none
find / -xdev -newer /marker -exec touch -h -d @1700000000.123456789 {} +
rm /marker
touch -d @1700000000.123456789 /
`

// A container's changes come out the same by diff from both snapshotters; a
// commit shows exactly what the container saw, while it runs on undisturbed.
func TestDiffAndCommit(t *testing.T) {
	l := lab.New(t, lab.Config{})
	ctx := l.Namespace("commit")
	l.Image("debian")

	applied := map[string]fstree.Tree{}
	for _, snapshotter := range []string{lab.Overlayfs, lab.Daxfs} {
		img := l.MustPull(ctx, "debian", snapshotter, lab.PullUnpack)
		c, err := l.StartContainer(ctx, img, snapshotter, []string{"sleep", "1000"}, lab.ContainerOpts{})
		if err != nil {
			t.Fatal(err)
		}
		if out, err := c.Exec(ctx, "sh", "-c", changes); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		diff, err := l.Ctr(ctx, "snapshots", "--snapshotter", snapshotter, "diff", c.ID())
		if err != nil {
			t.Fatal(err)
		}
		applied[snapshotter] = applyDiff(t, l, ctx, img, strings.NewReader(diff))

		if snapshotter == lab.Daxfs {
			commitRunning(t, l, ctx, img, c)
		} else if err := c.Remove(ctx); err != nil {
			t.Error(err)
		}
	}
	same(t, "diff applied to the image, overlayfs's and ours", applied[lab.Overlayfs], applied[lab.Daxfs])
}

// applyDiff records the image's tree with a diff's tar applied to it.
func applyDiff(t *testing.T, l *lab.Lab, ctx context.Context, img client.Image, r io.Reader) fstree.Tree {
	t.Helper()
	z, err := compression.DecompressStream(r)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	sn := l.Client().SnapshotService(lab.Overlayfs)
	root := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "test"})
	mounts, err := sn.Prepare(ctx, "apply", l.ChainID(ctx, img), root)
	if err != nil {
		t.Fatal(err)
	}
	defer sn.Remove(ctx, "apply")
	var tree fstree.Tree
	l.Mounted(mounts, func(dir string) {
		if _, err := archive.Apply(ctx, dir, z); err != nil {
			t.Fatal(err)
		}
		if tree, err = fstree.Walk(dir, fstree.Options{}); err != nil {
			t.Fatal(err)
		}
	})
	// The root's time is that of applying.
	e := tree["."]
	e.MtimeSec, e.MtimeNsec = 0, 0
	tree["."] = e
	return tree
}

func commitRunning(t *testing.T, l *lab.Lab, ctx context.Context, img client.Image, c *lab.Container) {
	t.Helper()
	live, err := fstree.Walk(c.RootFS(), fstree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	sn := l.Client().SnapshotService(lab.Daxfs)
	root := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "test"})
	if err := sn.Commit(ctx, "committed", c.ID(), root); err != nil {
		t.Fatalf("commit of a running container: %v", err)
	}
	committed := l.ViewSnapshot(ctx, "committed", lab.Daxfs)
	rest, counts := fstree.Excused(fstree.Diff(live, committed), func(d fstree.Difference) (string, bool) {
		// An overlay goes on counting lower names that the container removed.
		return "link count", d.Field == "nlink" && committed[d.Path].Nlink == uint64(max(1, len(committed[d.Path].Links)))
	})
	t.Logf("%d paths, %d link counts differ", len(committed), counts["link count"])
	if len(rest) > 0 {
		t.Errorf("%d differences, the container's view != the commit:\n%s", len(rest), fstree.Format(rest, 40))
	}

	// The container that was committed goes on.
	if out, err := c.Exec(ctx, "sh", "-c", "cat /srv/new && echo more >>/srv/new && cat /srv/new && sha256sum /usr/bin/sed-linked /bin/ls"); err != nil {
		t.Errorf("after its commit, the container: %v %s", err, out)
	}

	// And another one starts from the commit.
	if _, err := sn.Prepare(ctx, "from-commit", "committed", root); err != nil {
		t.Fatal(err)
	}
	next, err := l.StartContainer(ctx, img, lab.Daxfs, []string{"sleep", "1000"},
		lab.ContainerOpts{Container: []client.NewContainerOpts{client.WithSnapshot("from-commit")}})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := next.Exec(ctx, "sh", "-c", "cat /srv/new; ls /etc/debian_version /usr/share/zoneinfo 2>&1 | wc -l; perl-moved -e 'print 40+2'"); err != nil || out != "new\n2\n42" {
		t.Errorf("container of the commit: %v %q", err, out)
	}
	// Commits on commits: flattening a container's layer over a container's layer.
	if out, err := next.Exec(ctx, "sh", "-c", "rm -rf /srv /big; mkdir /usr/share/zoneinfo; echo back >/usr/share/zoneinfo/back; rm /etc/passwd-; ln /fifo /fifo2"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	live, err = fstree.Walk(next.RootFS(), fstree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Stop(ctx); err != nil {
		t.Error(err)
	}
	if err := sn.Commit(ctx, "committed-again", "from-commit", root); err != nil {
		t.Fatal(err)
	}
	committed = l.ViewSnapshot(ctx, "committed-again", lab.Daxfs)
	rest, _ = fstree.Excused(fstree.Diff(live, committed), func(d fstree.Difference) (string, bool) {
		return "link count", d.Field == "nlink" && committed[d.Path].Nlink == uint64(max(1, len(committed[d.Path].Links)))
	})
	if len(rest) > 0 {
		t.Errorf("second commit, %d differences:\n%s", len(rest), fstree.Format(rest, 40))
	}

	if err := c.Stop(ctx); err != nil {
		t.Error(err)
	}
	for _, x := range []client.Container{c.Container, next.Container} {
		if err := x.Delete(ctx); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"committed-again", "committed"} {
		if err := sn.Remove(ctx, name); err != nil {
			t.Error(err)
		}
	}
	removeAll(t, l, ctx, []string{"debian"})
}

// What nerdctl commit does: a diff of the container becomes a layer of a new
// image, whose chain is unpacked in turn.
func TestDiffIsDeterministic(t *testing.T) {
	l := lab.New(t, lab.Config{})
	ctx := l.Namespace("diff")
	l.Image("debian")
	img := l.MustPull(ctx, "debian", lab.Daxfs, lab.PullUnpack)
	c, err := l.StartContainer(ctx, img, lab.Daxfs, []string{"sleep", "1000"}, lab.ContainerOpts{})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := c.Exec(ctx, "sh", "-c", changes); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var diffs [2]string
	for i := range diffs {
		if diffs[i], err = l.Ctr(ctx, "snapshots", "--snapshotter", lab.Daxfs, "diff", c.ID()); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal([]byte(diffs[0]), []byte(diffs[1])) {
		t.Error("two diffs of one container differ")
	}
	if err := c.Remove(ctx); err != nil {
		t.Error(err)
	}
}
