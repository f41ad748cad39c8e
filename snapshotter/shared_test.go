package snapshotter_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/engine"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// ref is the chainID of a test's layer.
func ref(name string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(name))) }

// unpack does what containerd does with one layer of an image, with fill as the
// differ. It returns the committed snapshot's name, and whether the layer had to
// be unpacked.
func unpack(t testing.TB, sn snapshots.Snapshotter, ns, name, parent string, fill func(dir string)) (committed string, unpacked bool) {
	t.Helper()
	labels := snapshots.WithLabels(map[string]string{"containerd.io/snapshot.ref": ref(name)})
	key := ns + "/1/extract-1 " + ref(name)
	mounts, err := sn.Prepare(ctx, key, parent, labels)
	if errdefs.IsAlreadyExists(err) {
		filter := fmt.Sprintf("labels.%q==%s,parent==%q", "containerd.io/snapshot.ref", ref(name), parent)
		err = sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			committed = info.Name
			return nil
		}, filter)
		if err != nil || committed == "" {
			t.Fatalf("find %s: %q, %v", filter, committed, err)
		}
		return committed, false
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range mounts[0].Options {
		if dir, ok := cutPrefix(o, "upperdir="); ok {
			fill(dir)
		}
	}
	committed = ns + "/2/" + ref(name)
	if err := sn.Commit(ctx, committed, key, labels); err != nil {
		t.Fatal(err)
	}
	return committed, true
}

func cutPrefix(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || s[:len(prefix)] != prefix {
		return s, false
	}
	return s[len(prefix):], true
}

// kernels are an owner and a reader of one pool.
type kernels struct {
	owner  *rig
	reader *rig // pool is its own one, or nil
	shared *daxmem.Reader

	// convert is what the owner does when it is asked for an image, imageOf how
	// the reader knows an image's name; nil: they do not.
	convert func(name string) error
	imageOf func(chainID digest.Digest) (string, error)
}

func startKernels(t *testing.T, missing snapshotter.Missing, own bool) *kernels {
	t.Helper()
	testutil.Root(t)
	dir, err := os.MkdirTemp("/dev/shm", "snapshotter-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	location := filepath.Join(dir, "pool")
	pool, err := daxmem.OpenOrCreate(ctx, location, daxmem.Options{MaxSize: 256 << 20, Holder: "owner"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pool.Close() })
	root := t.TempDir()
	e, _, err := engine.Select(ctx, nil, snapshotter.EnginePool(pool))
	if err != nil {
		t.Fatal(err)
	}
	k := &kernels{}
	sn, err := snapshotter.New(ctx, snapshotter.Options{Root: root, Pool: pool, Engine: e, Convert: func(_ context.Context, name string) error {
		if k.convert == nil {
			return errdefs.ErrNotFound
		}
		return k.convert(name)
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sn.Close(); testutil.UnmountBelow(t, root) })
	k.owner = &rig{sn, root, pool}
	k.attach(t, location, missing, own)

	ctx, stop := context.WithCancel(ctx)
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := pool.Serve(ctx, sn.Answer); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { stop(); serving.Wait() })
	return k
}

func (k *kernels) attach(t *testing.T, location string, missing snapshotter.Missing, own bool) {
	t.Helper()
	region, err := daxmem.OpenRegionShared(location)
	if err != nil {
		t.Fatal(err)
	}
	if k.shared, err = daxmem.Attach(ctx, region, daxmem.Options{Holder: "reader"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.shared.Close(); err != nil {
			t.Error(err)
		}
	})
	opts := snapshotter.Options{
		Root: t.TempDir(), Shared: k.shared, SharedEngine: &engine.Best{}, Missing: missing, AskWait: 30 * time.Second,
		ImageOf: func(_ context.Context, chainID digest.Digest) (string, error) {
			if k.imageOf == nil {
				return "", errdefs.ErrNotFound
			}
			return k.imageOf(chainID)
		},
	}
	if own {
		if opts.Pool, err = daxmem.OpenOrCreate(ctx, filepath.Join(opts.Root, "pool"), daxmem.Options{MaxSize: 256 << 20}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { opts.Pool.Close() })
		if opts.Engine, _, err = engine.Select(ctx, nil, snapshotter.EnginePool(opts.Pool)); err != nil {
			t.Fatal(err)
		}
	}
	sn, err := snapshotter.New(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sn.Close(); testutil.UnmountBelow(t, opts.Root) })
	k.reader = &rig{sn, opts.Root, opts.Pool}
}

// counts compares how the reader came by its chains, as the owner sees it.
func (k *kernels) counts(t *testing.T, want daxmem.Counts) {
	t.Helper()
	seats, err := k.owner.pool.Seats()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range seats {
		if s.Holder == "reader" && s.Chains != want {
			t.Errorf("%v has counted %v chains, want %v", s, s.Chains, want)
		}
	}
}

// A layer that was staged for an unpack which is given up is let go of at once.
func TestStagedRemoved(t *testing.T) {
	k := startKernels(t, snapshotter.MissingAsk, false)
	one, _ := unpack(t, k.owner, "a", "one", "", layerOne(t))
	unpack(t, k.owner, "a", "two", one, layerTwo(t))
	key := "b/1/extract-1 " + ref("two")
	mounts, err := k.reader.Prepare(ctx, key, "", snapshots.WithLabels(map[string]string{
		"containerd.io/snapshot.ref": ref("two"), "containerd.io/snapshot/parent-chain-id": ref("one"),
	}))
	if err != nil || !mounts[0].ReadOnly() {
		t.Fatalf("not staged: %+v, %v", mounts, err)
	}
	if n := k.pins(t); n != 1 {
		t.Errorf("%d pins of a staged layer, want 1", n)
	}
	if err := k.reader.Remove(ctx, key); err != nil {
		t.Fatal(err)
	}
	if n := k.pins(t); n != 0 {
		t.Errorf("%d pins are left", n)
	}
}

// pins is how many the reader has, as the owner sees it.
func (k *kernels) pins(t *testing.T) (n int) {
	t.Helper()
	seats, err := k.owner.pool.Seats()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range seats {
		if s.Holder == "reader" {
			n += s.Pins
		}
	}
	return n
}

// What the pool does not have, the owner brings when it is asked for the image by
// the name that containerd's content gives.
func TestAsk(t *testing.T) {
	k := startKernels(t, snapshotter.MissingAsk, false)
	const name = "example.com/app@sha256:1"
	k.imageOf = func(chainID digest.Digest) (string, error) {
		if chainID.String() != ref("one") {
			return "", errdefs.ErrNotFound
		}
		return name, nil
	}
	var asked []string
	k.convert = func(name string) error {
		asked = append(asked, name)
		unpack(t, k.owner, "daxfs", "one", "", layerOne(t))
		return nil
	}
	never := func(string) { t.Error("a layer was unpacked that the owner brings") }
	one, _ := unpack(t, k.reader, "b", "one", "", never)
	mounts, err := k.reader.Prepare(ctx, "b/9/container", one)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, lowerOf(t, mounts)+"/etc/os"); got != "one" {
		t.Errorf("read %q", got)
	}
	if !slices.Equal(asked, []string{name}) {
		t.Errorf("the owner was asked for %q", asked)
	}
	labels := snapshots.WithLabels(map[string]string{"containerd.io/snapshot.ref": ref("two")})
	if _, err := k.reader.Prepare(ctx, "b/1/extract-1 "+ref("two"), one, labels); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("an image that nobody knows: %v, want %v", err, errdefs.ErrFailedPrecondition)
	}
	k.counts(t, daxmem.Counts{daxmem.ChainBrought: 1, daxmem.ChainMissed: 1})
}

// A directory that nothing was unpacked into is not older than its snapshot:
// what a layer does not list is known by that.
func TestUpperIsNotOlder(t *testing.T) {
	r := start(t)
	for i := range 50 {
		mounts, err := r.Prepare(ctx, fmt.Sprintf("a/1/extract-%d %s", i, ref("one")), "")
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range mounts[0].Options {
			dir, ok := cutPrefix(o, "upperdir=")
			if !ok {
				continue
			}
			upper, err := os.Stat(dir)
			if err != nil {
				t.Fatal(err)
			}
			snapshot, err := os.Stat(filepath.Dir(dir))
			if err != nil {
				t.Fatal(err)
			}
			if upper.ModTime().Before(snapshot.ModTime()) {
				t.Fatalf("the upper directory is of %v, its snapshot of %v", upper.ModTime(), snapshot.ModTime())
			}
		}
	}
}

func layerOne(t testing.TB) func(string) {
	return func(d string) { write(t, d+"/etc/os", "one"); write(t, d+"/etc/gone", "x") }
}

func layerTwo(t testing.TB) func(string) {
	return func(d string) { write(t, d+"/etc/os", "two"); write(t, d+"/more", "more") }
}

// An owner that stops leaves its snapshots' layers pinned: whoever owns the pool
// next knows nothing of the snapshots.
func TestNextOwnerKeepsLayers(t *testing.T) {
	testutil.Root(t)
	dir, err := os.MkdirTemp("/dev/shm", "snapshotter-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	location := filepath.Join(dir, "pool")
	roots := map[string]string{"first": t.TempDir(), "second": t.TempDir()}
	own := func(holder string, during func(r *rig)) {
		t.Helper()
		pool, err := daxmem.OpenOrCreate(ctx, location, daxmem.Options{MaxSize: 64 << 20, Holder: holder})
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		e, _, err := engine.Select(ctx, nil, snapshotter.EnginePool(pool))
		if err != nil {
			t.Fatal(err)
		}
		sn, err := snapshotter.New(ctx, snapshotter.Options{Root: roots[holder], Pool: pool, Engine: e})
		if err != nil {
			t.Fatal(err)
		}
		defer testutil.UnmountBelow(t, roots[holder])
		defer sn.Close()
		during(&rig{sn, roots[holder], pool})
	}
	var one, two string
	own("first", func(r *rig) {
		one, _ = unpack(t, r, "a", "one", "", layerOne(t))
		two, _ = unpack(t, r, "a", "two", one, layerTwo(t))
	})
	own("second", func(r *rig) {
		if err := r.Cleanup(ctx); err != nil {
			t.Fatal(err)
		}
		if r.used(t) == 0 {
			t.Error("the second owner freed the layers of the first one's snapshots")
		}
	})
	own("first", func(r *rig) {
		mounts, err := r.Prepare(ctx, "a/9/container", two)
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, lowerOf(t, mounts)+"/etc/os"); got != "two" {
			t.Errorf("read %q", got)
		}
		for _, name := range []string{"a/9/container", two, one} {
			if err := r.Remove(ctx, name); err != nil {
				t.Fatal(err)
			}
		}
		r.check(t)
	})
	own("second", func(r *rig) {
		if err := r.Cleanup(ctx); err != nil {
			t.Fatal(err)
		}
		if used := r.used(t); used != 0 {
			t.Errorf("%d bytes are in use after the last snapshot was removed", used)
		}
	})
}

// What the owner has unpacked, the reader neither fetches nor unpacks; it runs
// from the owner's memory, and keeps it there.
func TestAttach(t *testing.T) {
	k := startKernels(t, snapshotter.MissingAsk, false)
	one, _ := unpack(t, k.owner, "a", "one", "", layerOne(t))
	two, _ := unpack(t, k.owner, "a", "two", one, layerTwo(t))

	never := func(string) { t.Error("a layer was unpacked that the pool has") }
	r1, _ := unpack(t, k.reader, "b", "one", "", never)
	r2, unpacked := unpack(t, k.reader, "b", "two", r1, never)
	if unpacked {
		t.Fatal("unpacked")
	}
	mounts, err := k.reader.Prepare(ctx, "b/9/container", r2)
	if err != nil {
		t.Fatal(err)
	}
	if err := mount.WithTempMount(ctx, mounts, func(dir string) error {
		if got := read(t, dir+"/etc/os") + read(t, dir+"/etc/gone") + read(t, dir+"/more"); got != "twoxmore" {
			t.Errorf("read %q", got)
		}
		return os.WriteFile(dir+"/new", nil, 0o644)
	}); err != nil {
		t.Fatal(err)
	}
	// The owner's containerd forgets all of it.
	for _, name := range []string{two, one} {
		if err := k.owner.Remove(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	if got := k.owner.used(t); got == 0 {
		t.Error("freed under a reader")
	}
	if got := read(t, lowerOf(t, mounts)+"/etc/os"); got != "two" {
		t.Errorf("read %q", got)
	}
	for _, name := range []string{"b/9/container", r2, r1} {
		if err := k.reader.Remove(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	// Now nobody needs it: but for the minute that what was asked for stays.
	seats, err := k.owner.pool.Seats()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range seats {
		if s.Holder == "reader" && s.Pins != 0 {
			t.Errorf("%d pins are left of %v", s.Pins, s)
		}
	}
	k.owner.check(t)
}

// A parallel unpack tells a layer's parent at its end. Layers that the pool has
// are read-only to it, and committed as they are; chains that it made say what
// they stand on.
func TestAttachParallel(t *testing.T) {
	k := startKernels(t, snapshotter.MissingAsk, false)
	labels := func(name, below string) snapshots.Opt {
		l := map[string]string{"containerd.io/snapshot.ref": ref(name)}
		if below != "" {
			l["containerd.io/snapshot/parent-chain-id"] = ref(below)
		}
		return snapshots.WithLabels(l)
	}
	// unpackParallel returns whether the layer had to be unpacked.
	unpackParallel := func(sn snapshots.Snapshotter, ns, name, below, parent string, fill func(string)) bool {
		t.Helper()
		key := ns + "/1/extract-1 " + ref(name)
		mounts, err := sn.Prepare(ctx, key, "", labels(name, below))
		if err != nil {
			t.Fatal(err)
		}
		unpacked := !mounts[0].ReadOnly()
		if unpacked {
			for _, o := range mounts[0].Options {
				if dir, ok := cutPrefix(o, "upperdir="); ok {
					fill(dir)
				}
			}
		}
		if again, err := sn.Mounts(ctx, key); err != nil || again[0].ReadOnly() == unpacked {
			t.Errorf("mounts again: %+v, %v", again, err)
		}
		if err := sn.Commit(ctx, ns+"/2/"+ref(name), key, labels(name, below), snapshots.WithParent(parent)); err != nil {
			t.Fatal(err)
		}
		return unpacked
	}
	one, _ := unpack(t, k.owner, "a", "one", "", layerOne(t))
	if !unpackParallel(k.owner, "a", "two", "one", one, layerTwo(t)) {
		t.Error("staged from an empty pool")
	}
	// The same chainIDs on the owner itself, in another namespace, and elsewhere.
	for ns, sn := range map[string]*rig{"other": k.owner, "b": k.reader} {
		never := func(string) { t.Error("unpacked") }
		one, unpacked := unpack(t, sn, ns, "one", "", never)
		if unpacked || unpackParallel(sn, ns, "two", "one", one, never) {
			t.Errorf("%s: a layer was unpacked that the pool has", ns)
		}
		mounts, err := sn.Prepare(ctx, ns+"/9/container", ns+"/2/"+ref("two"))
		if err != nil {
			t.Fatal(err)
		}
		lower := lowerOf(t, mounts)
		if got := read(t, lower+"/etc/os") + read(t, lower+"/etc/gone") + read(t, lower+"/more"); got != "twoxmore" {
			t.Errorf("%s: read %q", ns, got)
		}
	}
	// A chainID with another layer below is not the same.
	mounts, err := k.reader.Prepare(ctx, "b/1/extract-2 "+ref("two"), "", labels("two", "else"))
	if !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("on another layer: %+v, %v", mounts, err)
	}
}

// A reader that becomes the owner brings what it had unpacked for itself.
func TestFormerPool(t *testing.T) {
	k := startKernels(t, snapshotter.MissingLocal, true)
	r1, _ := unpack(t, k.reader, "b", "one", "", layerOne(t))
	r2, _ := unpack(t, k.reader, "b", "two", r1, layerTwo(t))
	if err := k.reader.Snapshotter.Close(); err != nil {
		t.Fatal(err)
	}
	e, _, err := engine.Select(ctx, nil, snapshotter.EnginePool(k.owner.pool))
	if err != nil {
		t.Fatal(err)
	}
	sn, err := snapshotter.New(ctx, snapshotter.Options{Root: k.reader.root, Pool: k.owner.pool, Engine: e, Former: k.reader.pool})
	if err != nil {
		t.Fatal(err)
	}
	defer sn.Close()
	mounts, err := sn.Prepare(ctx, "b/9/container", r2)
	if err != nil {
		t.Fatal(err)
	}
	lower := lowerOf(t, mounts)
	if got := read(t, lower+"/etc/os") + read(t, lower+"/etc/gone") + read(t, lower+"/more"); got != "twoxmore" {
		t.Errorf("read %q", got)
	}
	k.owner.check(t)
}

// What the pool does not have is unpacked into the reader's own pool, with the
// layers below copied once, or it is an error.
func TestMissing(t *testing.T) {
	for _, c := range []struct {
		missing snapshotter.Missing
		own     bool
		fails   bool
	}{
		{snapshotter.MissingLocal, true, false},
		{snapshotter.MissingAsk, true, false}, // nobody knows the image's name
		{snapshotter.MissingFail, true, true},
		{snapshotter.MissingAsk, false, true},
	} {
		t.Run(fmt.Sprintf("%s-%t", c.missing, c.own), func(t *testing.T) {
			k := startKernels(t, c.missing, c.own)
			unpack(t, k.owner, "a", "one", "", layerOne(t))
			r1, _ := unpack(t, k.reader, "b", "one", "", layerTwo(t))
			if c.fails {
				labels := snapshots.WithLabels(map[string]string{"containerd.io/snapshot.ref": ref("two")})
				_, err := k.reader.Prepare(ctx, "b/1/extract-1 "+ref("two"), r1, labels)
				if !errors.Is(err, errdefs.ErrFailedPrecondition) {
					t.Fatalf("%v, want %v", err, errdefs.ErrFailedPrecondition)
				}
				k.counts(t, daxmem.Counts{daxmem.ChainFound: 1, daxmem.ChainMissed: 1})
				return
			}
			r2, unpacked := unpack(t, k.reader, "b", "two", r1, layerTwo(t))
			if !unpacked {
				t.Fatal("not unpacked")
			}
			k.counts(t, daxmem.Counts{daxmem.ChainFound: 1, daxmem.ChainUnpacked: 1})
			mounts, err := k.reader.Prepare(ctx, "b/9/container", r2)
			if err != nil {
				t.Fatal(err)
			}
			if err := mount.WithTempMount(ctx, mounts, func(dir string) error {
				if got := read(t, dir+"/etc/os") + read(t, dir+"/etc/gone") + read(t, dir+"/more"); got != "twoxmore" {
					t.Errorf("read %q", got)
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			k.reader.check(t)
		})
	}
}
