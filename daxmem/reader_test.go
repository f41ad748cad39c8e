package daxmem

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sharedPool is a pool in a file on tmpfs, and the way for other kernels, which
// are goroutines here, to it.
type sharedPool struct {
	*Pool
	path string
}

func newShared(t testing.TB, size int64, opts Options) *sharedPool {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "daxmem-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "pool")
	r, err := CreateFile(path, size)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Create(bg, r, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return &sharedPool{p, path}
}

// asKernel are options of a kernel of its own.
func asKernel(n byte) Options { return boot([16]byte{0xb, n}) }

// unlocked opens a file without the lock that keeps the processes of one kernel
// apart: another kernel.
func unlocked(t testing.TB, path string, a access) Region {
	t.Helper()
	r, err := tryUnlocked(path, a)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func tryUnlocked(path string, a access) (Region, error) {
	if strings.HasPrefix(path, KindPhys+":") { // a guest's, whose lock is another's too
		return openRegion(path, a)
	}
	f, err := os.OpenFile(path, unix.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	r := &fileRegion{f: f, path: path, ro: a != toOwn, memory: true}
	r.size.Store(st.Size())
	return r, nil
}

func (s *sharedPool) attach(t testing.TB, opts Options) *Reader {
	t.Helper()
	r, err := Attach(bg, unlocked(t, s.path, toAttach), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// A reader finds what the owner has published, and nothing else.
func TestReaderFinds(t *testing.T) {
	p := newShared(t, 64*mib, manual)
	r := p.attach(t, asKernel(1))
	if r.UUID() != p.UUID() {
		t.Errorf("UUID %v, the owner's is %v", r.UUID(), p.UUID())
	}
	if _, err := r.Layer(key("a")); !errors.Is(err, ErrNotFound) {
		t.Errorf("layer that is not there yet: %v", err)
	}
	a := addLayer(t, p.Pool, "a", randomBytes(1, 5000))
	img := addImage(t, p.Pool, "ia", "a")
	chain, err := p.PublishChain(bg, key("chain"), key("a"), [32]byte{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []*Record{a, img, chain} {
		got, err := r.find(want.Kind, want.Key)
		if err != nil || got.Slot != want.Slot || got.Offset != want.Offset || got.Digest != want.Digest {
			t.Errorf("%s: %+v, %v, want %+v", want.Name(), got, err, want)
		}
	}
	if _, err := r.Image(key("a")); !errors.Is(err, ErrNotFound) {
		t.Errorf("a layer as image: %v", err)
	}
	if err := p.Remove(bg, KindImage, key("ia")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Image(key("ia")); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed image: %v", err)
	}
	if err := p.Remove(bg, KindLayer, key("a")); !errors.Is(err, ErrInUse) {
		t.Errorf("remove the layer of a chain: %v, want %v", err, ErrInUse)
	}
	mustCheck(t, p.Pool)
}

// What another kernel has pinned is neither removed nor given out again, also
// not by a later owner; and it goes when the pin goes.
func TestReaderPins(t *testing.T) {
	p := newShared(t, 64*mib, manual)
	files := randomBytes(1, 500_000)
	addLayer(t, p.Pool, "a", files)
	img := addImage(t, p.Pool, "ia", "a")
	r := p.attach(t, asKernel(1))
	rec, unpin, err := r.Pin(KindImage, key("ia"))
	if err != nil || rec.Offset != img.Offset {
		t.Fatalf("%+v, %v", rec, err)
	}
	if err := p.Remove(bg, KindImage, key("ia")); !errors.Is(err, ErrInUse) {
		t.Fatalf("remove what another kernel has pinned: %v, want %v", err, ErrInUse)
	}
	if rep, err := p.Collect(bg, func(Kind, [32]byte) bool { return false }, false); err != nil || len(rep.Removed) != 0 {
		t.Fatalf("collected %+v, %v", rep, err)
	}
	unpin()
	unpin()
	if rep, err := p.Collect(bg, func(Kind, [32]byte) bool { return false }, false); err != nil || len(rep.Removed) != 2 {
		t.Fatalf("collected %+v, %v", rep, err)
	}
	if err := p.Sync(bg); err != nil {
		t.Fatal(err)
	}
	if s := mustStat(t, p.Pool); s.Extents != 0 || s.Segments != 0 {
		t.Errorf("left: %+v", s)
	}
}

// late is a pin that is set after the owner has looked at the pins and before
// the record is RETIRED: the reader still sees LIVE.
func TestLatePin(t *testing.T) {
	p := newShared(t, 64*mib, manual)
	content1 := randomBytes(1, 500_000)
	layer := addLayer(t, p.Pool, "a", content1)
	img := addImage(t, p.Pool, "ia", "a")
	r := p.attach(t, asKernel(1))
	var unpin func()
	hook(t, func(name string) {
		if name == "before retire" && unpin == nil {
			var err error
			if _, unpin, err = r.Pin(KindImage, key("ia")); err != nil {
				t.Error(err)
			}
		}
	})
	if err := p.Remove(bg, KindImage, key("ia")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Image(key("ia")); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed image is found: %v", err)
	}
	if err := p.Remove(bg, KindLayer, key("a")); !errors.Is(err, ErrInUse) {
		t.Errorf("remove the layer of an image that is pinned: %v", err)
	}
	still := func(p *Pool) {
		t.Helper()
		if err := p.Sync(bg); err != nil {
			t.Fatal(err)
		}
		if _, err := r.ReadSegment(img); err != nil {
			t.Error(err)
		}
		if got := content(t, p, p.byDigest[hashBytes(content1)].extent()); string(got) != string(content1) {
			t.Error("the image's file was changed")
		}
		if s := mustStat(t, p); s.Segments == 0 || s.Extents == 0 {
			t.Errorf("freed under a pin: %+v", s)
		}
		mustCheck(t, p)
	}
	still(p.Pool)
	// Another owner after a crash of this one: same kernel.
	again, err := Open(bg, unlocked(t, p.path, toOwn), manual)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	still(again)
	unpin()
	if err := again.Remove(bg, KindLayer, key("a")); !errors.Is(err, ErrInUse) {
		t.Errorf("remove before the pin's end was noticed: %v", err)
	}
	for range 2 {
		if err := again.Sync(bg); err != nil {
			t.Fatal(err)
		}
	}
	if err := again.Remove(bg, KindLayer, layer.Key); err != nil {
		t.Fatal(err)
	}
	if err := again.Sync(bg); err != nil {
		t.Fatal(err)
	}
	if s := mustStat(t, again); s.Segments != 0 || s.Extents != 0 || s.Retired != 0 {
		t.Errorf("left: %+v", s)
	}
	mustCheck(t, again)
}

func (e *extent) extent() Extent { return Extent{Digest: e.digest, Offset: e.off, Size: e.size} }

// hook runs f at each step until the test ends.
func hook(t testing.TB, f func(name string)) {
	step = f
	t.Cleanup(func() { step = func(string) {} })
}

// A kernel keeps its seat and its pins over a restart of its daemon, and gives
// both up when nothing is left.
func TestSeatOutlivesDaemon(t *testing.T) {
	p := newShared(t, 64*mib, manual)
	addLayer(t, p.Pool, "a", randomBytes(1, 5000))
	first, err := Attach(bg, unlocked(t, p.path, toAttach), asKernel(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := first.Pin(KindLayer, key("a")); err != nil {
		t.Fatal(err)
	}
	number := first.seat.number
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Remove(bg, KindLayer, key("a")); !errors.Is(err, ErrInUse) {
		t.Fatalf("remove what a stopped daemon has left pinned: %v", err)
	}
	second, err := Attach(bg, unlocked(t, p.path, toAttach), asKernel(1))
	if err != nil || second.seat.number != number {
		t.Fatalf("seat %d, %v, want %d", second.seat.number, err, number)
	}
	if n, err := second.ReleaseLeft(); n != 1 || err != nil {
		t.Errorf("released %d, %v, want 1", n, err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	seats, err := p.Seats()
	if err != nil || len(seats) != 1 || !seats[0].Owner || !seats[0].Mine {
		t.Errorf("seats: %+v, %v, want the owner's", seats, err)
	}
	if err := p.Remove(bg, KindLayer, key("a")); err != nil {
		t.Error(err)
	}
}

// 64 kernels find a seat, the 65th is told who has them, and an evicted one
// notices.
func TestSeats(t *testing.T) {
	p := newShared(t, 64*mib, manual)
	addLayer(t, p.Pool, "a", randomBytes(1, 5000))
	var readers []*Reader
	for n := range seatCount - 1 {
		opts := asKernel(byte(n))
		opts.Holder = fmt.Sprintf("guest%d", n)
		readers = append(readers, p.attach(t, opts))
	}
	if _, err := Attach(bg, unlocked(t, p.path, toAttach), asKernel(200)); !errors.Is(err, ErrSeats) {
		t.Fatalf("one more: %v, want %v", err, ErrSeats)
	}
	gone := readers[7]
	_, unpin, err := gone.Pin(KindLayer, key("a"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Remove(bg, KindLayer, key("a")); !errors.Is(err, ErrInUse) {
		t.Fatalf("%v, want %v", err, ErrInUse)
	}
	w := unlocked(t, p.path, toAttach)
	defer w.Close()
	if err := Evict(w, gone.seat.number, gone.seat.word.generation()); err != nil {
		t.Fatal(err)
	}
	if err := Evict(w, gone.seat.number, gone.seat.word.generation()); !errors.Is(err, ErrNotFound) {
		t.Errorf("evict twice: %v", err)
	}
	if _, _, err := gone.Pin(KindLayer, key("a")); !errors.Is(err, ErrFenced) {
		t.Errorf("pin from an evicted seat: %v, want %v", err, ErrFenced)
	}
	late := p.attach(t, asKernel(201))
	if late.seat.number != gone.seat.number {
		t.Fatalf("seat %d, want %d", late.seat.number, gone.seat.number)
	}
	_, unpinLate, err := late.Pin(KindLayer, key("a"))
	if err != nil {
		t.Fatal(err)
	}
	unpin() // of the seat's former holder: not the later one's pin
	if err := p.Remove(bg, KindLayer, key("a")); !errors.Is(err, ErrInUse) {
		t.Fatalf("%v, want %v", err, ErrInUse)
	}
	unpinLate()
	if err := p.Remove(bg, KindLayer, key("a")); err != nil {
		t.Error(err)
	}
}

// An instance that has booted again has none of its former pins.
func TestInstanceBootsAgain(t *testing.T) {
	p := newShared(t, 64*mib, manual)
	addLayer(t, p.Pool, "a", randomBytes(1, 5000))
	opts := asKernel(1)
	opts.Instance = "vm-1"
	first := p.attach(t, opts)
	if _, _, err := first.Pin(KindLayer, key("a")); err != nil {
		t.Fatal(err)
	}
	again := asKernel(2)
	again.Instance = "vm-1"
	p.attach(t, again)
	if err := p.Remove(bg, KindLayer, key("a")); err != nil {
		t.Errorf("pins of the boot before: %v", err)
	}
}

// Owners of different kernels: one at a time, and the former one is fenced.
func TestTakeover(t *testing.T) {
	p := newShared(t, 64*mib, asKernel(1))
	addLayer(t, p.Pool, "a", randomBytes(1, 5000))
	_, err := Open(bg, unlocked(t, p.path, toOwn), asKernel(2))
	if !errors.Is(err, ErrOwned) {
		t.Fatalf("open what another kernel owns: %v, want %v", err, ErrOwned)
	}
	w := unlocked(t, p.path, toAttach)
	defer w.Close()
	if err := Evict(w, p.seat.number, p.seat.word.generation()); err != nil {
		t.Fatal(err)
	}
	q, err := Open(bg, unlocked(t, p.path, toOwn), asKernel(2))
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	for what, err := range map[string]error{
		"publish": func() error { _, err := tryLayer(p.Pool, key("b"), randomBytes(2, 5000)); return err }(),
		"remove":  p.Remove(bg, KindLayer, key("a")),
		"sync":    p.Sync(bg),
	} {
		if !errors.Is(err, ErrFenced) {
			t.Errorf("%s by the former owner: %v, want %v", what, err, ErrFenced)
		}
	}
	addLayer(t, q, "b", randomBytes(3, 5000))
	if err := q.Remove(bg, KindLayer, key("a")); err != nil {
		t.Error(err)
	}
	mustCheck(t, q)
	if p.Close() == nil {
		t.Error("close of a pool that was lost succeeds")
	}
	mustCheck(t, q)
}

// Readers look up and pin while the owner publishes and removes at full speed.
func TestReadersAtWork(t *testing.T) {
	p := newShared(t, 64*mib, Options{SyncDelay: time.Millisecond})
	const layers = 40
	name := func(i int) string { return fmt.Sprint("layer", i) }
	for i := range layers {
		addLayer(t, p.Pool, name(i), randomBytes(uint64(i), 3000))
		addImage(t, p.Pool, "i"+name(i), name(i))
	}
	// Never removed: a reader has to find them at any moment.
	for i := range layers {
		addLayer(t, p.Pool, "stays"+name(i), randomBytes(uint64(1000+i), 3000))
	}
	end := make(chan struct{})
	var wg sync.WaitGroup
	for k := range 3 {
		r := p.attach(t, asKernel(byte(k)))
		wg.Go(func() {
			for i := k; ; i++ {
				select {
				case <-end:
					return
				default:
				}
				if _, err := r.Layer(key("stays" + name(i%layers))); err != nil {
					t.Error(err)
					return
				}
				rec, unpin, err := r.Pin(KindImage, key("i"+name(i%layers)))
				if errors.Is(err, ErrNotFound) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := r.ReadSegment(rec); err != nil {
					t.Error(err)
				}
				unpin()
			}
		})
	}
	rounds := 300
	if testing.Short() {
		rounds = 30
	}
	removed := 0
	for i := range rounds {
		n := name(i % layers)
		err := p.Remove(bg, KindImage, key("i"+n))
		if errors.Is(err, ErrInUse) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		removed++
		if err := p.Remove(bg, KindLayer, key(n)); err != nil && !errors.Is(err, ErrInUse) {
			t.Fatal(err)
		}
		addLayer(t, p.Pool, n, randomBytes(uint64(i), 3000))
		addImage(t, p.Pool, "i"+n, n)
	}
	close(end)
	wg.Wait()
	t.Logf("%d of %d removals", removed, rounds)
	for range 3 {
		if err := p.Sync(bg); err != nil {
			t.Fatal(err)
		}
	}
	mustCheck(t, p.Pool)
	if s := mustStat(t, p.Pool); s.Retired != 0 || s.ImageCount != layers {
		t.Errorf("%+v", s)
	}
}
