package daxmem

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/log"
)

// An exploration runs real code of this package in several actors, each a
// kernel of its own, over one memory, in every order of their accesses to what
// they share, up to a number of preemptions, and with one actor ended for ever
// at any of its accesses. It is stateless: each schedule is a run from the
// beginning.
//
// An access is a point at which another actor may go on when somebody else
// touches the same word and one of them writes. Which words these are is
// learned: when a run finds new ones, the exploration begins again. Accesses to
// other words commute with all that others do. Copies of many bytes are two
// accesses, so that others can see half of them.

// arena is memory that is cheap to copy: pages are copied when written.
type arena struct {
	pages [][]byte
	mine  []bool
}

func newArena(size int64) *arena {
	a := &arena{make([][]byte, size/blockSize), make([]bool, size/blockSize)}
	for i := range a.pages {
		a.pages[i] = zeroPage[:]
	}
	return a
}

var zeroPage [blockSize]byte

func (a *arena) clone() *arena {
	a.mine = make([]bool, len(a.pages)) // both copy from now on
	return &arena{slices.Clone(a.pages), make([]bool, len(a.pages))}
}

func (a *arena) read(b []byte, off int64) {
	for len(b) > 0 {
		n := copy(b, a.pages[off/blockSize][off%blockSize:])
		b, off = b[n:], off+int64(n)
	}
}

func (a *arena) write(b []byte, off int64) {
	for len(b) > 0 {
		i := off / blockSize
		if !a.mine[i] {
			a.pages[i], a.mine[i] = bytes.Clone(a.pages[i]), true
		}
		n := copy(a.pages[i][off%blockSize:], b)
		b, off = b[n:], off+int64(n)
	}
}

func (a *arena) punch(off, n int64) {
	for i := off / blockSize; i < (off+n)/blockSize; i++ {
		a.pages[i], a.mine[i] = zeroPage[:], false
	}
}

func (a *arena) load(off int64) uint64 {
	return le.Uint64(a.pages[off/blockSize][off%blockSize:])
}

func (a *arena) bytes(off, n int64) []byte {
	b := make([]byte, n)
	a.read(b, off)
	return b
}

// touch is one access of an actor.
type touch struct {
	what  string // load, store, cas, read, write, punch
	off   int64
	n     int64
	write bool
	rest  bool // of an access that was cut in two
}

// place says what an access is to, with the word that is there.
func (w *world) place(c touch) string {
	g, what := w.g, ""
	switch at := c.off; {
	case at < catalogStart:
		what = "superblock"
		if at == ownerWordAt {
			what = ownerWord(w.mem.load(at)).String()
		}
	case at < g.index:
		what = fmt.Sprintf("record %d, now %v", (at-catalogStart)/recordSize, word(w.mem.load(at&^(recordSize-1))))
	case at < g.seats:
		what = fmt.Sprintf("index, now %d", w.mem.load(at))
	case at < g.dataStart:
		what = fmt.Sprintf("seat %d+%d, now %#x", (at-g.seats)/g.seatSize, (at-g.seats)%g.seatSize, w.mem.load(at))
	default:
		what = "data"
	}
	return fmt.Sprintf("[%d,+%d) %s", c.off, c.n, what)
}

func (c touch) String() string { return fmt.Sprintf("%s [%d,+%d)", c.what, c.off, c.n) }

// actor is one kernel.
type actor struct {
	w      *world
	id     int
	name   string
	mortal bool // may end at any of its writes
	role   role
	seat   *seat // of a reader
	pool   *Pool // of an owner

	script func() error
	resume chan struct{}
	dead   bool
	done   bool
	err    error

	pending  touch
	lateSeat int // writes into its seat after the seat was another's
	lateData int // writes of data after a takeover from it
}

type role int

const (
	anOwner role = iota
	aReader
	aClaimant
	anOperator
)

var errDead = errors.New("this actor has ended")

// world is one run.
type world struct {
	x      *explorer
	g      *geometry
	sup    *super
	mem    *arena
	actors []*actor
	on     bool // scheduled; else actors run freely, for preparation
	yield  chan struct{}
	failed error
	judge  *judge
	log    []string
	ends   []func() error
}

// actor adds a kernel whose script runs when the exploration does.
func (w *world) actor(name string, r role) *actor {
	a := &actor{w: w, id: len(w.actors), name: name, role: r, resume: make(chan struct{})}
	w.actors = append(w.actors, a)
	return a
}

// do runs one access.
func (a *actor) do(c touch, f func()) error {
	w := a.w
	if a.dead {
		return errDead
	}
	if w.on {
		w.x.note(a, c)
		if w.x.touches(c) || a.mortal && c.write {
			a.pending = c
			w.yield <- struct{}{}
			<-a.resume
			if a.dead {
				return errDead
			}
		}
	}
	f()
	if w.on {
		if w.x.tracing && (c.write || w.x.touches(c)) {
			w.log = append(w.log, fmt.Sprintf("%s: %s %s", a.name, c.what, w.place(c)))
		}
		if c.write && w.failed == nil {
			w.failed = w.judge.after(a, c)
		}
	}
	return nil
}

// split cuts [off,+n) where others can see half of it.
func (a *actor) split(off, n int64) int64 {
	if !a.w.on || n <= 8 {
		return n
	}
	var shared []int64
	for at := off &^ 7; at < off+n; at += 8 {
		if a.w.x.shared[at] && at > off {
			shared = append(shared, at)
		}
	}
	switch {
	case len(shared) >= 2 || len(shared) == 1 && a.w.x.shared[off&^7]:
		return shared[len(shared)/2] - off
	case a.mortal && n > 16:
		return (off+n/2)&^7 - off
	}
	return n
}

// actorWindow is a Window of one actor. Broken variants replace it.
type actorWindow struct{ a *actor }

func (w actorWindow) Load(off int64) (v uint64, err error) {
	err = w.a.do(touch{"load", off, 8, false, false}, func() { v = w.a.w.mem.load(off) })
	return v, err
}

func (w actorWindow) Store(off int64, v uint64) error {
	return w.a.do(touch{"store", off, 8, true, false}, func() { w.a.w.mem.write(le.AppendUint64(nil, v), off) })
}

func (w actorWindow) CompareAndSwap(off int64, old, v uint64) (ok bool, err error) {
	err = w.a.do(touch{"cas", off, 8, true, false}, func() {
		if ok = w.a.w.mem.load(off) == old; ok {
			w.a.w.mem.write(le.AppendUint64(nil, v), off)
		}
	})
	return ok, err
}

func (w actorWindow) Atomic() bool { return true }
func (w actorWindow) Close() error { return nil }

func (w actorWindow) ReadAt(p []byte, off int64) (int, error) {
	for b, at := p, off; len(b) > 0; {
		n := w.a.split(at, int64(len(b)))
		if len(b) != len(p) {
			n = int64(len(b))
		}
		if err := w.a.do(touch{"read", at, n, false, len(b) != len(p)}, func() { w.a.w.mem.read(b[:n], at) }); err != nil {
			return 0, err
		}
		b, at = b[n:], at+n
	}
	return len(p), nil
}

func (w actorWindow) WriteAt(p []byte, off int64) (int, error) {
	for b, at := p, off; len(b) > 0; {
		n := w.a.split(at, int64(len(b)))
		if len(b) != len(p) {
			n = int64(len(b))
		}
		if err := w.a.do(touch{"write", at, n, true, len(b) != len(p)}, func() { w.a.w.mem.write(b[:n], at) }); err != nil {
			return 0, err
		}
		b, at = b[n:], at+n
	}
	return len(p), nil
}

// actorRegion is the region as one actor has it.
type actorRegion struct {
	actorWindow
	wrap func(Window) Window
}

func (r actorRegion) Window(off, n int64, writable bool) (Window, error) {
	if r.wrap != nil {
		return r.wrap(r.actorWindow), nil
	}
	return r.actorWindow, nil
}

func (r actorRegion) Punch(off, n int64) error {
	return r.a.do(touch{"punch", off, n, true, false}, func() { r.a.w.mem.punch(off, n) })
}

func (r actorRegion) Size() int64               { return int64(len(r.a.w.mem.pages)) * blockSize }
func (r actorRegion) Private() bool             { return false }
func (r actorRegion) Persistent() bool          { return false }
func (r actorRegion) Fixed() bool               { return true }
func (r actorRegion) Address() uint64           { return 0 }
func (r actorRegion) Kind() string              { return "arena" }
func (r actorRegion) Path() string              { return "arena" }
func (r actorRegion) Sync() error               { return nil }
func (r actorRegion) Allocated() (int64, error) { return r.Size(), nil }
func (r actorRegion) Grow(int64) error          { return os.ErrInvalid }

// choice is what the scheduler does at one point: an actor goes on, or ends.
type choice struct {
	actor int
	kill  bool
}

// point is a choice as it was made.
type point struct {
	choice
	enabled []int // actors that could go on
	mortal  []int // actors that could have ended here
	last    int   // who ran before, if it could go on; else -1
}

// bounds of an exploration.
type bounds struct {
	preemptions int
	kills       int
	runs        int // 0: all there are
}

type explorer struct {
	bounds
	setup func(w *world)

	sharedBy map[int64]*users
	shared   map[int64]bool // as of the begin of this round
	grew     bool
	tracing  bool
	runs     int
}

// users of a word, by bit.
type users struct{ read, written uint32 }

// wordsOf are the words of an access; beyond the shared structures one a block
// is enough.
func (x *explorer) wordsOf(c touch, g *geometry, f func(at int64)) {
	step := int64(8)
	if c.off >= g.dataStart {
		step = blockSize
	}
	for at := c.off &^ (step - 1); at < c.off+c.n; at += step {
		f(at)
	}
}

func (x *explorer) note(a *actor, c touch) {
	x.wordsOf(c, a.w.g, func(at int64) {
		u := x.sharedBy[at]
		if u == nil {
			u = &users{}
			x.sharedBy[at] = u
		}
		if c.write {
			u.written |= 1 << a.id
		} else {
			u.read |= 1 << a.id
		}
		if all := u.read | u.written; u.written != 0 && all&(all-1) != 0 && !x.shared[at] {
			x.grew = true
		}
	})
}

func (x *explorer) touches(c touch) bool {
	if c.n == 8 {
		return x.shared[c.off]
	}
	for at := c.off &^ 7; at < c.off+c.n; at += 8 {
		if x.shared[at] {
			return true
		}
		if c.off >= x.dataStart() {
			at += blockSize - 8
		}
	}
	return false
}

func (x *explorer) dataStart() int64 { return interSuper.dataStart }

// explore runs all schedules and returns the first violation, with the schedule
// that leads to it.
func (x *explorer) explore() error {
	x.sharedBy = map[int64]*users{}
	// Actors that are unwound find that nothing works any more, and say so.
	defer log.SetLevel(log.GetLevel().String())
	log.SetLevel("panic")
	// Only one actor goes on at a time: handing over is cheaper so.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for {
		x.shared, x.grew = map[int64]bool{}, false
		for at, u := range x.sharedBy {
			if all := u.read | u.written; u.written != 0 && all&(all-1) != 0 {
				x.shared[at] = true
			}
		}
		x.runs = 0
		stack := [][]choice{nil}
		for len(stack) > 0 && !x.grew {
			prefix := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			trace, err := x.run(prefix)
			if err != nil {
				return x.explain(prefix, trace, err)
			}
			if x.runs++; x.bounds.runs > 0 && x.runs >= x.bounds.runs {
				return nil
			}
			stack = x.branch(stack, trace, len(prefix))
		}
		if !x.grew {
			return nil
		}
	}
}

// branch adds the schedules that leave trace at a point from the n-th on.
func (x *explorer) branch(stack [][]choice, trace []point, n int) [][]choice {
	preemptions, kills := 0, 0
	for i, p := range trace {
		if i >= n {
			leave := func(c choice) {
				prefix := make([]choice, i+1)
				for j := range i {
					prefix[j] = trace[j].choice
				}
				prefix[i] = c
				stack = append(stack, prefix)
			}
			for _, e := range p.enabled {
				if e == p.actor && !p.kill {
					continue
				}
				if cost := cost(p.last, e); preemptions+cost <= x.preemptions {
					leave(choice{e, false})
				}
			}
			if kills < x.kills && !p.kill {
				for _, m := range p.mortal {
					if m == p.last || p.last < 0 {
						leave(choice{m, true})
					}
				}
			}
		}
		if p.kill {
			kills++
		} else {
			preemptions += cost(p.last, p.actor)
		}
	}
	return stack
}

// cost is 1 when next is scheduled although last could go on.
func cost(last, next int) int {
	if last >= 0 && last != next {
		return 1
	}
	return 0
}

// run plays one schedule: prefix, then whoever runs goes on.
func (x *explorer) run(prefix []choice) (trace []point, err error) {
	w := &world{x: x, yield: make(chan struct{}), mem: interBase.clone(), g: &interSuper.geometry, sup: interSuper}
	w.judge = &judge{w: w}
	step = func(name string) {
		if name == "catalog fenced" {
			w.judge.taken = true
		}
	}
	defer func() { step = func(string) {} }()
	x.setup(w)
	w.judge.begin()
	w.on = true
	for _, a := range w.actors {
		go func() {
			<-a.resume
			if !a.dead {
				a.err = a.script()
			}
			a.done = true
			w.yield <- struct{}{}
		}()
	}
	last := -1
	for w.failed == nil {
		p := point{last: -1}
		for _, a := range w.actors {
			if a.done || a.dead {
				continue
			}
			p.enabled = append(p.enabled, a.id)
			if a.mortal && a.pending.n > 0 {
				p.mortal = append(p.mortal, a.id)
			}
			if a.id == last {
				p.last = last
			}
		}
		if len(p.enabled) == 0 {
			break
		}
		p.choice = choice{actor: p.enabled[0]}
		if p.last >= 0 {
			p.actor = p.last
		}
		if i := len(trace); i < len(prefix) {
			p.choice = prefix[i]
			if !slices.Contains(p.enabled, p.actor) { // maps are walked in any order
				p.choice = choice{actor: p.enabled[0]}
			}
		}
		trace = append(trace, p)
		a := w.actors[p.actor]
		if p.kill {
			if x.tracing {
				w.log = append(w.log, a.name+" ENDS before "+a.pending.what+" "+w.place(a.pending))
			}
			a.dead = true
			continue
		}
		last = p.actor
		a.resume <- struct{}{}
		<-w.yield
	}
	killed := false
	for _, a := range w.actors {
		killed = killed || a.dead
		if !a.done { // unwind it: nothing that it does from here on counts
			a.dead = true
			a.resume <- struct{}{}
			<-w.yield
		}
	}
	w.on = false
	err = w.failed
	for _, a := range w.actors {
		if err == nil && a.err != nil && !a.dead {
			err = fmt.Errorf("%s: %w", a.name, a.err)
		}
	}
	if err == nil {
		err = w.judge.end(killed)
	}
	for _, f := range w.ends {
		if err == nil {
			err = f()
		}
	}
	if x.tracing && err != nil {
		err = fmt.Errorf("%w\n%s", err, strings.Join(w.log, "\n"))
	}
	return trace, err
}

// explain runs a schedule that failed again and says what happened in it.
func (x *explorer) explain(prefix []choice, trace []point, err error) error {
	x.tracing = true
	defer func() { x.tracing = false }()
	all := make([]choice, len(trace))
	for i, p := range trace {
		all[i] = p.choice
	}
	if _, again := x.run(all); again != nil {
		return again
	}
	return fmt.Errorf("%w (not again when it was repeated)", err)
}

// holds says that no schedule violates anything.
func holds(t *testing.T, b bounds, setup func(w *world)) {
	t.Helper()
	x := &explorer{bounds: b, setup: setup}
	if err := x.explore(); err != nil {
		t.Fatalf("after %d schedules: %v", x.runs, err)
	}
	t.Logf("%d schedules, %d words shared", x.runs, len(x.shared))
	if x.runs < 10 {
		t.Errorf("%d schedules: the actors share nothing", x.runs)
	}
}

// bites says that a broken variant is found out, by what want is part of.
func bites(t *testing.T, b bounds, want string, setup func(w *world)) {
	t.Helper()
	x := &explorer{bounds: b, setup: setup}
	err := x.explore()
	if err == nil {
		t.Fatalf("%d schedules found nothing", x.runs)
	}
	first, _, _ := strings.Cut(err.Error(), "\n")
	if !strings.Contains(first, want) {
		t.Fatalf("found %v\nwant %q", err, want)
	}
	t.Logf("after %d schedules: %s", x.runs, first)
}
