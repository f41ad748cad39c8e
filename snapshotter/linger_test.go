package snapshotter_test

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/engine"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// lingering is a snapshotter whose images stay mounted for a while.
func lingering(t *testing.T, d time.Duration, keep snapshotter.Keep) *rig {
	t.Helper()
	testutil.Root(t)
	root := t.TempDir()
	pool, err := daxmem.OpenOrCreate(ctx, filepath.Join(root, "pool"), daxmem.Options{MaxSize: 64 * mib})
	if err != nil {
		t.Fatal(err)
	}
	e, _, err := engine.Select(ctx, nil, snapshotter.EnginePool(pool))
	if err != nil {
		t.Fatal(err)
	}
	sn, err := snapshotter.New(ctx, snapshotter.Options{Root: root, Pool: pool, Engine: e, KeepMounted: d, Keep: keep})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{sn, root, pool}
	t.Cleanup(func() {
		if err := errors.Join(sn.Close(), pool.Close()); err != nil && !errors.Is(err, daxmem.ErrClosed) {
			t.Error(err)
		}
		testutil.UnmountBelow(t, root)
	})
	return r
}

// container prepares a container and removes it again.
func (r *rig) container(t *testing.T, parent string) {
	t.Helper()
	if _, err := r.Prepare(ctx, "a/9/c", parent); err != nil {
		t.Fatal(err)
	}
	if err := r.Remove(ctx, "a/9/c"); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) mounts(t *testing.T) int { return len(testutil.MountsBelow(t, r.root)) }

// An image stays mounted after its last container, for the next one, and goes when
// nobody comes.
func TestKeepMounted(t *testing.T) {
	const d = 5 * time.Second
	r := lingering(t, d, snapshotter.Keep{})
	base := apply(t, r, "base", "", tarOf(t, entry{"f", "x"}))
	start := time.Now()
	r.container(t, base)
	if err := r.Cleanup(ctx); err != nil {
		t.Fatal(err)
	}
	if n := r.mounts(t); n != 1 && time.Since(start) < d {
		t.Fatalf("%d mounts after the container, want its image's", n)
	}
	before := onlyMount(t, r)
	r.container(t, base)
	if after := onlyMount(t, r); after != before && time.Since(start) < d {
		t.Errorf("the second container has mount %d, want %d", after, before)
	}
	for deadline := time.Now().Add(10 * d); r.mounts(t) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the image stays mounted for ever")
		}
	}
	if took := time.Since(start); took < d {
		t.Errorf("unmounted after %v, want %v or more", took, d)
	}
	r.container(t, base)
	if n := r.mounts(t); n != 1 {
		t.Errorf("%d mounts after one more container", n)
	}
}

// onlyMount is the number of the only mount below a rig.
func onlyMount(t *testing.T, r *rig) int {
	t.Helper()
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(r.root))
	if err != nil || len(infos) != 1 {
		t.Fatalf("mounts %v, %v, want 1", infos, err)
	}
	return infos[0].ID
}

// An image that is removed does not stay mounted, nor does any after Close.
func TestKeepMountedRemoved(t *testing.T) {
	r := lingering(t, time.Hour, snapshotter.Keep{})
	one := apply(t, r, "one", "", tarOf(t, entry{"f", "1"}))
	two := apply(t, r, "two", "", tarOf(t, entry{"f", "2"}))
	r.container(t, one)
	r.container(t, two)
	if n := r.mounts(t); n != 2 {
		t.Fatalf("%d mounts, want 2", n)
	}
	if err := r.Remove(ctx, one); err != nil {
		t.Fatal(err)
	}
	if n := r.mounts(t); n != 1 {
		t.Errorf("%d mounts after an image was removed, want 1", n)
	}
	if n := len(r.pool.Records()); n != 2 {
		t.Errorf("%d records, want the layer and the image of the other", n)
	}
	if err := r.Snapshotter.Close(); err != nil {
		t.Fatal(err)
	}
	if n := r.mounts(t); n != 0 {
		t.Errorf("%d mounts after Close", n)
	}
	if err := r.pool.Close(); err != nil {
		t.Fatal(err)
	}
}

// Room that is needed goes before mounts that nothing uses.
func TestKeepMountedFull(t *testing.T) {
	r := lingering(t, time.Hour, snapshotter.Keep{High: 90, Low: 50})
	var first string
	for i, name := range []string{"one", "two", "three", "four", "five", "six"} {
		key, mounts := prepare(t, r, name, "")
		fill(t, name, 16*mib)(upperOf(mounts))
		committed := "a/2/" + ref(name)
		if err := r.Commit(ctx, committed, key); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		r.container(t, committed)
		if i == 0 {
			first = name
		}
		if err := r.Remove(ctx, committed); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.pool.Chain(chainOf(first)); err == nil {
		t.Error("six layers of 16 MiB are in a pool of 64 MiB")
	}
}
