package integration

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/daxfs/containerd-daxfs/integration/fstree"
	"github.com/daxfs/containerd-daxfs/integration/lab"
)

// A reboot empties the pool's memory. All layers come back from what containerd
// keeps of the images, in two namespaces, without the registry; what was there
// before is there again, and what is asked for too early waits.
func TestRehydrate(t *testing.T) {
	if lab.Standin() {
		t.Skip("the stand-in has no pool")
	}
	t.Run("differ", func(t *testing.T) { testRehydrate(t, lab.Config{}) })
	t.Run("walking", func(t *testing.T) { testRehydrate(t, lab.Config{Walking: true}) })
}

func testRehydrate(t *testing.T, config lab.Config) {
	config.Memory, config.Rebase, config.Parallel = true, true, 4
	l := lab.New(t, config)
	ctx, other := l.Namespace("one"), l.Namespace("two")
	l.Image("debian")
	l.Image("nasty")
	img := l.MustPull(ctx, "debian", lab.Daxfs, lab.PullUnpack)
	nasty := l.MustPull(ctx, "nasty", lab.Daxfs, lab.Transfer)
	second := l.MustPull(other, "debian", lab.Daxfs, lab.FetchUnpack)
	nastyTree := l.ViewTree(ctx, nasty, lab.Daxfs)
	c, err := l.StartContainer(ctx, img, lab.Daxfs, []string{"sleep", "1000"}, lab.ContainerOpts{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(ctx, "sh", "-c", "echo kept >/kept; rm /etc/debian_version; sync"); err != nil {
		t.Fatal(err)
	}
	live, err := fstree.Walk(c.RootFS(), fstree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	sn := l.Client().SnapshotService(lab.Daxfs)
	root := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "test"})
	if _, err := sn.View(ctx, "view", l.ChainID(ctx, nasty), root); err != nil {
		t.Fatal(err)
	}
	before := poolLayers(t, l)
	l.Registry.Blobs()

	l.Reboot()
	sn = l.Client().SnapshotService(lab.Daxfs)
	mounts, err := sn.Mounts(ctx, c.ID())
	if err != nil {
		t.Fatal(err)
	}
	same(t, "a container's tree", live, l.MountTree(mounts))
	if mounts, err = sn.Mounts(ctx, "view"); err != nil {
		t.Fatal(err)
	}
	same(t, "a view", nastyTree, l.MountTree(mounts))
	l.Eventually("all layers and chains back", func() bool { return poolLayers(t, l) == before })
	if after := poolLayers(t, l); after != before {
		t.Errorf("the pool has\n%swant\n%s", after, before)
	}
	if got := l.Registry.Blobs(); len(got) > 0 {
		t.Errorf("fetched %v", got)
	}
	if out, err := l.Daxfsctl("pool", "check", "--data"); err != nil {
		t.Errorf("%v %s", err, out)
	}
	if second, err = l.Client().GetImage(other, second.Name()); err != nil {
		t.Fatal(err)
	}
	if out, err := l.Run(other, second, lab.Daxfs, "cat", "/etc/debian_version"); err != nil || out == "" {
		t.Errorf("container of the other namespace: %v %q", err, out)
	}

	started := l.MustStartAgain(ctx, c.ID())
	if out, err := started.Exec(ctx, "cat", "/kept"); err != nil || out != "kept\n" {
		t.Errorf("formerly running container: %v %q", err, out)
	}
	if err := started.Remove(ctx); err != nil {
		t.Error(err)
	}
	if err := sn.Remove(ctx, "view"); err != nil {
		t.Error(err)
	}
	removeAll(t, l, ctx, []string{"debian", "nasty"})
	removeAll(t, l, other, []string{"debian"})
	// The kernel may let go of an image after its last mount has gone.
	l.Eventually("an empty pool", func() bool {
		l.Cleanup(ctx)
		return poolLayers(t, l) == ""
	})
	if got := poolLayers(t, l); got != "" {
		t.Errorf("left in the pool:\n%s", got)
	}
}

// poolLayers names the layers and chains of the pool, one in a line.
func poolLayers(t *testing.T, l *lab.Lab) string {
	t.Helper()
	out, err := l.Daxfsctl("--json", "pool", "ls")
	if err != nil {
		t.Fatal(err)
	}
	var pool struct {
		Records []struct{ Kind, Key string }
	}
	if err := json.Unmarshal([]byte(out), &pool); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var lines []string
	for _, r := range pool.Records {
		if r.Kind != "image" {
			lines = append(lines, r.Kind+" "+r.Key+"\n")
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// What containerd does not keep (discard_unpacked_layers) is lost with an error
// that says of which image it is and how to get it; then nothing has to be
// removed.
func TestRehydrateWithoutBlobs(t *testing.T) {
	if lab.Standin() {
		t.Skip("the stand-in has no pool")
	}
	l := lab.New(t, lab.Config{Memory: true})
	ctx := l.Namespace("discarded")
	layers, err := l.Image("debian").Layers()
	if err != nil {
		t.Fatal(err)
	}
	img := l.MustPull(ctx, "debian", lab.Daxfs, lab.PullUnpack)
	tree := l.ViewTree(ctx, img, lab.Daxfs)
	c, err := l.CreateContainer(ctx, img, lab.Daxfs, []string{"cat", "/etc/debian_version"}, lab.ContainerOpts{})
	if err != nil {
		t.Fatal(err)
	}
	lost := layers[1]
	if err := l.Client().ContentStore().Delete(ctx, lost.Digest); err != nil {
		t.Fatal(err)
	}
	chainID := l.ChainID(ctx, img)

	l.Reboot()
	sn := l.Client().SnapshotService(lab.Daxfs)
	_, err = sn.Mounts(ctx, c.ID())
	for _, want := range []string{
		"layer is not in the pool", lost.Digest.String(), "image " + l.Ref("debian") + " in namespace",
		"content fetch " + l.Ref("debian"),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("mounts of a container without a blob: %v, want %q in it", err, want)
		}
	}
	t.Logf("refused: %v", err)
	out, err := l.Daxfsctl("doctor", "--containerd-config", l.Dir+"/containerd.toml")
	if err == nil || !strings.Contains(out, "1 layer that snapshots need is not in the pool") {
		t.Errorf("doctor: %v %s", err, out)
	}

	if _, err := l.Ctr(ctx, "content", "fetch", "--plain-http", l.Ref("debian")); err != nil {
		t.Fatal(err)
	}
	same(t, "the tree after a fetch", tree, l.ViewSnapshot(ctx, chainID, lab.Daxfs))
	started := l.MustStartAgain(ctx, c.ID())
	if out, err := started.Wait(ctx); err != nil || out == "" {
		t.Errorf("container after a fetch: %v %q", err, out)
	}
	if out, err := l.Daxfsctl("pool", "check", "--data"); err != nil {
		t.Errorf("%v %s", err, out)
	}
}
