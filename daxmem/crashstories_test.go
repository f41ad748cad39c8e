package daxmem

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The crash test kills a real process at each step of crashTable. The process is
// this test binary again, on a pool in shared memory, as a kernel of its own:
// it opens the file without the lock that holds within one kernel. Or it is in a
// guest, which ends with it: crashguest_test.go.

const (
	crashEnv = "DAXMEM_CRASH" // story|step|location of the pool

	makerKernel  = 1 // has made the pool; in some stories it owns it still
	childKernel  = 3
	readerKernel = 9 // has pinned the image "ikept" all the time
	laterKernel  = 7 // takes the pool in the end
)

var (
	keptFiles  = [][]byte{randomBytes(1, 30000), randomBytes(2, 5000)}
	goingFiles = [][]byte{randomBytes(3, 20000), keptFiles[1]}
	newFiles   = [][]byte{randomBytes(4, 9000), goingFiles[0]}
)

// TestCrashChild is the process that is killed. Started otherwise it does
// nothing.
func TestCrashChild(t *testing.T) {
	args := strings.Split(os.Getenv(crashEnv), "|")
	if len(args) != 3 {
		return
	}
	at, path := args[1], args[2]
	armed := false
	step = func(name string) {
		if armed && name == at {
			die()
			select {}
		}
	}
	own := func(n byte, size int64) *Pool {
		opts := asKernel(n)
		opts.MaxSize = size
		p, err := Open(bg, unlocked(t, path, toOwn), opts)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	attach := func(n byte) *Reader {
		r, err := Attach(bg, unlocked(t, path, toAttach), asKernel(n))
		check(err)
		return r
	}
	switch args[0] {
	case "publish":
		p := own(childKernel, 0)
		armed = true
		addLayer(t, p, "new", newFiles...)
		check(p.Sync(bg))
	case "publish fails":
		p := own(childKernel, 0)
		p.ix.w = failingWindow{p.ix.w}
		armed = true
		if _, err := tryLayer(p, key("new"), newFiles...); err == nil {
			t.Fatal("published without an index")
		}
	case "remove":
		p := own(childKernel, 0)
		armed = true
		check(p.Remove(bg, KindLayer, key("going")))
		check(p.Sync(bg))
	case "remove pinned":
		p := own(childKernel, 0)
		r := attach(childKernel + 1)
		armed = true
		kill := step
		step = func(name string) {
			if name == stepBeforeRetire { // too late for the owner to see it
				if _, _, err := r.Pin(KindLayer, key("going")); err != nil {
					t.Error(err)
				}
			}
			kill(name)
		}
		check(p.Remove(bg, KindLayer, key("going")))
	case "abort":
		p := own(childKernel, 0)
		imp, err := p.NewImport(bg)
		check(err)
		_, err = putAll(imp, [][]byte{randomBytes(8, 50000)})
		check(err)
		armed = true
		imp.Abort()
	case "open":
		armed = true
		own(childKernel, 9*mib)
	case "open again":
		armed = true
		own(makerKernel, 0)
	case "close":
		p := own(childKernel, 0)
		addLayer(t, p, "new", newFiles...)
		armed = true
		check(p.Close())
	case "quarantine", "take over":
		armed = true
		own(childKernel, 0)
	case "read":
		armed = true
		r := attach(childKernel)
		_, unpin, err := r.Pin(KindLayer, key("going"))
		check(err)
		unpin()
		check(r.Close())
	case "read again":
		r := attach(childKernel)
		_, _, err := r.Pin(KindLayer, key("going"))
		check(err)
		armed = true
		attach(childKernel)
	case "evict":
		w := unlocked(t, path, toAttach)
		seats := seatsOf(t, path)
		armed = true
		for _, s := range seats {
			if s.Boot == bootOfKernel(childKernel+1) {
				check(Evict(w, s.Number, s.Generation))
			}
		}
	case "ask":
		r := attach(childKernel)
		armed = true
		check(r.Ask(bg, &Request{Kind: AskFlatten, Chain: key("chain")}))
	case "answer":
		p := own(childKernel, 0)
		armed = true
		check(p.Serve(bg, func(context.Context, *Request) error { return nil }))
	default:
		t.Fatalf("story %q is not known", args[0])
	}
	t.Fatalf("%s: came to its end without %q", args[0], at)
}

// die ends this process, or the guest that it is in, at once.
func die() {
	kill := func() error { return syscall.Kill(os.Getpid(), syscall.SIGKILL) }
	if os.Getenv(inGuestEnv) != "" {
		kill = func() error { return os.WriteFile("/proc/sysrq-trigger", []byte("b"), 0) }
	}
	if err := kill(); err != nil {
		panic(err)
	}
}

// failingWindow has an index that cannot be written.
type failingWindow struct{ Window }

func (failingWindow) Store(int64, uint64) error { return errors.New("store: broken on purpose") }

func bootOfKernel(n byte) [16]byte {
	id, err := bootID(asKernel(n))
	if err != nil {
		panic(err)
	}
	return id
}

// dies runs a story on the pool in a file until it is killed at a step.
type dies func(t *testing.T, story, at, path string)

// processDies: the story is a process's.
func processDies(t *testing.T, story, at, path string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(bg, 60*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestCrashChild$", "-test.timeout=50s")
	c.Env = append(os.Environ(), crashEnv+"="+strings.Join([]string{story, at, path}, "|"))
	out, err := c.CombinedOutput()
	if ws, ok := c.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() || ws.Signal() != syscall.SIGKILL || ctx.Err() != nil {
		t.Fatalf("the process was not killed at %q: %v\n%s", at, err, out)
	}
}

func seatsOf(t *testing.T, path string) []*Seat {
	t.Helper()
	p, err := OpenReadOnly(bg, unlocked(t, path, toInspect))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	seats, err := p.Seats()
	if err != nil {
		t.Fatal(err)
	}
	return seats
}

// abandon leaves a pool as its process's end would.
func abandon(t *testing.T, p *Pool) {
	t.Helper()
	if err := errors.Join(p.w.Close(), p.region.Close()); err != nil {
		t.Fatal(err)
	}
}

// scene is the pool of one crash, as the test process has it.
type scene struct {
	t     *testing.T
	path  string
	maker *Pool
	owner *Pool // alive in this process, or nil
	r     *Reader
	unpin func()
}

func newScene(t *testing.T, story string) *scene {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "daxmem-crash-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &scene{t: t, path: filepath.Join(dir, "pool")}
	if err := os.WriteFile(s.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(s.path, 8*mib); err != nil {
		t.Fatal(err)
	}
	if s.maker, err = Create(bg, unlocked(t, s.path, toOwn), asKernel(makerKernel)); err != nil {
		t.Fatal(err)
	}
	addLayer(t, s.maker, "kept", keptFiles...)
	addImage(t, s.maker, "ikept", "kept")
	if _, err := s.maker.PublishChain(bg, key("ckept"), key("kept"), [32]byte{}); err != nil {
		t.Fatal(err)
	}
	addLayer(t, s.maker, "going", goingFiles...)
	if err := s.maker.Sync(bg); err != nil {
		t.Fatal(err)
	}
	if s.r, err = Attach(bg, unlocked(t, s.path, toAttach), asKernel(readerKernel)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.r.Close() })
	if _, s.unpin, err = s.r.Pin(KindImage, key("ikept")); err != nil {
		t.Fatal(err)
	}
	switch story {
	case "read", "read again", "evict", "ask":
		s.owner = s.maker
	case "open again":
		abandon(t, s.maker)
	case "take over": // the maker goes on when its kernel was declared gone
		if err := Evict(s.maker.region, s.maker.seat.number, s.maker.seat.word.generation()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.maker.Close() })
	default:
		mustClose(t, s.maker)
	}
	return s
}

// takeOwnership evicts who owned the pool, and opens it on another kernel.
func (s *scene) takeOwnership(path string) *Pool {
	s.t.Helper()
	for _, seat := range seatsOf(s.t, path) {
		if seat.Owner {
			w := unlocked(s.t, path, toAttach)
			if err := Evict(w, seat.Number, seat.Generation); err != nil {
				s.t.Fatal(err)
			}
			w.Close()
		}
	}
	p, err := Open(bg, unlocked(s.t, path, toOwn), asKernel(laterKernel))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { p.Close() })
	return p
}

// What must be so when a story ended at a step: at these and at later ones.
var (
	newIsThere  = []string{stepRecordLive, stepRegionSynced, stepRecordDurable, stepBeforeClean, stepPoolClean, stepPoolDisowned}
	goingIsGone = []string{stepRecordRetired, stepRecordSkipped, stepRecordUnlinked, stepRecordKept, stepRegionSynced, stepSpacePunched, stepRecordCleared, stepRecordFree}
	goingPinned = []string{stepPinSet, stepPinChecked, stepBeforeUnpin, stepSeatFound}
)

func TestCrashTable(t *testing.T) {
	for _, row := range crashTable {
		for _, c := range row.steps {
			t.Run(fmt.Sprintf("%s/%s/%s", row.table, row.row, c.step), func(t *testing.T) { crashAt(t, c, processDies) })
		}
	}
}

func crashAt(t *testing.T, c crashStep, die dies) {
	s := newScene(t, c.story)
	bad := map[string]bool{} // layers that have to be quarantined
	var asked chan error
	after := func() {}
	switch c.story {
	case "quarantine":
		going, err := s.r.Layer(key("going"))
		if err != nil {
			t.Fatal(err)
		}
		f := unlocked(t, s.path, toOwn)
		if _, err := f.WriteAt([]byte{0xff}, going.Offset+100); err != nil {
			t.Fatal(err)
		}
		f.Close()
		bad["going"] = true
	case "answer":
		asked = make(chan error, 1)
		go func() { asked <- s.askUntilDone() }()
	case "evict":
		other, err := Attach(bg, unlocked(t, s.path, toAttach), asKernel(childKernel+1))
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		after = func() {
			if _, _, err := other.Pin(KindLayer, key("kept")); !errors.Is(err, ErrFenced) {
				t.Errorf("pin from a seat that was evicted: %v, want %v", err, ErrFenced)
			}
			if err := s.owner.Remove(bg, KindLayer, key("going")); err != nil {
				t.Errorf("remove what was pinned from there: %v", err)
			}
		}
		if _, _, err := other.Pin(KindLayer, key("going")); err != nil {
			t.Fatal(err)
		}
	}
	die(t, c.story, c.step, s.path)
	s.checkReadOnly(bad)
	if s.owner == nil {
		s.sameKernel(c, bad)
		s.owner = s.takeOwnership(s.path)
	}
	s.verify(s.owner, c, bad)
	after()
	switch c.story {
	case "take over":
		for what, err := range map[string]error{
			"publish": func() error { _, err := tryLayer(s.maker, key("late"), newFiles...); return err }(),
			"remove":  s.maker.Remove(bg, KindLayer, key("going")),
			"sync":    s.maker.Sync(bg),
		} {
			if !errors.Is(err, ErrFenced) {
				t.Errorf("%s by the former owner: %v, want %v", what, err, ErrFenced)
			}
		}
	case "ask":
		s.answersLate(c)
	case "answer":
		s.serve(func() {
			select {
			case err := <-asked:
				if err != nil {
					t.Errorf("what was asked when the owner died: %v", err)
				}
			case <-time.After(20 * time.Second):
				t.Error("what was asked when the owner died is not answered by the next one")
			}
		})
	case "read", "read again":
		s.readerAgain(c)
	}
	s.release(bad)
}

// checkReadOnly is `pool check` before anybody has repaired anything.
func (s *scene) checkReadOnly(bad map[string]bool) {
	s.t.Helper()
	p, err := OpenReadOnly(bg, unlocked(s.t, s.path, toInspect))
	if err != nil {
		s.t.Fatal(err)
	}
	defer p.Close()
	rep, err := p.Check(bg, CheckOptions{Data: true})
	if err != nil || len(rep.Problems) > 0 || len(rep.Quarantined) > len(bad) {
		s.t.Fatalf("check as it was left: %+v, %v", rep, err)
	}
}

// sameKernel opens a copy of the pool on the kernel whose process was killed.
func (s *scene) sameKernel(c crashStep, bad map[string]bool) {
	s.t.Helper()
	b, err := os.ReadFile(s.path)
	if err != nil {
		s.t.Fatal(err)
	}
	path := s.path + ".copy"
	if err := os.WriteFile(path, b, 0o600); err != nil {
		s.t.Fatal(err)
	}
	defer os.Remove(path)
	n := byte(childKernel)
	if c.story == "open again" {
		n = makerKernel
	}
	p, err := Open(bg, unlocked(s.t, path, toOwn), asKernel(n))
	if errors.Is(err, ErrOwned) && c.story == "take over" && c.step == stepSeatTaken {
		s.t.Fatal(err) // the former owner's seat is not held any more
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.verify(p, c, bad)
	if err := p.Remove(bg, KindImage, key("ikept")); !errors.Is(err, ErrInUse) {
		s.t.Errorf("remove what another kernel has pinned: %v, want %v", err, ErrInUse)
	}
	mustClose(s.t, p)
}

// verify holds a pool against what was promised, and works on it.
func (s *scene) verify(p *Pool, c crashStep, bad map[string]bool) {
	t := s.t
	t.Helper()
	mustBeSound(t, p, bad)
	for name, files := range map[string][][]byte{"kept": keptFiles, "going": goingFiles, "new": newFiles} {
		there := true
		switch {
		case bad[name]:
			continue
		case name == "going" && (c.story == "remove" || c.story == "remove pinned"):
			there = !slices.Contains(goingIsGone, c.step)
		case name == "new":
			there = (c.story == "publish" || c.story == "close") && slices.Contains(newIsThere, c.step)
		}
		_, err := p.Layer(key(name))
		if there != (err == nil) || err != nil && !errors.Is(err, ErrNotFound) {
			t.Fatalf("layer %s after %q: %v, want there %v", name, c.step, err, there)
		}
		for _, f := range files {
			if e := p.byDigest[hashBytes(f)]; there && (e == nil || string(content(t, p, e.extent())) != string(f)) {
				t.Fatalf("layer %s: a file of %d bytes is lost", name, len(f))
			}
		}
	}
	if c.story == "remove pinned" { // by a kernel that is not gone
		if len(p.leaving) != 1 {
			t.Errorf("%d removed records are kept for their pins, want 1", len(p.leaving))
		}
		for _, f := range goingFiles {
			if e := p.byDigest[hashBytes(f)]; e == nil || string(content(t, p, e.extent())) != string(f) {
				t.Errorf("a file of %d bytes of a removed layer that is pinned is lost", len(f))
			}
		}
	}
	if p.region.Path() == s.path { // what the reader sees is this pool
		for _, err := range []error{
			func() error { _, err := s.r.Layer(key("kept")); return err }(),
			func() error { _, err := s.r.Chain(key("ckept")); return err }(),
			func() error {
				img, err := s.r.Image(key("ikept"))
				if err == nil {
					_, err = s.r.ReadSegment(img)
				}
				return err
			}(),
			s.r.seat.check(),
		} {
			if err != nil {
				t.Errorf("the reader: %v", err)
			}
		}
	}
	addLayer(t, p, "more", randomBytes(20, 40000), newFiles[0])
	addImage(t, p, "imore", "more")
	if err := p.Sync(bg); err != nil {
		t.Fatal(err)
	}
	mustBeSound(t, p, bad)
}

func mustBeSound(t *testing.T, p *Pool, bad map[string]bool) {
	t.Helper()
	if len(bad) == 0 {
		mustCheck(t, p)
		return
	}
	rep, err := p.Check(bg, CheckOptions{Data: true})
	if err != nil || len(rep.Problems) > 0 || len(rep.Quarantined) != len(bad) {
		t.Fatalf("check: %+v, %v, want %d quarantined", rep, err, len(bad))
	}
	mustZero(t, p)
}

// readerAgain is a later daemon of the kernel whose reader died: until it looks
// after what was left, that counts.
func (s *scene) readerAgain(c crashStep) {
	t := s.t
	t.Helper()
	if err := s.owner.Remove(bg, KindLayer, key("going")); slices.Contains(goingPinned, c.step) != errors.Is(err, ErrInUse) {
		t.Fatalf("remove what the dead reader had pinned, or not: %v", err)
	}
	r, err := Attach(bg, unlocked(t, s.path, toAttach), asKernel(childKernel))
	if err != nil {
		t.Fatal(err)
	}
	n, err := r.ReleaseLeft()
	if err != nil || slices.Contains(goingPinned, c.step) != (n == 1) {
		t.Errorf("released %d pins, %v", n, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := s.owner.Remove(bg, KindLayer, key("going")); err != nil && !errors.Is(err, ErrNotFound) {
		t.Errorf("remove what nobody has pinned any more: %v", err)
	}
}

func (s *scene) askUntilDone() error {
	deadline := time.Now().Add(30 * time.Second)
	for {
		// Before the first owner is there, nobody owns the pool.
		err := s.r.Ask(bg, &Request{Kind: AskFlatten, Chain: key("chain")})
		if !errors.Is(err, ErrNoOwner) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// serve answers requests while do runs.
func (s *scene) serve(do func()) (served []string) {
	ctx, cancel := context.WithCancel(bg)
	done := make(chan error, 1)
	go func() {
		done <- s.owner.Serve(ctx, func(_ context.Context, q *Request) error {
			served = append(served, fmt.Sprintf("%v %x", q.Kind, q.Chain[:4]))
			return nil
		})
	}()
	do()
	cancel()
	if err := <-done; err != nil {
		s.t.Error(err)
	}
	return served
}

// answersLate: the owner does what a dead reader has asked for completely, and
// nothing else; the next daemon of that kernel gets answers of its own.
func (s *scene) answersLate(c crashStep) {
	chain := key("another chain")
	served := s.serve(func() {
		if c.step == stepRequestSent {
			time.Sleep(10 * mailboxPause)
		}
		r, err := Attach(bg, unlocked(s.t, s.path, toAttach), asKernel(childKernel))
		if err != nil {
			s.t.Fatal(err)
		}
		if err := r.Ask(bg, &Request{Kind: AskFlatten, Chain: chain}); err != nil {
			s.t.Error(err)
		}
		if err := r.Close(); err != nil {
			s.t.Error(err)
		}
	})
	first := key("chain")
	var want []string
	if c.step == stepRequestSent {
		want = append(want, fmt.Sprintf("flatten %x", first[:4]))
	}
	if want = append(want, fmt.Sprintf("flatten %x", chain[:4])); !slices.Equal(served, want) {
		s.t.Errorf("served %v, want %v", served, want)
	}
}

// release ends everything and says that nothing is left.
func (s *scene) release(bad map[string]bool) {
	t, p := s.t, s.owner
	t.Helper()
	if err := p.Remove(bg, KindImage, key("ikept")); !errors.Is(err, ErrInUse) {
		t.Errorf("remove what the reader has pinned: %v, want %v", err, ErrInUse)
	}
	s.unpin()
	if err := s.r.Close(); err != nil {
		t.Error(err)
	}
	seats, err := p.Seats()
	if err != nil {
		t.Fatal(err)
	}
	for _, seat := range seats {
		if seat.Mine {
			continue
		}
		if seat.Boot == bootOfKernel(readerKernel) {
			t.Errorf("%v is left by a reader that has closed", seat)
		}
		if err := Evict(p.region, seat.Number, seat.Generation); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if err := p.Sync(bg); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Collect(bg, func(Kind, [32]byte) bool { return false }, false); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.Sync(bg); err != nil {
			t.Fatal(err)
		}
	}
	if st := mustStat(t, p); st.Segments+st.Extents+st.Quarantined+st.Inflight+st.Retired+st.Lost != 0 || len(p.slots) != p.sup.records {
		t.Errorf("left after the last release: %+v", st)
	}
	if free := len(p.avail) + len(p.withheld); free < p.sup.records {
		t.Errorf("%d of %d records are free", free, p.sup.records)
	}
	mustCheck(t, p)
	mustClose(t, p)
	if seats := seatsOf(t, s.path); len(seats) != 0 {
		t.Errorf("seats left: %v", seats)
	}
}
