package daxmem

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var killCount = flag.Int("kills", 0, "random kills in TestRandomKills; 0: 30 with -short, else 1000")

const (
	killEnv     = "DAXMEM_KILLS" // role|kernel|path|seed
	killReaders = 3
	killLayers  = 10
)

// TestKillChild is a process of TestRandomKills. Started otherwise it does
// nothing.
func TestKillChild(t *testing.T) {
	args := strings.Split(os.Getenv(killEnv), "|")
	if len(args) != 4 {
		return
	}
	kernel, err := strconv.Atoi(args[1])
	if err != nil {
		t.Fatal(err)
	}
	seed, err := strconv.ParseUint(args[3], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	c := &killed{t: t, path: args[2], opts: asKillKernel(kernel), rnd: rand.New(rand.NewPCG(seed, 11))}
	c.counts = openCounts(t, c.path)
	switch args[0] {
	case "owner":
		c.own()
	case "reader":
		c.read(kernel)
	}
}

func asKillKernel(n int) Options {
	opts := boot([16]byte{0xc, byte(n), byte(n >> 8)})
	opts.SyncDelay = time.Millisecond
	return opts
}

// killed is a process that works until it is killed.
type killed struct {
	t      *testing.T
	path   string
	opts   Options
	rnd    *rand.Rand
	counts Window
}

// Counters of what was done, so that a test that does nothing fails.
const (
	countPublished = 8 * iota
	countRemoved
	countPinned
	countVerified
	countRestarted
	countInUse
)

func openCounts(t *testing.T, path string) Window {
	t.Helper()
	f, err := os.OpenFile(path+".counts", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(blockSize); err != nil {
		t.Fatal(err)
	}
	w, err := mapWindow(int(f.Fd()), 0, 0, blockSize, true)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (c *killed) count(what int64) {
	for {
		v, err := c.counts.Load(what)
		if err != nil {
			c.t.Fatal(err)
		}
		if ok, err := c.counts.CompareAndSwap(what, v, v+1); ok || err != nil {
			return
		}
	}
}

// own publishes, removes and collects. Layers share files, and the same key
// comes again with other files.
func (c *killed) own() {
	t := c.t
	p, err := Open(bg, unlocked(t, c.path, toOwn), c.opts)
	if err != nil {
		t.Fatal(err)
	}
	ok := func(err error, but ...error) bool {
		for _, b := range but {
			if errors.Is(err, b) {
				return false
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		return true
	}
	for {
		name := fmt.Sprint("l", c.rnd.IntN(killLayers))
		switch c.rnd.IntN(8) {
		case 0, 1, 2:
			var files [][]byte
			for range 1 + c.rnd.IntN(4) {
				files = append(files, randomBytes(uint64(c.rnd.IntN(40)), 1000+c.rnd.IntN(3)*20000))
			}
			_, err := tryLayer(p, key(name), files...)
			if ok(err, ErrFull) {
				c.count(countPublished)
			}
		case 3, 4:
			_, err := tryImage(p, key("i"+name), key(name))
			ok(err, ErrFull, ErrNotFound)
		case 5:
			_, err := p.PublishChain(bg, key("c"+name), key(name), [32]byte{})
			ok(err, ErrFull, ErrNotFound)
		case 6:
			for _, r := range []struct {
				kind Kind
				key  [32]byte
			}{{KindChain, key("c" + name)}, {KindImage, key("i" + name)}, {KindLayer, key(name)}} {
				err := p.Remove(bg, r.kind, r.key)
				if errors.Is(err, ErrInUse) {
					c.count(countInUse)
				}
				if ok(err, ErrInUse, ErrNotFound) {
					c.count(countRemoved)
				}
			}
		case 7:
			_, err := p.Collect(bg, func(Kind, [32]byte) bool { return c.rnd.IntN(3) > 0 }, false)
			ok(err)
			ok(p.Sync(bg))
		}
	}
}

// read looks up, pins, verifies and unpins, and sometimes restarts.
func (c *killed) read(kernel int) {
	t := c.t
	for {
		r, err := Attach(bg, unlocked(t, c.path, toAttach), c.opts)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.ReleaseLeft(); err != nil {
			t.Fatal(err)
		}
		type use struct {
			rec   *Record
			unpin func()
		}
		var uses []use
		for range 200 {
			kind, name := KindImage, fmt.Sprint("il", c.rnd.IntN(killLayers))
			if c.rnd.IntN(3) == 0 {
				kind, name = KindLayer, name[1:]
			}
			rec, unpin, err := r.Pin(kind, key(name))
			switch {
			case errors.Is(err, ErrNotFound):
				time.Sleep(100 * time.Microsecond)
			case err != nil:
				t.Fatal(err)
			default:
				c.count(countPinned)
				uses = append(uses, use{rec, unpin})
			}
			for _, u := range uses {
				if err := verifyPinned(r, u.rec); err != nil {
					t.Fatal(err)
				}
				c.count(countVerified)
			}
			for len(uses) > 3 || len(uses) > 0 && c.rnd.IntN(3) == 0 {
				uses[0].unpin()
				uses = uses[1:]
			}
		}
		for _, u := range uses {
			u.unpin()
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		c.count(countRestarted)
	}
}

// verifyPinned reads all that a pinned record needs.
func verifyPinned(r *Reader, rec *Record) error {
	b, err := r.ReadSegment(rec)
	if err != nil {
		return err
	}
	seg, err := parseSegment(b, rec.Offset, r.Size(), rec.Kind)
	if err != nil {
		return err
	}
	for _, w := range seg.rows {
		data := make([]byte, w.size)
		if _, err := r.region.ReadAt(data, w.off); err != nil {
			return err
		}
		if hashBytes(data) != w.digest {
			return fmt.Errorf("%s is pinned and its extent at %d has changed", rec.Name(), w.off)
		}
	}
	for _, k := range seg.layers {
		layer, err := r.Layer(k)
		if err != nil {
			return fmt.Errorf("%s is pinned: %w", rec.Name(), err)
		}
		if err := verifyPinned(r, layer); err != nil {
			return fmt.Errorf("%s is pinned: %w", rec.Name(), err)
		}
	}
	return nil
}

// killable is a running child.
type killable struct {
	role   string
	kernel int
	cmd    *exec.Cmd
	out    bytes.Buffer
}

func startKillable(t *testing.T, role string, kernel int, path string, seed uint64) *killable {
	t.Helper()
	k := &killable{role: role, kernel: kernel}
	k.cmd = exec.Command(os.Args[0], "-test.run=^TestKillChild$", "-test.timeout=0")
	k.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s|%d|%s|%d", killEnv, role, kernel, path, seed))
	k.cmd.Stdout, k.cmd.Stderr = &k.out, &k.out
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := k.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return k
}

// kill ends the child; one that has ended by itself has found something wrong.
func (k *killable) kill(t *testing.T) {
	t.Helper()
	k.cmd.Process.Kill()
	k.cmd.Wait()
	ws := k.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Fatalf("%s of kernel %d ended by itself:\n%s", k.role, k.kernel, k.out.String())
	}
}

// halt stops the child where it is.
func (k *killable) halt(t *testing.T) {
	t.Helper()
	if err := k.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the owner to stand still", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", k.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		_, state, _ := strings.Cut(string(b), ") ")
		if strings.HasPrefix(state, "Z") {
			k.kill(t) // says why
		}
		return strings.HasPrefix(state, "T")
	})
}

// TestRandomKills: an owner and three readers work at full speed; one of them,
// by chance, is killed again and again, at any moment, and started again: the
// owner in the same kernel, or, when that was declared gone, in another one.
func TestRandomKills(t *testing.T) {
	kills := *killCount
	if kills == 0 {
		kills = 1000
		if testing.Short() {
			kills = 30
		}
	}
	dir, err := os.MkdirTemp("/dev/shm", "daxmem-kills-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "pool")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 6*mib); err != nil {
		t.Fatal(err)
	}
	const firstOwner = 100
	p, err := Create(bg, unlocked(t, path, toOwn), asKillKernel(firstOwner))
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, p)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 5))
	owner := startKillable(t, "owner", firstOwner, path, seed)
	var readers []*killable
	for n := range killReaders {
		readers = append(readers, startKillable(t, "reader", n, path, seed+uint64(n)))
	}
	// Fatal ends leave nobody behind.
	t.Cleanup(func() {
		for _, k := range append([]*killable{owner}, readers...) {
			k.cmd.Process.Kill()
			k.cmd.Wait()
		}
	})
	takeovers := 0
	for n := range kills {
		time.Sleep(time.Duration(rnd.IntN(60)) * time.Millisecond)
		seed++
		if i := rnd.IntN(killReaders + 1); i < killReaders {
			readers[i].kill(t)
			// The owner stands still: what is there is what its end would leave.
			owner.halt(t)
			mustCheckReadOnly(t, path, n)
			if err := owner.cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			readers[i] = startKillable(t, "reader", readers[i].kernel, path, seed)
			continue
		}
		owner.kill(t)
		mustCheckReadOnly(t, path, n)
		kernel := owner.kernel
		if rnd.IntN(4) == 0 {
			kernel++
			takeovers++
			evictOwner(t, path)
		}
		owner = startKillable(t, "owner", kernel, path, seed)
	}
	for _, k := range append(readers, owner) {
		k.kill(t)
	}
	counts := openCounts(t, path)
	defer counts.Close()
	did := func(what int64) uint64 {
		v, err := counts.Load(what)
		if err != nil || v == 0 {
			t.Errorf("counter %d is %d, %v: the processes did not work", what, v, err)
		}
		return v
	}
	t.Logf("%d kills, %d takeovers; %d layers published, %d records removed, %d pins, %d times verified, %d restarts, %d times in use",
		kills, takeovers, did(countPublished), did(countRemoved), did(countPinned), did(countVerified), did(countRestarted), did(countInUse))

	// The last release: later daemons of the readers' kernels drop what was left.
	for n := range killReaders {
		r, err := Attach(bg, unlocked(t, path, toAttach), asKillKernel(n))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.ReleaseLeft(); err != nil {
			t.Error(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	opts := asKillKernel(owner.kernel)
	opts.SyncDelay = -1
	if p, err = Open(bg, unlocked(t, path, toOwn), opts); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	mustCheck(t, p)
	seats, err := p.Seats()
	if err != nil {
		t.Fatal(err)
	}
	claims := 0
	for _, s := range seats {
		switch {
		case s.Mine:
		case s.Held:
			t.Errorf("%v, with %d pins, is left by nobody", s, s.Pins)
		default: // killed between its claim and its lease
			claims++
		}
	}
	t.Logf("%d claims were cut short", claims)
	if _, err := p.Collect(bg, func(Kind, [32]byte) bool { return false }, false); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.Sync(bg); err != nil {
			t.Fatal(err)
		}
	}
	if st := mustStat(t, p); st.Segments+st.Extents+st.Quarantined+st.Inflight+st.Retired+st.Lost != 0 || len(p.avail) != p.sup.records {
		t.Errorf("left after the last release: %+v, %d of %d records free", st, len(p.avail), p.sup.records)
	}
	mustCheck(t, p)
	mustClose(t, p)
}

func mustCheckReadOnly(t *testing.T, path string, n int) {
	t.Helper()
	p, err := OpenReadOnly(bg, unlocked(t, path, toInspect))
	if err != nil {
		t.Fatalf("kill %d: %v", n, err)
	}
	defer p.Close()
	rep, err := p.Check(bg, CheckOptions{Data: true})
	if err != nil || !rep.OK() {
		t.Fatalf("kill %d: check: %v, %v, quarantined %v", n, err, rep.Problems, rep.Quarantined)
	}
}

// evictOwner says that the owner's kernel is gone.
func evictOwner(t *testing.T, path string) {
	t.Helper()
	for _, s := range seatsOf(t, path) {
		if !s.Owner {
			continue
		}
		r := unlocked(t, path, toAttach)
		if err := Evict(r, s.Number, s.Generation); err != nil {
			t.Fatal(err)
		}
		r.Close()
	}
}
