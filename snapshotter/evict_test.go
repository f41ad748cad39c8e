package snapshotter_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/engine"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

const mib = 1 << 20

// keeper is a snapshotter that keeps what is unused, over a small pool that
// other kernels can reach.
type keeper struct {
	*rig
	t    testing.TB
	keep snapshotter.Keep
	size int64
	// content is where the layers of a lost pool are applied again from, or nil.
	content snapshotter.Content
}

func newKeeper(t testing.TB, size int64, keep snapshotter.Keep) *keeper {
	t.Helper()
	testutil.Root(t)
	root, err := os.MkdirTemp("/dev/shm", "keeper-")
	if err != nil {
		t.Fatal(err)
	}
	k := &keeper{t: t, rig: &rig{root: root}, keep: keep, size: size}
	t.Cleanup(func() {
		k.stop()
		testutil.UnmountBelow(t, root)
		os.RemoveAll(root)
	})
	k.start()
	return k
}

func (k *keeper) start() {
	k.t.Helper()
	pool, err := daxmem.OpenOrCreate(ctx, filepath.Join(k.root, "pool"), daxmem.Options{MaxSize: k.size, Holder: "owner"})
	if err != nil {
		k.t.Fatal(err)
	}
	e, _, err := engine.Select(ctx, nil, snapshotter.EnginePool(pool))
	if err != nil {
		k.t.Fatal(errors.Join(err, pool.Close()))
	}
	sn, err := snapshotter.New(ctx, snapshotter.Options{Root: k.root, Pool: pool, Engine: e, Keep: k.keep, Content: k.content})
	if err != nil {
		k.t.Fatal(errors.Join(err, pool.Close()))
	}
	k.rig = &rig{sn, k.root, pool}
}

func (k *keeper) stop() {
	k.t.Helper()
	if err := k.Close(); err != nil && !errors.Is(err, daxmem.ErrClosed) {
		k.t.Error(err)
	}
}

// fill writes a file of n random bytes that belong to name.
func fill(t testing.TB, name string, n int) func(dir string) {
	return func(dir string) {
		b := make([]byte, n)
		seed := [32]byte{}
		copy(seed[:], name)
		rand.NewChaCha8(seed).Read(b)
		path, at := filepath.Join(dir, "file-"+name), time.Unix(1_700_000_000, 0)
		// The same layer each time.
		if err := errors.Join(os.WriteFile(path, b, 0o644), os.Chtimes(path, at, at), os.Chtimes(dir, at, at)); err != nil {
			t.Error(err)
		}
	}
}

// pull unpacks an image of one layer, or finds it.
func (k *keeper) pull(name string, n int) (committed string, unpacked bool) {
	k.t.Helper()
	return unpack(k.t, k, "a", name, "", fill(k.t, name, n))
}

// use flattens the image, as a container does, and waits until the kernel has let
// go of it: until then it is pinned.
func (k *keeper) use(committed string) {
	k.t.Helper()
	before := k.pins()
	if _, err := k.View(ctx, "a/9/use", committed); err != nil {
		k.t.Fatal(err)
	}
	k.remove("a/9/use")
	for deadline := time.Now().Add(20 * time.Second); k.pins() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			k.t.Fatalf("%d pins, there were %d", k.pins(), before)
		}
		if err := k.Cleanup(ctx); err != nil {
			k.t.Fatal(err)
		}
	}
}

// pins counts those of images: layers are pinned for snapshots too.
func (k *keeper) pins() (n int) {
	for _, r := range k.pool.Records() {
		if r.Kind == daxmem.KindImage {
			n += r.Pins
		}
	}
	return n
}

func (k *keeper) remove(names ...string) {
	k.t.Helper()
	for _, n := range names {
		if err := k.Remove(ctx, n); err != nil {
			k.t.Fatal(err)
		}
	}
}

// has reports whether the pool has the chain of a one-layer image.
func (k *keeper) has(name string) bool {
	k.t.Helper()
	_, err := k.pool.Chain(chainOf(name))
	if err != nil && !errdefs.IsNotFound(err) {
		k.t.Fatal(err)
	}
	return err == nil
}

func chainOf(name string) [32]byte { return sha256.Sum256([]byte(name)) }

// pullAs is unpack in a namespace, of which there may be many at once.
func (k *keeper) pullAs(ns, name, parent string, fill func(dir string)) (committed string, err error) {
	labels := snapshots.WithLabels(map[string]string{"containerd.io/snapshot.ref": ref(name)})
	key := ns + "/1/extract-1 " + ref(name)
	mounts, err := k.Prepare(ctx, key, parent, labels)
	if errdefs.IsAlreadyExists(err) {
		return ns + "/1/" + ref(name), nil
	}
	if err != nil {
		return "", err
	}
	fill(upperOf(mounts))
	committed = ns + "/2/" + ref(name)
	return committed, k.Commit(ctx, committed, key, labels)
}

func upperOf(mounts []mount.Mount) string {
	for _, m := range mounts {
		for _, o := range m.Options {
			if dir, ok := cutPrefix(o, "upperdir="); ok {
				return dir
			}
		}
		if m.Type == "bind" {
			return m.Source
		}
	}
	return ""
}

// Without watermarks nothing stays that nobody needs; with them all of it does,
// and is found when it is asked for again.
func TestKeepUnused(t *testing.T) {
	for _, keep := range []snapshotter.Keep{{}, {High: 90, Low: 50}} {
		t.Run(fmt.Sprint(keep), func(t *testing.T) {
			k := newKeeper(t, 64*mib, keep)
			one, _ := k.pull("one", mib)
			two, _ := unpack(t, k, "a", "two", one, fill(t, "two", mib))
			k.use(two)
			k.remove(two, one)
			for range 2 { // also after a restart
				want := 0
				if keep != (snapshotter.Keep{}) {
					want = 5 // two layers, two chains, one image
				}
				if got := len(k.pool.Records()) + len(k.pool.Chains()); got != want {
					t.Errorf("%d records are left, want %d", got, want)
				}
				k.check(t)
				k.stop()
				k.start()
			}
			one, unpacked := k.pull("one", mib)
			two, unpackedTwo := unpack(t, k, "a", "two", one, fill(t, "two", mib))
			if unpacked != (keep == snapshotter.Keep{}) || unpackedTwo != unpacked {
				t.Errorf("unpacked again: %t, %t", unpacked, unpackedTwo)
			}
			k.use(two)
			k.check(t)
		})
	}
}

// Above the high watermark what was needed longest ago goes, until below the low
// one. Layers that others need stay.
func TestEvictOldest(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart-%t", restart), func(t *testing.T) {
			k := newKeeper(t, 64*mib, snapshotter.Keep{High: 70, Low: 55})
			base, _ := k.pull("base", 4*mib)
			var tops []string
			for i := range 4 { // 8 MiB each
				name := fmt.Sprint("top", i)
				top, _ := unpack(t, k, "a", name, base, fill(t, name, 8*mib))
				k.use(top)
				tops = append(tops, top)
			}
			// top1 is in use, top0 was needed last, unless only the order of
			// publication is known.
			k.remove(tops[2], tops[3], tops[0])
			oldest := []string{"top2", "top3"}
			if restart {
				k.stop()
				k.start()
				oldest = []string{"top0", "top2"}
			}
			// 36 MiB of 64 are in use: 57 %.
			for _, name := range []string{"base", "top0", "top1", "top2", "top3"} {
				if !k.has(name) {
					t.Fatalf("%s is gone below the watermark", name)
				}
			}
			k.pull("more", 12*mib) // 77 %; two have to go, which leaves 52 %
			for _, name := range []string{"base", "top0", "top1", "top2", "top3", "more"} {
				gone := name == oldest[0] || name == oldest[1]
				if k.has(name) == gone {
					t.Errorf("%s: in the pool %t, want %t", name, k.has(name), !gone)
				}
			}
			if got := k.pool.Room().Percent(); got > 55 {
				t.Errorf("%.0f %% are in use", got)
			}
			k.check(t)
			// What stayed can be used.
			if _, unpacked := unpack(t, k, "a", "top3", base, fill(t, "top3", 8*mib)); unpacked == restart {
				t.Errorf("top3 was unpacked: %t", unpacked)
			}
			k.use(tops[1])
		})
	}
}

// A pool that is full makes room for an import, and fails when all of it is
// needed.
func TestEvictForImport(t *testing.T) {
	k := newKeeper(t, 64*mib, snapshotter.Keep{High: 100, Low: 100})
	var names []string
	for i := range 6 {
		name, _ := k.pull(fmt.Sprint("image", i), 9*mib)
		k.use(name)
		names = append(names, name)
	}
	k.remove(names[:4]...)
	for i := range 3 { // a layer of several files, larger than what one leaves
		name := fmt.Sprint("large", i)
		large, _ := unpack(t, k, "a", name, "", func(dir string) {
			for j := range 4 {
				fill(t, fmt.Sprint(name, j), 4*mib)(dir)
			}
		})
		k.use(large)
		k.remove(large)
		k.check(t)
	}
	for i, n := range names {
		if k.has(fmt.Sprint("image", i)) != (i >= 4) {
			t.Errorf("%s: in the pool %t", n, i < 4)
		}
	}
	mounts, err := k.Prepare(ctx, "a/1/too-large", "")
	if err != nil {
		t.Fatal(err)
	}
	fill(t, "huge", 46*mib)(upperOf(mounts))
	if err := k.Commit(ctx, "a/2/too-large", "a/1/too-large"); !errors.Is(err, daxmem.ErrFull) {
		t.Errorf("more than can be freed: %v, want %v", err, daxmem.ErrFull)
	}
	for _, n := range names[4:] {
		k.use(n)
	}
	k.check(t)
}

// What another kernel has pinned stays, with its name, however full it gets.
func TestEvictPinned(t *testing.T) {
	k := newKeeper(t, 64*mib, snapshotter.Keep{High: 60, Low: 30})
	mine, _ := k.pull("mine", 9*mib)
	k.use(mine)
	other, _ := k.pull("other", 9*mib)
	k.use(other)
	rec, err := k.pool.Chain(chainOf("mine"))
	if err != nil {
		t.Fatal(err)
	}
	region, err := daxmem.OpenRegionShared(k.pool.Region().Path())
	if err != nil {
		t.Fatal(err)
	}
	guest, err := daxmem.Attach(ctx, region, daxmem.Options{Holder: "guest"})
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	_, unpin, err := guest.Pin(daxmem.KindLayer, rec.Digest)
	if err != nil {
		t.Fatal(err)
	}
	k.remove(mine, other)
	for i := range 8 {
		name, _ := k.pull(fmt.Sprint("more", i), 9*mib)
		k.remove(name)
		if !k.has("mine") {
			t.Fatalf("pinned and gone after %d pulls", i+1)
		}
	}
	if k.has("other") {
		t.Error("nobody needs it, and it stays")
	}
	k.check(t)
	unpin()
	for i := range 8 {
		name, _ := k.pull(fmt.Sprint("evenmore", i), 9*mib)
		k.remove(name)
	}
	if k.has("mine") {
		t.Error("stays without a pin")
	}
	k.check(t)
}

// What was pulled and removed makes room for others while no collection looks at
// the pool, because a layer is being unpacked all the time.
func TestEvictWhileUnpacking(t *testing.T) {
	k := newKeeper(t, 64*mib, snapshotter.Keep{High: 90, Low: 50})
	_, mounts := prepare(t, k.rig, "slow", "")
	u, err := k.Unpack(ctx, mounts)
	if err != nil {
		t.Fatal(err)
	}
	layer, feed := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, _, err := u.Apply(ctx, layer)
		layer.CloseWithError(err)
		done <- err
	}()
	slow := tarOf(t, entry{"f", "slow"})
	if _, err := feed.Write(slow[:600]); err != nil {
		t.Fatal(err)
	}
	for i := range 12 {
		name, _ := k.pull(fmt.Sprint("image", i), 9*mib)
		k.remove(name)
	}
	if _, err := feed.Write(slow[600:]); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(feed.Close(), <-done); err != nil {
		t.Fatal(err)
	}
	k.check(t)
}

// Pulls, containers and removals of more images than fit, at once: no snapshot
// ever refers to a layer that is gone.
func TestEvictConcurrent(t *testing.T) {
	k := newKeeper(t, 64*mib, snapshotter.Keep{High: 80, Low: 60})
	rounds := 60
	if testing.Short() {
		rounds = 15
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			for i := range rounds {
				ns := fmt.Sprintf("ns%d-%d", w, i)
				image := r.IntN(24)
				base, err := k.pullAs(ns, fmt.Sprint("base", image%4), "", fill(t, fmt.Sprint("base", image%4), 2*mib))
				if err != nil {
					t.Errorf("base of image %d: %v", image, err)
					return
				}
				top, err := k.pullAs(ns, fmt.Sprint("top", image), base, fill(t, fmt.Sprint("top", image), 3*mib))
				if err != nil {
					t.Errorf("top of image %d: %v", image, err)
					return
				}
				if _, err := k.View(ctx, ns+"/9/view", top); err != nil {
					t.Errorf("image %d: %v", image, err)
					return
				}
				for _, n := range []string{ns + "/9/view", top, base} {
					if err := k.Remove(ctx, n); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	k.check(t)
	if got := k.pool.Room().Percent(); got > 100 {
		t.Errorf("%.0f %% are in use", got)
	}
}

func TestKeepRefused(t *testing.T) {
	for _, keep := range []snapshotter.Keep{{High: 50}, {Low: 50}, {High: 101, Low: 50}, {High: 50, Low: 51}, {High: -1, Low: -2}} {
		if _, err := snapshotter.New(ctx, snapshotter.Options{Root: t.TempDir(), Keep: keep}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v, want %v", keep, err, errdefs.ErrInvalidArgument)
		}
	}
}

var _ snapshots.Snapshotter = (*keeper)(nil)

// Of removals at the same time the last one to be done leaves nothing, though each
// may find another collecting.
func TestRemoveAtOnce(t *testing.T) {
	k := newKeeper(t, 64*mib, snapshotter.Keep{})
	for round := range 20 {
		var names []string
		for i := range 6 {
			n, _ := k.pull(fmt.Sprint(round, "-", i), 4096)
			names = append(names, n)
		}
		var wg sync.WaitGroup
		for _, n := range names {
			wg.Go(func() {
				if err := k.Remove(ctx, n); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if left := append(k.pool.Records(), k.pool.Chains()...); len(left) > 0 {
			t.Fatalf("round %d: %d records left", round, len(left))
		}
	}
}
