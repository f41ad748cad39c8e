package daxmem

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// The crash tests run a story on a region that remembers every write since the
// last sync, stop it at each write, and open what could be on the medium then:
//
//   - kill: all writes up to there (the page cache outlives the process);
//   - power: what was synced, and any subset of the writes since, in order.
//
// After each, Open must succeed, Check find nothing but what lost writes
// explain, and what was durable and not removed must be whole.

var bootA, bootB = [16]byte{0xa}, [16]byte{0xb}

func boot(id [16]byte) Options {
	return Options{SyncDelay: -1, bootID: func() ([16]byte, error) { return id, nil }}
}

// promise is what must hold after a crash: layers by name, with their files.
type promise struct {
	safe map[string][][]byte // durable, not removed since
	live map[string][][]byte // published, not removed: survives a kill
}

func (s *promise) clone() *promise {
	c := &promise{safe: map[string][][]byte{}, live: map[string][][]byte{}}
	for k, v := range s.safe {
		c.safe[k] = v
	}
	for k, v := range s.live {
		c.live[k] = v
	}
	return c
}

// story drives a pool; the promise is adjusted before what takes away and
// after what gives.
func story(t *testing.T, p *Pool, s *promise, rnd *rand.Rand) {
	publish := func(name string, files ...[]byte) {
		addLayer(t, p, name, files...)
		s.live[name] = files
	}
	remove := func(name string) {
		delete(s.live, name)
		delete(s.safe, name)
		if err := p.Remove(bg, KindLayer, key(name)); err != nil {
			t.Fatal(err)
		}
	}
	removeImage := func(name string) {
		delete(s.live, "image "+name)
		delete(s.safe, "image "+name)
		if err := p.Remove(bg, KindImage, key(name)); err != nil {
			t.Fatal(err)
		}
	}
	image := func(name string, layers ...string) {
		if p.SelfContained() {
			addSelfContained(t, p, name, layers...)
		} else {
			addImage(t, p, name, layers...)
		}
		s.live["image "+name] = nil
	}
	sync := func() {
		was := s.clone()
		if err := p.Sync(bg); err != nil {
			t.Fatal(err)
		}
		for k, v := range was.live {
			s.safe[k] = v
		}
	}
	shared, other := randomBytes(rnd.Uint64(), 9000), randomBytes(rnd.Uint64(), 5000)
	holes := randomBytes(rnd.Uint64(), 40000)
	clear(holes[4096:20480])
	publish("a", shared, randomBytes(rnd.Uint64(), 100))
	image("ia", "a")
	sync()
	publish("b", shared, other, holes)
	image("ib", "a", "b")
	removeImage("ia")
	sync()
	removeImage("ib")
	remove("b")
	publish("b", other, randomBytes(rnd.Uint64(), 3000)) // the same key with other content
	image("ib", "b")
	publish("c", holes)
	remove("a")
	sync()
	publish("d", randomBytes(rnd.Uint64(), 300000)) // into reused space
	publish("a", shared)
	image("ia", "a", "c")
	imp, err := p.NewImport(bg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := putAll(imp, [][]byte{randomBytes(rnd.Uint64(), 70000), holes}); err != nil {
		t.Fatal(err)
	}
	remove("d")
	sync()
	publish("e", randomBytes(rnd.Uint64(), 200000))
	imp.Abort()
}

// moment is what there was just before a write.
type moment struct {
	mem, synced []byte
	ops         []writeOp
	promise     *promise
}

// crash is the panic that stands for the end of a process.
type crash struct{}

// until plays the story and returns what there was before its n-th write, or
// at its end. The story goes on after that write: what it does then is not
// looked at.
func until(t *testing.T, seed uint64, n int, selfContained bool) (at *moment, ended bool) {
	m := newMem(3 * mib)
	opts := boot(bootA)
	opts.SelfContained = selfContained
	p, err := Create(bg, m, opts)
	if err != nil {
		t.Fatal(err)
	}
	m.synced = bytes.Clone(m.mem)
	s := &promise{safe: map[string][][]byte{}, live: map[string][][]byte{}}
	take := func() *moment {
		return &moment{bytes.Clone(m.mem), bytes.Clone(m.synced), m.ops[:len(m.ops):len(m.ops)], s.clone()}
	}
	count := 0
	m.onWrite = func() {
		if count == n {
			at = take()
		}
		count++
	}
	story(t, p, s, rand.New(rand.NewPCG(seed, 7)))
	if at == nil {
		return take(), true
	}
	return at, false
}

// verify opens what is on the medium and holds it against the promise.
func verify(t *testing.T, mem []byte, id [16]byte, must map[string][][]byte) {
	t.Helper()
	m := newMem(0)
	m.mem = mem
	p, err := Open(bg, m, boot(id))
	if err != nil {
		t.Fatal(err)
	}
	rep, err := p.Check(bg, CheckOptions{Data: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, pr := range rep.Problems {
		t.Fatalf("check: %v", pr)
	}
	for _, q := range rep.Quarantined {
		if id == bootA || q.Durable {
			t.Fatalf("%s is quarantined (durable %v): %s", q.Name(), q.Durable, q.Quarantined)
		}
	}
	mustZero(t, p)
	for name, files := range must {
		if files == nil {
			if _, err := p.Image(key(name[len("image "):])); err != nil {
				t.Fatalf("lost: %v", err)
			}
			continue
		}
		rec, err := p.Layer(key(name))
		if err != nil {
			t.Fatalf("lost: %v", err)
		}
		for _, f := range files {
			e := p.byDigest[hashBytes(f)]
			if e == nil {
				t.Fatalf("%s: a file of %d bytes is lost", rec.Name(), len(f))
			}
		}
	}
	// The pool works on.
	if _, err := tryLayer(p, key("new"), randomBytes(1, 10000)); err != nil {
		t.Fatal(err)
	}
	mustClose(t, p)
	m2 := newMem(0)
	m2.mem = m.mem
	if p, err = Open(bg, m2, boot(id)); err != nil {
		t.Fatal(err)
	}
	if rep, err := p.Check(bg, CheckOptions{Data: true}); err != nil || len(rep.Problems) > 0 {
		t.Fatalf("check after reopening: %v %v", rep.Problems, err)
	}
}

func TestCrash(t *testing.T)              { testCrash(t, false) }
func TestCrashSelfContained(t *testing.T) { testCrash(t, true) }

func testCrash(t *testing.T, selfContained bool) {
	subsets, seeds := 12, uint64(2)
	if testing.Short() {
		subsets, seeds = 3, 1
	}
	for seed := range seeds {
		points := 0
		for n := 0; ; n++ {
			m, ended := until(t, seed, n, selfContained)
			s := m.promise
			t.Run(fmt.Sprintf("seed %d/write %d/kill", seed, n), func(t *testing.T) {
				verify(t, bytes.Clone(m.mem), bootA, s.live)
			})
			for i := range len(m.ops) + 1 {
				if i < len(m.ops)-3 && i > 3 && n%5 != 0 {
					continue // most prefixes are those of an earlier n
				}
				t.Run(fmt.Sprintf("seed %d/write %d/power, prefix %d", seed, n, i), func(t *testing.T) {
					mem := bytes.Clone(m.synced)
					for _, op := range m.ops[:i] {
						op.apply(mem)
					}
					verify(t, mem, bootB, s.safe)
				})
			}
			for k := range subsets {
				rnd := rand.New(rand.NewPCG(uint64(n), uint64(k)))
				t.Run(fmt.Sprintf("seed %d/write %d/power, subset %d", seed, n, k), func(t *testing.T) {
					mem := bytes.Clone(m.synced)
					keep := []int{20, 50, 80}[k%3]
					for _, op := range m.ops {
						if rnd.IntN(100) < keep {
							op.apply(mem)
						}
					}
					verify(t, mem, bootB, s.safe)
				})
			}
			if t.Failed() {
				return
			}
			if points++; ended {
				break
			}
		}
		t.Logf("seed %d: %d crash points", seed, points)
	}
}

// TestCrashInOpen kills Open itself, again and again, on its way through a
// repair: each next Open must cope with what the last one left.
func TestCrashInOpen(t *testing.T) {
	for seed := range uint64(40) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		m, _ := until(t, 5, 30+rnd.IntN(60), seed%2 == 1)
		mem := bytes.Clone(m.synced)
		for _, op := range m.ops {
			if rnd.IntN(2) == 0 {
				op.apply(mem)
			}
		}
		id := bootB
		for round := range 6 {
			r := newMem(0)
			r.mem, r.synced = mem, bytes.Clone(mem)
			left := rnd.IntN(12)
			r.onWrite = func() {
				if left--; left < 0 {
					panic(crash{})
				}
			}
			func() {
				defer func() {
					if e := recover(); e != nil && e != any(crash{}) {
						panic(e)
					}
				}()
				if _, err := Open(bg, r, boot(id)); err != nil {
					t.Fatal(err)
				}
			}()
			if rnd.IntN(2) == 0 { // and the power goes as well
				mem = bytes.Clone(r.synced)
				for _, op := range r.ops {
					if rnd.IntN(2) == 0 {
						op.apply(mem)
					}
				}
				id[15] = byte(round + 1)
			} else {
				mem = r.mem
			}
		}
		id[14] = 1
		verify(t, mem, id, m.promise.safe)
	}
}

func TestSyncFailureIsSticky(t *testing.T) {
	m := newMem(8 * mib)
	p, err := Create(bg, m, boot(bootA))
	if err != nil {
		t.Fatal(err)
	}
	addLayer(t, p, "a", randomBytes(1, 5000))
	if err := p.Sync(bg); err != nil {
		t.Fatal(err)
	}
	rec := addLayer(t, p, "b", randomBytes(2, 5000))
	if err := p.Remove(bg, KindLayer, key("a")); err != nil {
		t.Fatal(err)
	}
	m.failSync = errNoSpace
	if err := p.Sync(bg); err == nil {
		t.Fatal("sync succeeded")
	}
	m.failSync = nil
	if err := p.Sync(bg); err == nil {
		t.Fatal("a later sync hides the failure")
	}
	if s := mustStat(t, p); s.Retired == 0 || s.NotDurable != 1 {
		t.Errorf("%+v", s)
	}
	if err := p.Close(); err == nil {
		t.Error("close hides the failure")
	}
	// The next Open trusts nothing that is not durable, the boot being the same.
	e := p.byDigest[hashBytes(randomBytes(2, 5000))]
	m.mem[e.off] ^= 1
	p, err = Open(bg, m, boot(bootA))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Layer(rec.Key); err == nil {
		t.Error("layer with a damaged extent was believed")
	}
}
