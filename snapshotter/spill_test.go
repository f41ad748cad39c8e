package snapshotter_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/engine"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// spiller is a snapshotter over a pool in memory, with a spill on disk.
type spiller struct {
	*keeper
	spill     *daxmem.Pool
	spillPath string
}

func newSpiller(t testing.TB, size int64) *spiller {
	t.Helper()
	testutil.Root(t)
	root, err := os.MkdirTemp("/dev/shm", "spiller-")
	if err != nil {
		t.Fatal(err)
	}
	s := &spiller{keeper: &keeper{t: t, rig: &rig{root: root}, size: size}, spillPath: filepath.Join(t.TempDir(), "spill")}
	t.Cleanup(func() {
		s.stop()
		testutil.UnmountBelow(t, root)
		os.RemoveAll(root)
	})
	s.start()
	return s
}

func (s *spiller) start() {
	s.t.Helper()
	var err error
	if s.spill, err = daxmem.OpenOrCreate(ctx, s.spillPath, daxmem.Options{MaxSize: s.size}); err != nil {
		s.t.Fatal(err)
	}
	pool, err := daxmem.OpenOrCreate(ctx, filepath.Join(s.root, "pool"), daxmem.Options{MaxSize: s.size})
	if err != nil {
		s.t.Fatal(err)
	}
	e, _, err := engine.Select(ctx, nil, snapshotter.EnginePool(pool))
	if err != nil {
		s.t.Fatal(err)
	}
	sn, err := snapshotter.New(ctx, snapshotter.Options{Root: s.root, Pool: pool, Engine: e, Spill: s.spill})
	if err != nil {
		s.t.Fatal(err)
	}
	s.rig = &rig{sn, s.root, pool}
}

func (s *spiller) stop() {
	s.t.Helper()
	s.keeper.stop()
	if err := s.spill.Close(); err != nil {
		s.t.Error(err)
	}
}

// reboot loses the pool, and mounts, and keeps what is on disk.
func (s *spiller) reboot() {
	s.t.Helper()
	s.stop()
	testutil.UnmountBelow(s.t, s.root)
	if err := os.Remove(filepath.Join(s.root, "pool")); err != nil {
		s.t.Fatal(err)
	}
}

func (s *spiller) layersIn(p *daxmem.Pool) (n int) {
	for _, r := range p.Records() {
		if r.Kind == daxmem.KindLayer && r.Quarantined == "" {
			n++
		}
	}
	return n
}

func (s *spiller) eventually(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("timed out waiting for %s", what)
		}
	}
}

// What a reboot takes from memory comes back from disk: at once where a
// container asks for it, and all of it soon.
func TestSpill(t *testing.T) {
	s := newSpiller(t, 128*mib)
	one, _ := unpack(t, s, "a", "one", "", layerOne(t))
	two, _ := unpack(t, s, "a", "two", one, layerTwo(t))
	big, _ := s.pull("big", 8*mib)
	gone, _ := s.pull("gone", mib)
	if _, err := s.View(ctx, "a/9/view", two); err != nil {
		t.Fatal(err)
	}
	s.eventually("four layers in the spill", func() bool { return s.layersIn(s.spill) == 4 })
	s.remove(gone)
	s.eventually("the removed one to go", func() bool { return s.layersIn(s.spill) == 3 })
	for range 2 {
		s.reboot()
		s.start()
		mounts, err := s.Mounts(ctx, "a/9/view")
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, mounts[0].Source+"/etc/os") + read(t, mounts[0].Source+"/etc/gone") + read(t, mounts[0].Source+"/more"); got != "twoxmore" {
			t.Errorf("read %q", got)
		}
		s.eventually("all layers to be back", func() bool { return s.layersIn(s.pool) == 3 })
		s.eventually("chains to be back", func() bool { return s.has("one") && s.has("two") && s.has("big") })
		if s.has("gone") {
			t.Error("a removed image is back")
		}
		s.use(big)
		s.check(t)
	}
}

// A layer whose copy is damaged is lost, and only that one.
func TestSpillDamaged(t *testing.T) {
	s := newSpiller(t, 128*mib)
	bad, _ := s.pull("bad", mib)
	good, _ := s.pull("good", 2*mib)
	s.eventually("two layers in the spill", func() bool { return s.layersIn(s.spill) == 2 })
	var at int64
	for _, o := range s.spill.Owners() {
		if o.Kind == daxmem.OwnExtent && o.Bytes == mib {
			at = o.Offset
		}
	}
	s.reboot()
	f, err := os.OpenFile(s.spillPath, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("damage"), at+1000); err != nil {
		t.Fatal(err)
	}
	f.Close()
	s.start()
	s.use(good)
	if _, err := s.View(ctx, "a/9/bad", bad); !errors.Is(err, snapshotter.ErrLayerLost) {
		t.Errorf("damaged copy: %v, want %v", err, snapshotter.ErrLayerLost)
	}
	s.check(t)
}

// What was not on disk yet is lost, with a clear error.
func TestSpillIncomplete(t *testing.T) {
	s := newSpiller(t, 128*mib)
	first, _ := s.pull("first", mib)
	s.eventually("a layer in the spill", func() bool { return s.layersIn(s.spill) == 1 })
	late, _ := s.pull("late", 30*mib)
	s.reboot() // within the second that the spill waits
	s.start()
	s.use(first)
	if s.layersIn(s.spill) == 1 {
		if _, err := s.View(ctx, "a/9/late", late); !errors.Is(err, snapshotter.ErrLayerLost) {
			t.Errorf("lost: %v, want %v", err, snapshotter.ErrLayerLost)
		}
	}
	s.check(t)
}
