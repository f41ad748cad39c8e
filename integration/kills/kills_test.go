package kills

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/integration/lab"
	"github.com/daxfs/containerd-daxfs/integration/lab/sweep"
	"github.com/daxfs/containerd-daxfs/integration/load"
	"github.com/daxfs/containerd-daxfs/integration/poolcheck"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

// scene is one pool and the kernels at it.
type scene struct {
	t       *testing.T
	dir     string // in memory; everything is below it
	pool    string
	binary  string
	images  []*load.Image
	rnd     *rand.Rand
	kernels []*kernel
	owner   *kernel
	wrong   chan error // what clients found
	tally   *tally
}

// environment returns a number from the environment.
func environment(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestRandomKills kills one daemon after the other, at moments that a seed
// chooses, while clients pull, run, remove and collect at all of them.
func TestRandomKills(t *testing.T) {
	kills := int(environment(t, "DAXFS_KILLS", 25))
	seed := environment(t, "DAXFS_KILLS_SEED", uint64(time.Now().UnixNano()))
	t.Logf("%d kills, seed %d", kills, seed)
	s := newScene(t, seed)
	for next := 100; s.tally.kills < kills; {
		s.kill()
		if s.tally.kills >= next {
			t.Logf("%d kills after %v", s.tally.kills, time.Since(s.tally.began).Round(time.Second))
			next += 100
		}
	}
	s.release()
	s.tally.report(t)
}

func newScene(t *testing.T, seed uint64) *scene {
	t.Helper()
	testutil.Root(t)
	built := lab.Build(t)
	if lab.Standin() {
		t.Skip("the stand-in has no pool")
	}
	program, err := os.ReadFile(built.TestProg)
	if err != nil {
		t.Fatal(err)
	}
	images, err := load.Images(program)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "dxkills")
	if err != nil {
		t.Fatal(err)
	}
	disarm := built.Watch(t, dir)
	s := &scene{
		t: t, dir: dir, pool: filepath.Join(dir, "pool"), binary: built.Daemon, images: images,
		rnd: rand.New(rand.NewPCG(seed, 2)), wrong: make(chan error, 100), tally: newTally(),
	}
	t.Cleanup(func() {
		for _, k := range s.kernels {
			if t.Failed() {
				k.showLog()
			}
			k.stop()
		}
		// Clients that wait for a daemon end with it.
		if err := sweep.Processes(dir); err != nil {
			t.Error(err)
		}
		for _, k := range s.kernels {
			k.worked.Wait()
		}
		if err := sweep.All(dir); err != nil {
			t.Error(err)
		}
		disarm()
	})
	for _, k := range []*kernel{{name: "a", role: "auto"}, {name: "b", role: "auto", keeps: true}, {name: "c", role: "reader"}} {
		k.t, k.scene, k.changed, k.stop = t, s, make(chan struct{}), func() {}
		k.boot()
		k.start()
		s.kernels = append(s.kernels, k)
	}
	s.owner = s.kernels[0]
	for _, k := range s.kernels {
		k.work()
	}
	return s
}

// kill kills one daemon, looks at what is there, and starts it again, or
// another one in its place.
func (s *scene) kill() {
	t := s.t
	t.Helper()
	k := s.owner
	if s.rnd.IntN(9) >= 4 {
		for k = s.owner; k == s.owner; {
			k = s.kernels[s.rnd.IntN(len(s.kernels))]
		}
	}
	s.await(k)
	s.killed(k, k.end(syscall.SIGKILL))
	how := s.rnd.IntN(20)
	switch {
	case how < 2:
		s.loseKernel(k)
	case how < 8 && k == s.owner:
		s.takeOver()
	default:
		s.restart(k)
	}
	for _, k := range s.kernels {
		k.alive()
	}
	for _, seat := range poolcheck.Seats(t, s.pool) {
		if seat.Owner && seat.Holder != holderOf(t, s.owner.root()) {
			t.Fatalf("the pool's owner is %v, want %s", seat, s.owner.name)
		}
	}
}

// await waits until an operation, which chance has chosen, is under way at a
// daemon, and a moment longer.
func (s *scene) await(k *kernel) {
	s.t.Helper()
	want := load.Operations[s.rnd.IntN(len(load.Operations))]
	timeout := time.After(2 * time.Second)
	for op := ""; op != want; {
		select {
		case op = <-k.load.Began():
		case err := <-s.wrong:
			s.t.Fatal(err)
		case <-timeout: // it is not asked for often
			op = want
		}
	}
	time.Sleep(time.Duration(s.rnd.IntN(6000)) * time.Microsecond)
}

// killed looks at what a killed daemon has left.
func (s *scene) killed(k *kernel, doing []string) {
	t := s.t
	t.Helper()
	start := time.Now()
	as := "reader"
	if k == s.owner {
		as = "owner"
	}
	// The pool is looked at as the owner's end would leave it, or beside it.
	still := true
	if k != s.owner && s.owner.daemon != nil {
		if still = s.rnd.IntN(2) == 0; still {
			resume := s.owner.halt()
			defer resume()
		}
	}
	s.tally.checked += poolcheck.Sound(t, s.pool, still)
	if own := filepath.Join(k.root(), "pool.daxfs"); as == "reader" && exists(t, own) {
		s.tally.checked += poolcheck.Sound(t, own, true)
	}
	for _, k := range s.kernels {
		n, err := k.load.Verify()
		if err != nil {
			t.Fatalf("containers of %s: %v", k.name, err)
		}
		s.tally.containers += n
	}
	select {
	case err := <-s.wrong:
		t.Fatal(err)
	default:
	}
	s.tally.kill(as, doing)
	s.tally.looking += time.Since(start)
}

// exists reports whether a pool has been made there, and not only begun.
func exists(t *testing.T, pool string) bool {
	t.Helper()
	region, err := daxmem.OpenRegionReadOnly(pool)
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	defer region.Close()
	blank, err := daxmem.Blank(region)
	if err != nil {
		t.Fatal(err)
	}
	return !blank
}

// restart starts a daemon again; sometimes it is killed on its way.
func (s *scene) restart(k *kernel) {
	s.t.Helper()
	for s.rnd.IntN(6) == 0 {
		k.exec()
		time.Sleep(time.Duration(s.rnd.IntN(120_000)) * time.Microsecond)
		k.end(syscall.SIGKILL)
		s.killed(k, []string{"start"})
	}
	start := time.Now()
	k.start()
	s.tally.restarts++
	s.tally.starting += time.Since(start)
}

// takeOver lets another process of the same boot own the pool: who comes first.
func (s *scene) takeOver() {
	s.t.Helper()
	former := s.owner
	for _, k := range s.kernels {
		if k == former || k.role != "auto" {
			continue
		}
		s.killed(k, k.end(syscall.SIGKILL))
		s.owner = k
		s.restart(k)
		s.restart(former)
		s.tally.takeovers++
		return
	}
}

// loseKernel ends all of a kernel whose daemon was killed, tells the others so,
// and lets a new one come.
func (s *scene) loseKernel(k *kernel) {
	t := s.t
	t.Helper()
	holder := holderOf(t, k.root())
	k.gone()
	for _, seat := range poolcheck.Seats(t, s.pool) {
		if seat.Held && seat.Holder == holder {
			poolcheck.Evict(t, s.pool, seat)
		}
	}
	s.tally.lost++
	if k == s.owner {
		s.succeed(k)
	}
	k.boot()
	s.restart(k)
	k.work()
}

// succeed waits until the daemon that is to own the pool after another kernel's
// end has noticed, and starts it again, as systemd does.
func (s *scene) succeed(former *kernel) {
	t := s.t
	t.Helper()
	for _, k := range s.kernels {
		if k == former || k.role != "auto" {
			continue
		}
		select {
		case <-k.daemon.ended:
		case <-time.After(30 * time.Second):
			t.Fatalf("%s does not notice that the pool has no owner", k.name)
		}
		k.connected(nil)
		k.daemon.conn.Close()
		k.daemon = nil
		s.owner = k
		s.restart(k)
		s.tally.fenced++
		return
	}
}

// release removes everything everywhere. The readers go first, so that the owner
// can free what they have pinned.
func (s *scene) release() {
	t := s.t
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for _, k := range s.kernels {
		k.rest()
		s.tally.add(k.load)
	}
	select {
	case err := <-s.wrong:
		t.Fatal(err)
	default:
	}
	// A daemon cannot tell its own mounts from those that another one on this
	// machine makes in the same moment, and takes an image for used as long as
	// any of them is there: so all are removed before any daemon ends.
	for range 2 {
		for _, k := range s.kernels {
			if err := k.load.Release(ctx, k.sn); err != nil {
				t.Fatalf("release %s: %v", k.name, err)
			}
		}
	}
	for _, k := range s.kernels {
		if k != s.owner {
			k.end(syscall.SIGTERM)
			poolcheck.Empty(t, filepath.Join(k.root(), "pool.daxfs"))
		}
	}
	// What the owner had made for others stays for a minute, or until it ends,
	// and what it keeps on purpose for longer.
	s.owner.end(syscall.SIGTERM)
	s.owner.configure(false)
	s.owner.start()
	if err := s.owner.load.Release(ctx, s.owner.sn); err != nil {
		t.Fatalf("release %s: %v", s.owner.name, err)
	}
	s.owner.end(syscall.SIGTERM)

	for _, seat := range poolcheck.Seats(t, s.pool) {
		if seat.Held {
			t.Errorf("%v, with %d pins, is left by nobody", seat, seat.Pins)
			continue
		}
		s.tally.claims++ // its daemon was killed between claim and lease
		poolcheck.Evict(t, s.pool, seat)
	}
	poolcheck.Sound(t, s.pool, true)
	poolcheck.Empty(t, s.pool)
	nothingMounted(t, s.dir)
	for _, k := range s.kernels {
		for _, dir := range []string{"images", "snapshots"} {
			left, err := os.ReadDir(filepath.Join(k.root(), dir))
			if err != nil || len(left) > 0 {
				t.Errorf("%s of %s after the last release: %v, %v", dir, k.name, names(left), err)
			}
		}
	}
}

func names(entries []os.DirEntry) (out []string) {
	for _, e := range entries {
		out = append(out, fmt.Sprint(e))
	}
	return out
}
