package integration

import (
	"context"
	"testing"

	"github.com/daxfs/containerd-daxfs/integration/images"
	"github.com/daxfs/containerd-daxfs/integration/lab"
)

// The same image in two namespaces is kept once, and each can go without the other.
func TestNamespaces(t *testing.T) {
	l := lab.New(t, lab.Config{Rebase: true, Parallel: 4})
	l.Image("debian")
	one, two := l.Namespace("one"), l.Namespace("two")
	first := l.MustPull(one, "debian", lab.Daxfs, lab.PullUnpack)
	// Both will run at once, from one mount. The first makes the image.
	c1, err := l.StartContainer(one, first, lab.Daxfs, []string{"sleep", "1000"}, lab.ContainerOpts{})
	if err != nil {
		t.Fatal(err)
	}
	before := int64(0)
	if !lab.Standin() {
		before = l.PoolBytes()
	}
	second := l.MustPull(two, "debian", lab.Daxfs, lab.Transfer)
	c2, err := l.StartContainer(two, second, lab.Daxfs, []string{"sleep", "1000"}, lab.ContainerOpts{})
	if err != nil {
		t.Fatal(err)
	}
	checkMounts(t, l, 2)
	if !lab.Standin() {
		if after := l.PoolBytes(); after > before {
			t.Errorf("the pool grew from %d to %d bytes", before, after)
		}
	}
	tree := l.ViewTree(two, second, lab.Daxfs)

	if err := c1.Remove(one); err != nil {
		t.Error(err)
	}
	removeImage := func(ctx context.Context) {
		l.RemoveImage(ctx, "debian")
		if left := l.Snapshots(ctx, lab.Daxfs); len(left) > 0 {
			t.Errorf("snapshots left: %q", left)
		}
	}
	removeImage(one)
	same(t, "debian in the other namespace", tree, l.ViewTree(two, second, lab.Daxfs))
	if out, err := c2.Exec(two, "sha256sum", "/usr/bin/perl"); err != nil {
		t.Errorf("container of the other namespace: %v %s", err, out)
	}
	if out, err := l.Run(two, second, lab.Daxfs, "true"); err != nil {
		t.Errorf("new container of the other namespace: %v %s", err, out)
	}
	if err := c2.Remove(two); err != nil {
		t.Error(err)
	}
	l.NothingMounted()
	removeImage(two)
}

// Five images over one base take less than overlayfs keeps for the same layers,
// since files repeat, and the space comes back when they go.
func TestFamilySharesExtents(t *testing.T) {
	if lab.Standin() {
		t.Skip("the stand-in has no pool")
	}
	l := lab.New(t, lab.Config{})
	ctx := l.Namespace("family")
	overlayRoot := l.Dir + "/root/io.containerd.snapshotter.v1.overlayfs/snapshots"
	empty := daemonBytes(l)
	for _, name := range images.Family {
		l.Image(name)
		l.MustPull(ctx, name, lab.Overlayfs, lab.PullUnpack)
	}
	overlay := l.DiskBytes(overlayRoot)
	var after []int64
	for _, name := range images.Family {
		img := l.MustPull(ctx, name, lab.Daxfs, lab.PullUnpack)
		if out, err := l.Run(ctx, img, lab.Daxfs, "cat", "/srv/name"); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		after = append(after, l.PoolBytes())
	}
	l.Collect() // of the upper directories
	ours := daemonBytes(l)
	t.Logf("bytes on disk: overlayfs %d, ours %d; the pool after each image: %d", overlay, ours, after)
	// Each image brings four megabytes that the first has already brought.
	if want := overlay - 3*4_000_000; ours > want {
		t.Errorf("%d bytes on disk, want at most %d", ours, want)
	}
	for i := 1; i < len(after); i++ {
		// Its own 300 kB and its metadata.
		if grown := after[i] - after[i-1]; grown > 2<<20 {
			t.Errorf("image %d made the pool grow by %d bytes", i, grown)
		}
	}
	removeAll(t, l, ctx, images.Family)
	l.Eventually("space given back", func() bool { return daemonBytes(l) < empty+1<<20 })
	if got := daemonBytes(l); got > empty+1<<20 {
		t.Errorf("%d bytes with everything removed, %d before", got, empty)
	}
}

// With the configuration that users have, a second container finds the image of
// the first still mounted, and nothing is left when the image is removed.
func TestImageStaysMounted(t *testing.T) {
	if lab.Standin() {
		t.Skip("the stand-in mounts no images")
	}
	l := lab.New(t, lab.Config{KeepMounted: true})
	ctx := l.Namespace("stays")
	l.Image("rootopaque")
	img := l.MustPull(ctx, "rootopaque", lab.Daxfs, lab.PullUnpack)
	for range 2 {
		if _, err := l.Run(ctx, img, lab.Daxfs, "true"); err != nil {
			t.Fatal(err)
		}
		l.Collect()
		if at := l.ImageMountPoints(); len(at) != 1 {
			t.Fatalf("images mounted after the container: %q, want its own", at)
		}
	}
	l.RemoveImage(ctx, "rootopaque")
	l.NothingMounted()
	removeAll(t, l, ctx, nil)
}
