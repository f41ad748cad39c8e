package inside

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/engine"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// rig is a snapshotter on the guest's memory, with all it stands on.
type rig struct {
	*snapshotter.Snapshotter
	t      *testing.T
	root   string
	pool   *daxmem.Pool
	engine string
	probes []engine.Probe

	maxSize int64 // of the pool
}

// newPool makes an empty pool in the memory, whatever was there.
func newPool(t *testing.T, opts daxmem.Options) {
	t.Helper()
	r, err := daxmem.OpenRegion(location)
	must(t, err)
	must(t, r.Punch(0, 16<<20)) // more than what Create looks at
	p, err := daxmem.Create(bg, r, opts)
	must(t, err)
	must(t, p.Close())
}

// start opens a snapshotter over a new pool, until the end of the test.
func start(t *testing.T, opts daxmem.Options, order ...string) *rig {
	t.Helper()
	newPool(t, opts)
	r := &rig{t: t, root: t.TempDir(), maxSize: 64 << 30}
	// The guest's /tmp is an overlay, which is no upper directory.
	must(t, unix.Mount("tmpfs", r.root, "tmpfs", 0, ""))
	t.Cleanup(func() {
		if r.Snapshotter != nil {
			if err := r.close(); err != nil {
				t.Error(err)
			}
		}
		testutil.UnmountBelow(t, r.root)
	})
	r.open(order...)
	return r
}

func (r *rig) open(order ...string) {
	r.t.Helper()
	var err error
	r.pool, err = daxmem.OpenOrCreate(bg, location, daxmem.Options{MaxSize: r.maxSize})
	must(r.t, err)
	var e engine.Engine
	if e, r.probes, err = engine.Select(bg, order, snapshotter.EnginePool(r.pool)); err != nil {
		r.t.Fatal(errors.Join(err, r.pool.Close()))
	}
	r.engine = e.Name()
	r.Snapshotter, err = snapshotter.New(bg, snapshotter.Options{Root: r.root, Pool: r.pool, Engine: e})
	must(r.t, err)
}

func (r *rig) close() error {
	sn := r.Snapshotter
	r.Snapshotter = nil
	return errors.Join(sn.Close(), r.pool.Close())
}

// layer commits a layer with files, by their paths.
func (r *rig) layer(name, parent string, files map[string][]byte) {
	r.t.Helper()
	mounts, err := r.Prepare(bg, "prepare-"+name, parent)
	must(r.t, err)
	must(r.t, mount.WithTempMount(bg, mounts, func(dir string) error {
		for path, content := range files {
			path = filepath.Join(dir, path)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(path, content, 0o755); err != nil {
				return err
			}
		}
		return nil
	}))
	must(r.t, r.Commit(bg, name, "prepare-"+name))
}

// lower mounts the image of a committed snapshot and returns where.
func (r *rig) lower(key, parent string) string {
	r.t.Helper()
	mounts, err := r.Prepare(bg, key, parent)
	must(r.t, err)
	for _, o := range mounts[0].Options {
		if l, ok := strings.CutPrefix(o, "lowerdir="); ok {
			return l
		}
	}
	r.t.Fatalf("no lower directory in %+v", mounts)
	return ""
}

// overlay mounts a container's root for the length of the test.
func (r *rig) overlay(key string) string {
	r.t.Helper()
	mounts, err := r.Mounts(bg, key)
	must(r.t, err)
	dir := r.t.TempDir()
	must(r.t, mount.All(mounts, dir))
	r.t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// check proves the pool, with all file data.
func (r *rig) check() {
	r.t.Helper()
	rep, err := r.pool.Check(bg, daxmem.CheckOptions{Data: true})
	must(r.t, err)
	for _, p := range rep.Problems {
		r.t.Errorf("pool: %v", p)
	}
	for _, q := range rep.Quarantined {
		r.t.Errorf("pool: %s is in quarantine: %s", q.Name(), q.Quarantined)
	}
}

// probe returns what an engine said.
func (r *rig) probe(name string) engine.Probe {
	r.t.Helper()
	for _, p := range r.probes {
		if p.Engine == name {
			return p
		}
	}
	r.t.Fatalf("no probe of %s in %+v", name, r.probes)
	return engine.Probe{}
}

// files of two images of one base: some contents are in several.
func fileSets() (base, one, two map[string][]byte) {
	random := func(seed uint64, n int) []byte {
		b := make([]byte, n)
		_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(b)
		return b
	}
	same := random(1, 100_000)
	base = map[string][]byte{"etc/base": []byte("base"), "same": same, "again": same, "large": random(2, 5<<20)}
	one = map[string][]byte{"etc/name": []byte("one"), "dir/same": same}
	two = map[string][]byte{"etc/name": []byte("two"), "other/same": same}
	return base, one, two
}

// wantFiles compares what a directory shows with what was put there.
func wantFiles(t *testing.T, dir string, sets ...map[string][]byte) {
	t.Helper()
	for _, files := range sets {
		for path, want := range files {
			got, err := os.ReadFile(filepath.Join(dir, path))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes, want %d, %v", filepath.Join(dir, path), len(got), len(want), err)
			}
		}
	}
}

// superblocks lists what the kernel has mounted, or still in use.
func superblocks(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, pattern := range []string{"/sys/fs/erofs/*", "/sys/fs/daxfs/*:*"} {
		found, err := filepath.Glob(pattern)
		must(t, err)
		for _, f := range found {
			if filepath.Base(f) != "features" {
				out = append(out, f)
			}
		}
	}
	return out
}

// statType is f_type of the file system at path.
func statType(t *testing.T, path string) string {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(path, &st))
	return fmt.Sprintf("%#x", st.Type)
}
