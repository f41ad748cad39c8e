package snapshotter_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// entry is a file of a test's layer.
type entry struct{ name, content string }

// tarOf makes a layer of files.
func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&tar.Header{Name: e.name, Mode: 0o644, Size: int64(len(e.content)), Format: tar.FormatPAX}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// prepare makes the snapshot that an unpack does.
func prepare(t testing.TB, r *rig, name, parent string) (key string, mounts []mount.Mount) {
	t.Helper()
	key = "a/1/extract-1 " + ref(name)
	mounts, err := r.Prepare(ctx, key, parent, snapshots.WithLabels(map[string]string{"containerd.io/snapshot.ref": ref(name)}))
	if err != nil {
		t.Fatal(err)
	}
	return key, mounts
}

// apply unpacks a layer by our differ and commits it.
func apply(t testing.TB, r *rig, name, parent string, layer []byte) (committed string) {
	t.Helper()
	return applyBy(t, r, name, parent, func(u *snapshotter.Unpack) (digest.Digest, int64, error) {
		return u.Apply(ctx, bytes.NewReader(layer))
	}, layer)
}

// applyBy makes a snapshot of what by, one of the ways to unpack, reads: plain.
func applyBy(t testing.TB, r *rig, name, parent string, by func(*snapshotter.Unpack) (digest.Digest, int64, error), plain []byte) (committed string) {
	t.Helper()
	key, mounts := prepare(t, r, name, parent)
	u, err := r.Unpack(ctx, mounts)
	if err != nil {
		t.Fatal(err)
	}
	got, size, err := by(u)
	if err != nil {
		t.Fatal(err)
	}
	if want := digest.FromBytes(plain); got != want || size != int64(len(plain)) {
		t.Errorf("digest %s of %d bytes, want %s of %d", got, size, want, len(plain))
	}
	committed = "a/2/" + ref(name)
	if err := r.Commit(ctx, committed, key); err != nil {
		t.Fatal(err)
	}
	return committed
}

// Layers that are unpacked from their archives make the image that they say,
// without a file in a directory, and can be found by others.
func TestApply(t *testing.T) {
	r := start(t)
	one := apply(t, r, "one", "", tarOf(t, entry{"etc/os", "one"}, entry{"etc/gone", "x"}, entry{"../up", "root"}, entry{"/abs", "root"}))
	two := apply(t, r, "two", one, tarOf(t, entry{"etc/os", "two"}, entry{"etc/.wh.gone", ""}))
	mounts, err := r.Prepare(ctx, "a/9/container", two)
	if err != nil {
		t.Fatal(err)
	}
	lower := lowerOf(t, mounts)
	if got := read(t, lower+"/etc/os") + read(t, lower+"/up") + read(t, lower+"/abs"); got != "tworootroot" {
		t.Errorf("read %q", got)
	}
	if _, err := os.Lstat(lower + "/etc/gone"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("whited out: %v", err)
	}
	if n := len(r.pool.Chains()); n != 2 {
		t.Errorf("%d chains, want 2", n)
	}
	if left, err := filepath.Glob(r.root + "/snapshots/*/fs/*"); err != nil || len(left) > 0 {
		t.Errorf("files were unpacked to disk: %q, %v", left, err)
	}
	r.check(t)
	for _, name := range []string{"a/9/container", two, one} {
		if err := r.Remove(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Cleanup(ctx); err != nil {
		t.Fatal(err)
	}
	if used := r.used(t); used != 0 {
		t.Errorf("%d bytes are in use after all was removed", used)
	}
}

// What was unpacked and not committed is kept over a restart, and goes with its
// snapshot.
func TestApplyRestart(t *testing.T) {
	r := start(t)
	key, mounts := prepare(t, r, "one", "")
	u, err := r.Unpack(ctx, mounts)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := u.Apply(ctx, bytes.NewReader(tarOf(t, entry{"etc/os", "one"}))); err != nil {
		t.Fatal(err)
	}
	r.reopen(t)
	if err := r.Cleanup(ctx); err != nil {
		t.Fatal(err)
	}
	if r.used(t) == 0 {
		t.Error("an unpacked layer is gone after a restart")
	}
	if err := r.Remove(ctx, key); err != nil {
		t.Fatal(err)
	}
	if used := r.used(t); used != 0 {
		t.Errorf("%d bytes are left of a snapshot that was removed", used)
	}
}

// endless is a file that never ends, as far as anybody waits.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(i * 7)
	}
	return len(p), nil
}

// Layers that cannot be unpacked leave nothing, and their snapshots can take
// another.
func TestApplyBad(t *testing.T) {
	good := tarOf(t, entry{"etc/os", "one"}, entry{"big", string(bytes.Repeat([]byte("0123456789"), 100_000))})
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	for name, c := range map[string]struct {
		ctx   context.Context
		layer io.Reader
		class func(error) bool
	}{
		"cut":         {ctx, bytes.NewReader(good[:len(good)/2]), errdefs.IsInvalidArgument},
		"no archive":  {ctx, bytes.NewReader(bytes.Repeat([]byte("no archive "), 1000)), errdefs.IsInvalidArgument},
		"cancelled":   {cancelled, bytes.NewReader(good), errdefs.IsCanceled},
		"larger":      {ctx, io.MultiReader(bytes.NewReader(header(t, "huge", 1<<40)), endless{}), errdefs.IsResourceExhausted},
		"store fails": {ctx, io.MultiReader(bytes.NewReader(good[:3000]), failing{}), errdefs.IsUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			r := startWith(t, daxmem.Options{MaxSize: 32 << 20})
			key, mounts := prepare(t, r, "one", "")
			u, err := r.Unpack(ctx, mounts)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := u.Apply(c.ctx, c.layer); !c.class(err) {
				t.Errorf("%v", err)
			}
			if used := r.used(t); used != 0 {
				t.Errorf("%d bytes are left", used)
			}
			if _, _, err := u.Apply(ctx, bytes.NewReader(good)); err != nil {
				t.Fatal(err)
			}
			if _, _, err := u.Apply(ctx, bytes.NewReader(good)); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("a second layer: %v", err)
			}
			if err := r.Commit(ctx, "one", key); err != nil {
				t.Fatal(err)
			}
			if _, _, err := u.Apply(ctx, bytes.NewReader(good)); !errdefs.IsNotFound(err) {
				t.Errorf("after the commit: %v", err)
			}
			r.check(t)
		})
	}
}

// header is the beginning of an archive with a file of a size.
func header(t testing.TB, name string, size int64) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, Format: tar.FormatPAX}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// failing is a content store that has lost the rest of a blob.
type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, fmt.Errorf("read: %w", errdefs.ErrUnavailable) }

// Mounts that no unpack was prepared with are somebody else's.
func TestUnpackOthers(t *testing.T) {
	r := start(t)
	r.base(t)
	container, err := r.Prepare(ctx, "container", "base")
	if err != nil {
		t.Fatal(err)
	}
	_, mine := prepare(t, r, "one", "")
	mine[0].Options = append([]string{"lowerdir=/lower"}, mine[0].Options...)
	for name, mounts := range map[string][]mount.Mount{
		"none": nil, "a container's": container, "with a lower directory": mine,
		"another snapshotter's": {{Type: "overlay", Options: []string{"upperdir=/var/lib/other/snapshots/1/fs"}}},
		"a bind mount":          {{Type: "bind", Source: r.root + "/snapshots/1/fs", Options: []string{"rw", "rbind"}}},
	} {
		if _, err := r.Unpack(ctx, mounts); !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: %v, want %v", name, err, errdefs.ErrNotImplemented)
		}
	}
	gone := []mount.Mount{{Type: "overlay", Options: []string{"upperdir=" + r.root + "/snapshots/99/fs"}}}
	if _, err := r.Unpack(ctx, gone); !errdefs.IsNotFound(err) {
		t.Errorf("a snapshot that is gone: %v", err)
	}
}

// A layer that is in the pool under other layers is found by its diffID, neither
// fetched nor unpacked, sequentially and in parallel.
func TestApplyKnownDiffID(t *testing.T) {
	r := start(t)
	sha := func(s string) digest.Digest { return digest.FromString(s) }
	labels := func(chain, below, diffID digest.Digest) snapshots.Opt {
		l := map[string]string{"containerd.io/snapshot.ref": chain.String(), snapshots.LabelSnapshotDiffID: diffID.String()}
		if below != "" {
			l["containerd.io/snapshot/parent-chain-id"] = below.String()
		}
		return snapshots.WithLabels(l)
	}
	layer := func(chain, below, diffID digest.Digest) {
		t.Helper()
		parent := ""
		if below != "" {
			parent = "a/2/" + below.String()
		}
		l := labels(chain, below, diffID)
		key := "a/1/extract " + chain.String()
		mounts, err := r.Prepare(ctx, key, parent, l)
		if err != nil {
			t.Fatal(err)
		}
		u, err := r.Unpack(ctx, mounts)
		if err == nil {
			_, _, err = u.Apply(ctx, bytes.NewReader(tarOf(t, entry{diffID.Encoded(), diffID.String()})))
		}
		if err == nil {
			err = r.Commit(ctx, "a/2/"+chain.String(), key, l)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	base, other, app, liar := sha("base"), sha("other"), sha("app"), sha("liar")
	onBase, onOther, onLiar := identity.ChainID([]digest.Digest{base, app}), identity.ChainID([]digest.Digest{other, app}), identity.ChainID([]digest.Digest{base, liar})
	layer(base, "", base)
	layer(other, "", other)
	layer(onLiar, base, app) // says that it is app, as an image could
	l := labels(onOther, other, app)
	for _, parent := range []string{"a/2/" + other.String(), ""} {
		if mounts, err := r.Prepare(ctx, "a/3/new "+parent, parent, l); err != nil || len(mounts) != 1 || mounts[0].Type != "overlay" {
			t.Fatalf("unknown layer on %q: %v, %v", parent, mounts, err)
		}
		if err := r.Remove(ctx, "a/3/new "+parent); err != nil {
			t.Fatal(err)
		}
	}
	layer(onBase, base, app)

	mounts, err := r.Prepare(ctx, "a/3/staged", "", l)
	if err != nil || len(mounts) != 1 || !slices.Contains(mounts[0].Options, "ro") {
		t.Fatalf("parallel: mounts %v, %v, want read-only ones", mounts, err)
	}
	if err := r.Remove(ctx, "a/3/staged"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Prepare(ctx, "a/4/known", "a/2/"+other.String(), l); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("sequential: %v, want %v", err, errdefs.ErrAlreadyExists)
	}
	view, err := r.View(ctx, "a/9/view", "a/4/"+onOther.String())
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(view[0].Source, app.Encoded())) + read(t, filepath.Join(view[0].Source, other.Encoded())); got != app.String()+other.String() {
		t.Errorf("read %q", got)
	}

	// The name goes with the last image that has the layer.
	has := func() bool { _, err := r.pool.Chain([32]byte(digestBytes(t, app))); return err == nil }
	for _, name := range []string{"a/9/view", "a/2/" + onBase.String(), "a/4/" + onOther.String()} {
		if !has() {
			t.Errorf("the pool does not know the layer by its diffID before %q is removed", name)
		}
		if err := r.Remove(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Cleanup(ctx); err != nil {
		t.Fatal(err)
	}
	if has() {
		t.Error("the pool knows the layer of removed images")
	}
	r.check(t)
}

func digestBytes(t testing.TB, d digest.Digest) []byte {
	t.Helper()
	b, err := hex.DecodeString(d.Encoded())
	if err != nil {
		t.Fatal(err)
	}
	return b
}
