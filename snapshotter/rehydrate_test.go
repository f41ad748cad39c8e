package snapshotter_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// blobStore is a content store with layers that fill makes. Unpacking the layer
// of a name in held waits until free is called for it, or for the end.
type blobStore struct {
	mu     sync.Mutex
	fills  map[string]func(dir string) // by name; nil: the blob is not there
	held   map[string]chan struct{}
	begun  []string
	away   bool // it cannot be asked
	walked bool // the archives make other layers than containerd's own differ
}

func newBlobStore() *blobStore {
	return &blobStore{fills: make(map[string]func(string)), held: make(map[string]chan struct{})}
}

func (b *blobStore) Apply(ctx context.Context, chain digest.Digest, u *snapshotter.Unpack) error {
	r, w := io.Pipe()
	go func() { w.CloseWithError(b.archive(ctx, chain, w)) }()
	_, _, err := u.Apply(ctx, r)
	r.Close()
	return err
}

func (b *blobStore) archive(ctx context.Context, chain digest.Digest, w io.Writer) error {
	dir, err := os.MkdirTemp("", "rehydrate")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	t := tar.NewWriter(w)
	if b.walked {
		if _, _, err := b.find(chain); err != nil {
			return err
		}
		return errors.Join(t.WriteHeader(&tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o711}), t.Close())
	}
	if err := b.unpack(ctx, chain, dir); err != nil {
		return err
	}
	root, err := os.Stat(dir)
	if err == nil {
		err = t.WriteHeader(&tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: root.ModTime(), Format: tar.FormatPAX})
	}
	files, rerr := os.ReadDir(dir)
	if err := errors.Join(err, rerr); err != nil {
		return err
	}
	for _, f := range files {
		fi, err := f.Info()
		if err != nil {
			return err
		}
		body, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return err
		}
		hdr := &tar.Header{Name: f.Name(), Mode: int64(fi.Mode().Perm()), ModTime: fi.ModTime(), Size: fi.Size(), Format: tar.FormatPAX}
		if err := t.WriteHeader(hdr); err != nil {
			return err
		}
		if _, err := t.Write(body); err != nil {
			return err
		}
	}
	return t.Close()
}

func (b *blobStore) Walk(ctx context.Context, chain digest.Digest, mounts []mount.Mount) error {
	return b.unpack(ctx, chain, upperOf(mounts))
}

func (b *blobStore) find(chain digest.Digest) (name string, fill func(string), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for n, f := range b.fills {
		if ref(n) == chain.String() {
			name, fill = n, f
		}
	}
	switch {
	case b.away:
		err = fmt.Errorf("dial: %w", errdefs.ErrUnavailable)
	case fill == nil:
		err = fmt.Errorf("blob of %q is not there, fetch it: %w", name, errdefs.ErrNotFound)
	}
	return name, fill, err
}

func (b *blobStore) unpack(ctx context.Context, chain digest.Digest, dir string) error {
	name, fill, err := b.find(chain)
	b.mu.Lock()
	held := b.held[name]
	b.begun = append(b.begun, name)
	b.mu.Unlock()
	if err != nil {
		return err
	}
	if held != nil {
		// Half of a layer, for those who look at the directory.
		half := filepath.Join(dir, "half")
		if err := os.WriteFile(half, []byte("half"), 0o644); err != nil {
			return err
		}
		select {
		case <-held:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := os.Remove(half); err != nil {
			return err
		}
	}
	fill(dir)
	return nil
}

// applied returns the names of the layers that were asked for, in order.
func (b *blobStore) applied() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.begun)
}

func (b *blobStore) set(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

// rehydrator is a keeper whose pool can be lost, with the blobs of what it pulls.
type rehydrator struct {
	*keeper
	blobs *blobStore
}

func newRehydrator(t testing.TB) *rehydrator {
	t.Helper()
	k := newKeeper(t, 128*mib, snapshotter.Keep{})
	r := &rehydrator{k, newBlobStore()}
	k.stop()
	k.content = r.blobs
	k.start()
	return r
}

// image unpacks a layer of n bytes and keeps its blob.
func (r *rehydrator) image(ns, name, parent string, n int) (committed string) {
	r.t.Helper()
	f := fill(r.t, name, n)
	r.blobs.set(func() { r.blobs.fills[name] = f })
	committed, _ = unpack(r.t, r, ns, name, parent, f)
	return committed
}

// lose stops the snapshotter and loses the pool, as a reboot does.
func (r *rehydrator) lose() {
	r.t.Helper()
	r.stop()
	testutil.UnmountBelow(r.t, r.root)
	if err := os.Remove(filepath.Join(r.root, "pool")); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rehydrator) layers() (n int) {
	for _, rec := range r.pool.Records() {
		if rec.Kind == daxmem.KindLayer && rec.Quarantined == "" {
			n++
		}
	}
	return n
}

func (r *rehydrator) eventually(what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("timed out waiting for %s", what)
		}
	}
}

// unpacking are the directories that layers are unpacked into.
func (r *rehydrator) unpacking() []string {
	dirs, err := filepath.Glob(filepath.Join(r.root, "rehydrate", "*"))
	if err != nil {
		r.t.Fatal(err)
	}
	return dirs
}

// free lets the layer of a name be applied.
func (r *rehydrator) free(name string) {
	r.blobs.set(func() { close(r.blobs.held[name]); delete(r.blobs.held, name) })
}

func (r *rehydrator) hold(names ...string) {
	r.blobs.set(func() {
		for _, n := range names {
			r.blobs.held[n] = make(chan struct{})
		}
	})
}

// What a reboot takes comes back from the content store, each layer once,
// whoever needs it, with its names.
func TestRehydrate(t *testing.T) {
	t.Run("archive", func(t *testing.T) { testRehydrate(t, false) })
	t.Run("walked", func(t *testing.T) { testRehydrate(t, true) })
}

func testRehydrate(t *testing.T, walked bool) {
	r := newRehydrator(t)
	r.blobs.walked = walked
	one := r.image("a", "one", "", mib)
	two := r.image("a", "two", one, mib)
	r.image("a", "big", "", 8*mib)
	other, unpacked := unpack(t, r, "b", "one", "", nil)
	if unpacked {
		t.Fatal("the other namespace unpacked a layer that is there")
	}
	if _, err := r.View(ctx, "a/9/view", two); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		r.lose()
		r.blobs.set(func() { r.blobs.begun = nil })
		r.start()
		r.eventually("three layers", func() bool { return r.layers() == 3 })
		r.eventually("three chains", func() bool { return r.has("one") && r.has("two") && r.has("big") })
		mounts, err := r.Mounts(ctx, "a/9/view")
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, mounts[0].Source+"/file-one") + read(t, mounts[0].Source+"/file-two"); len(got) != 2*mib {
			t.Errorf("read %d bytes", len(got))
		}
		r.use(other)
		if got := r.blobs.applied(); len(got) != 3 {
			t.Errorf("applied %q, want each of three layers once", got)
		}
		if dirs := r.unpacking(); len(dirs) > 0 {
			t.Errorf("left behind: %q", dirs)
		}
		r.check(t)
	}
}

// Layers that containers stand on come first, whatever their names are: while no
// other can get further than to begin.
func TestRehydrateNeededFirst(t *testing.T) {
	r := newRehydrator(t)
	var idle []string
	for i := range 12 {
		idle = append(idle, fmt.Sprint("idle", i))
		r.image("a", idle[i], "", 4096)
	}
	needed := r.image("z", "needed", "", 4096)
	if _, err := r.View(ctx, "z/9/view", needed); err != nil {
		t.Fatal(err)
	}
	r.lose()
	r.hold(idle...)
	r.start()
	r.eventually("the layer of the view", func() bool { return r.has("needed") })
	for _, n := range idle {
		r.free(n)
	}
	r.eventually("all layers", func() bool { return r.layers() == 13 })
}

// Who needs a layer that is not there yet gets it at once, and who needs one that
// is on its way waits for it.
func TestRehydrateEarly(t *testing.T) {
	r := newRehydrator(t)
	var idle []string
	for i := range 12 {
		idle = append(idle, fmt.Sprint("idle", i))
		r.image("a", idle[i], "", 4096)
	}
	late := r.image("b", "late", "", 4096)
	r.lose()
	r.hold(idle...)
	r.start()
	r.eventually("the first layers to begin", func() bool { return len(r.blobs.applied()) > 0 })
	r.use(late)

	first := r.blobs.applied()[0]
	done := make(chan error)
	go func() {
		_, err := r.View(ctx, "a/9/first", "a/2/"+ref(first))
		done <- err
	}()
	select {
	case err := <-done:
		t.Errorf("did not wait: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	r.free(first)
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, n := range idle {
		if n != first {
			r.free(n)
		}
	}
	r.eventually("all layers", func() bool { return r.layers() == 13 })
	if got := r.blobs.applied(); len(got) != 13 {
		t.Errorf("applied %q, want each of 13 layers once", got)
	}
	r.check(t)
}

// A collection while a container waits for its layer ends neither of them.
func TestRehydrateAndRemove(t *testing.T) {
	r := newRehydrator(t)
	one := r.image("a", "one", "", mib)
	other := r.image("a", "other", "", mib)
	if _, err := r.View(ctx, "a/9/view", one); err != nil {
		t.Fatal(err)
	}
	r.lose()
	r.hold("one")
	r.start()
	done := make(chan error, 2)
	go func() {
		_, err := r.Mounts(ctx, "a/9/view")
		done <- err
	}()
	r.eventually("the layer to begin", func() bool { return slices.Contains(r.blobs.applied(), "one") })
	time.Sleep(100 * time.Millisecond) // Mounts may wait for a layer that recovery began
	go func() { done <- r.Remove(ctx, other) }()
	time.Sleep(100 * time.Millisecond)
	r.free("one")
	for range 2 {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the mount and the removal wait for each other")
		}
	}
	r.eventually("only the layer of the view", func() bool { return r.layers() == 1 })
}

// Another kernel that asks for a chain that is lost gets it at once, all of it.
// For one that no snapshot here is, the image has to be pulled.
func TestRehydrateForOthers(t *testing.T) {
	r := newRehydrator(t)
	one := r.image("a", "one", "", mib)
	r.image("a", "two", one, mib)
	r.image("a", "three", one, mib)
	r.lose()
	r.hold("three")
	r.start()
	ask := func(name string) error {
		return r.Answer(ctx, &daxmem.Request{Seat: &daxmem.Seat{}, Kind: daxmem.AskConvert, Chain: chainOf(name), Name: "example.com/" + name})
	}
	if err := ask("two"); err != nil {
		t.Error(err)
	}
	if !r.has("one") || !r.has("two") {
		t.Error("answered before the chain was there")
	}
	if err := ask("four"); !errdefs.IsNotImplemented(err) {
		t.Errorf("a chain that is nowhere: %v, want %v: this kernel pulls nothing", err, errdefs.ErrNotImplemented)
	}
	r.free("three")
}

// What comes out as another layer is refused, and nothing of it stays.
func TestRehydrateOtherLayer(t *testing.T) {
	r := newRehydrator(t)
	good := r.image("a", "good", "", mib)
	bad := r.image("a", "bad", "", mib)
	r.lose()
	r.blobs.set(func() { r.blobs.fills["bad"] = fill(t, "something else", mib) })
	r.start()
	r.use(good)
	_, err := r.View(ctx, "a/9/bad", bad)
	if !errors.Is(err, snapshotter.ErrLayerLost) || !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "its contents make the layer ") {
		t.Errorf("another layer: %v", err)
	}
	if n := r.layers(); n != 1 {
		t.Errorf("%d layers, want 1", n)
	}
	if _, err := r.pool.Chain(chainOf("bad")); !errdefs.IsNotFound(err) {
		t.Errorf("chain of a layer that is not there: %v", err)
	}
	if st, err := r.pool.Stat(); err != nil || st.Inflight > 0 || st.ExtentCount != 1 {
		t.Errorf("left in the pool: %+v, %v", st, err)
	}
	if dirs := r.unpacking(); len(dirs) > 0 {
		t.Errorf("left behind: %q", dirs)
	}
	r.check(t)
}

// A blob that is not there is an error that says what to do; when that is done,
// the container starts.
func TestRehydrateWithoutBlob(t *testing.T) {
	r := newRehydrator(t)
	name := r.image("a", "image", "", mib)
	blob := r.blobs.fills["image"]
	r.lose()
	r.blobs.set(func() { r.blobs.fills["image"] = nil })
	r.start()
	for range 2 {
		_, err := r.View(ctx, "a/9/view", name)
		if !errors.Is(err, snapshotter.ErrLayerLost) || errdefs.IsNotFound(err) || !strings.Contains(err.Error(), `blob of "image" is not there, fetch it`) {
			t.Errorf("no blob: %v", err)
		}
	}
	r.blobs.set(func() { r.blobs.fills["image"] = blob })
	r.use(name)
	if !r.has("image") {
		t.Error("other kernels do not find the chain")
	}
}

// A snapshot that no image of a registry is cannot be applied again.
func TestRehydrateNoChainID(t *testing.T) {
	r := newRehydrator(t)
	r.layer(t, "base", "", fill(t, "base", mib))
	r.lose()
	r.start()
	if _, err := r.View(ctx, "view", "base"); !errors.Is(err, snapshotter.ErrLayerLost) {
		t.Errorf("lost: %v, want %v", err, snapshotter.ErrLayerLost)
	}
	if got := r.blobs.applied(); len(got) > 0 {
		t.Errorf("asked for %q", got)
	}
}

// containerd may start later. Meanwhile a container gets an error that says so,
// and Close does not wait.
func TestRehydrateUnavailable(t *testing.T) {
	r := newRehydrator(t)
	name := r.image("a", "image", "", mib)
	r.blobs.set(func() { r.blobs.away = true })
	for range 2 {
		r.lose()
		r.start()
		if _, err := r.View(ctx, "a/9/view", name); !errdefs.IsUnavailable(err) || errors.Is(err, snapshotter.ErrLayerLost) {
			t.Errorf("nobody to ask: %v, want %v", err, errdefs.ErrUnavailable)
		}
	}
	r.blobs.set(func() { r.blobs.away = false })
	r.eventually("the layer", func() bool { return r.layers() == 1 && r.has("image") })
	r.use(name)
}

// Close ends what is being applied; the next start does it again.
func TestRehydrateClose(t *testing.T) {
	r := newRehydrator(t)
	r.blobs.walked = true // which has directories to look at
	name := r.image("a", "image", "", mib)
	r.lose()
	r.hold("image")
	r.start()
	r.eventually("the layer to begin", func() bool { return len(r.unpacking()) == 1 })
	start := time.Now()
	r.stop()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("closing took %v", took)
	}
	if dirs := r.unpacking(); len(dirs) > 0 {
		t.Errorf("left behind: %q", dirs)
	}
	r.free("image")
	r.start()
	r.use(name)
}

// A collection in the middle leaves alone what is being applied. What nobody
// needs any more by the end goes.
func TestRehydrateAndCollect(t *testing.T) {
	r := newRehydrator(t)
	r.blobs.walked = true // which has directories to look at
	stays := r.image("a", "stays", "", mib)
	goes := r.image("a", "goes", "", mib)
	third := r.image("a", "third", "", mib)
	r.lose()
	r.hold("stays", "goes", "third")
	r.start()
	atOnce := min(2, runtime.GOMAXPROCS(0))
	r.eventually("layers to begin", func() bool { return len(r.unpacking()) >= atOnce })
	r.remove(goes)
	if n := len(r.unpacking()); n < atOnce {
		t.Errorf("%d directories after a collection", n)
	}
	for _, n := range []string{"stays", "goes", "third"} {
		r.free(n)
	}
	r.eventually("the layers", func() bool { return r.layers() == 2 && len(r.unpacking()) == 0 })
	r.use(stays)
	r.use(third)
	if r.has("goes") {
		t.Error("the chain of a removed image is back")
	}
	r.check(t)
}

// A layer that is damaged in the pool is lost like one that is not there, and its
// damaged record goes when the other has come.
func TestRehydrateDamaged(t *testing.T) {
	r := newRehydrator(t)
	r.image("a", "good", "", mib)
	bad := r.image("a", "bad", "", 2*mib)
	var at int64
	for _, rec := range r.pool.Records() {
		if rec.Kind == daxmem.KindLayer && rec.DataBytes == 2*mib {
			at = rec.Offset
		}
	}
	r.stop()
	f, err := os.OpenFile(filepath.Join(r.root, "pool"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("damage"), at); err != nil {
		t.Fatal(err)
	}
	f.Close()
	r.start()
	r.eventually("the layer", func() bool { return r.layers() == 2 && r.has("bad") })
	r.eventually("the damaged record to go", func() bool {
		rep, err := r.pool.Check(ctx, daxmem.CheckOptions{})
		return err == nil && len(rep.Quarantined) == 0
	})
	r.use(bad)
	if got := r.blobs.applied(); !slices.Equal(got, []string{"bad"}) {
		t.Errorf("applied %q, want the damaged one", got)
	}
	r.check(t)
}
