package daxmem

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
)

var errNoSpace = syscall.ENOSPC

func TestRoundTrip(t *testing.T) {
	p, path := newPool(t, 64*mib, Options{})
	big := randomBytes(1, 3*mib+17)
	clear(big[mib : 2*mib]) // a hole in the middle
	files := [][]byte{nil, []byte("a"), randomBytes(2, 4095), randomBytes(3, 4096), randomBytes(4, 4097),
		randomBytes(5, mib), randomBytes(6, mib+1), big, make([]byte, 10000)}
	imp, err := p.NewImport(bg)
	if err != nil {
		t.Fatal(err)
	}
	exts, err := putAll(imp, files)
	if err != nil {
		t.Fatal(err)
	}
	if exts[0] != (Extent{}) {
		t.Errorf("empty file: %+v", exts[0])
	}
	if exts[7].Offset%(2*mib) != 0 {
		t.Errorf("large extent at %d, want a multiple of 2 MiB", exts[7].Offset)
	}
	rec, err := publishExtents(imp, key("layer"), exts)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range exts {
		if e.Size > 0 && e.Offset <= rec.Offset {
			t.Errorf("extent %d at %d, not above the segment at %d", i, e.Offset, rec.Offset)
		}
	}
	addImage(t, p, "image", "layer")
	if got, err := p.ImageByChainID(key("image")); err != nil || got.Key != key("image") {
		t.Errorf("by chainID: %v %v", got, err)
	}
	verify := func(p *Pool) {
		t.Helper()
		for i, e := range exts {
			if e.Size > 0 && !bytes.Equal(content(t, p, e), files[i]) {
				t.Errorf("file %d differs", i)
			}
		}
		mustCheck(t, p)
	}
	verify(p)
	if err := p.Sync(bg); err != nil {
		t.Fatal(err)
	}
	before, records := mustStat(t, p), p.Records()
	mustClose(t, p)
	if _, err := p.NewImport(bg); !errors.Is(err, ErrClosed) {
		t.Errorf("import after close: %v", err)
	}

	p = reopen(t, path, Options{})
	verify(p)
	after := mustStat(t, p)
	before.Epoch++
	before.Allocated, after.Allocated = 0, 0
	if before != after {
		t.Errorf("stat after reopen\n got %+v\nwant %+v", after, before)
	}
	if got := p.Records(); !reflect.DeepEqual(got, records) {
		t.Errorf("records after reopen\n got %+v\nwant %+v", got, records)
	}
	b, err := p.ReadSegment(rec)
	if err != nil || int64(len(b)) != rec.Size {
		t.Errorf("read segment: %d bytes, %v", len(b), err)
	}
}

func TestDedupe(t *testing.T) {
	p, _ := newPool(t, 64*mib, manual)
	small, big := randomBytes(1, 5000), randomBytes(2, 2*mib)
	addLayer(t, p, "a", small, big, small)
	one := mustStat(t, p)
	addLayer(t, p, "b", big, small)
	two := mustStat(t, p)
	if two.Extents != one.Extents || two.ExtentCount != 2 {
		t.Errorf("extents %d bytes in %d, want %d in 2", two.Extents, two.ExtentCount, one.Extents)
	}
	if two.SavedBytes != int64(len(small)+len(big)) {
		t.Errorf("saved %d bytes", two.SavedBytes)
	}
	mustCheck(t, p)
	if err := p.Remove(bg, KindLayer, key("a")); err != nil {
		t.Fatal(err)
	}
	if err := p.Sync(bg); err != nil {
		t.Fatal(err)
	}
	mustCheck(t, p)
	if s := mustStat(t, p); s.Extents != one.Extents {
		t.Errorf("removing one of two users left %d bytes, want %d", s.Extents, one.Extents)
	}
	if err := p.Remove(bg, KindLayer, key("b")); err != nil {
		t.Fatal(err)
	}
	if err := p.Sync(bg); err != nil {
		t.Fatal(err)
	}
	mustEmpty(t, p)
}

func mustEmpty(t testing.TB, p *Pool) {
	t.Helper()
	s := mustStat(t, p)
	if s.Free != s.Size-s.Superblock-s.Catalog || s.ExtentCount != 0 || s.FreeRecords != p.sup.records {
		t.Errorf("not empty: %+v", s)
	}
	mustCheck(t, p)
}

func TestSameKeyReturnsTheFirst(t *testing.T) {
	p, _ := newPool(t, 16*mib, manual)
	first := addLayer(t, p, "a", randomBytes(1, 100))
	again := addLayer(t, p, "a", randomBytes(2, 100))
	if again.Slot != first.Slot || again.Digest != first.Digest {
		t.Errorf("second publication made another record: %+v", again)
	}
	img := addImage(t, p, "i", "a")
	if again := addImage(t, p, "i", "a"); again.Slot != img.Slot {
		t.Errorf("second publication made another image: %+v", again)
	}
	if s := mustStat(t, p); s.ExtentCount != 1 || s.Inflight != 0 {
		t.Errorf("left behind: %+v", s)
	}
	mustCheck(t, p)
}

func TestConcurrentImports(t *testing.T) {
	p, _ := newPool(t, 128*mib, Options{SyncDelay: 1})
	files := make([][]byte, 40)
	for i := range files {
		files[i] = randomBytes(uint64(i%20), 1+i%20*3000)
	}
	files[7] = randomBytes(99, mib+5)
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			imp, err := p.NewImport(bg)
			if err != nil {
				t.Error(err)
				return
			}
			defer imp.Abort()
			exts := make([]Extent, len(files))
			var inner sync.WaitGroup
			for half := range 2 { // several goroutines per import
				inner.Go(func() {
					for i := half; i < len(files); i += 2 {
						e, err := imp.Put(bg, bytes.NewReader(files[i]), int64(len(files[i])))
						if err != nil {
							t.Error(err)
						}
						exts[i] = e
					}
				})
			}
			inner.Wait()
			if w == 5 {
				return // aborts
			}
			name := string(rune('a' + w%3)) // keys collide as well
			if _, err := publishExtents(imp, key(name), exts); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Go(func() {
		for range 20 {
			if rep, err := p.Check(bg, CheckOptions{Data: true}); err != nil || !rep.OK() {
				t.Errorf("check beside imports: %v %v", rep.Problems, err)
			}
		}
	})
	wg.Wait()
	s := mustStat(t, p)
	if s.LayerCount != 3 || s.ExtentCount != 21 || s.Inflight != 0 {
		t.Errorf("%+v", s)
	}
	mustCheck(t, p)
}

type errReader struct{ n int }

func (r *errReader) Read(b []byte) (int, error) {
	if r.n <= 0 {
		return 0, errors.New("broken")
	}
	n := min(len(b), r.n)
	for i := range b[:n] {
		b[i] = byte(r.n) | 1
	}
	r.n -= n
	return n, nil
}

func TestAbortLeavesNothing(t *testing.T) {
	p, _ := newPool(t, 64*mib, manual)
	imp, err := p.NewImport(bg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := putAll(imp, [][]byte{randomBytes(1, 10), randomBytes(2, 3*mib)}); err != nil {
		t.Fatal(err)
	}
	if _, err := imp.Put(bg, bytes.NewReader(make([]byte, 10)), 11); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short small file: %v", err)
	}
	if _, err := imp.Put(bg, bytes.NewReader(randomBytes(1, 2*mib)), 3*mib); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short large file: %v", err)
	}
	if _, err := imp.Put(bg, &errReader{2*mib + 5}, 3*mib); err == nil {
		t.Error("broken reader: no error")
	}
	if _, err := imp.Put(bg, nil, -1); !errdefs.IsInvalidArgument(err) {
		t.Errorf("negative size: %v", err)
	}
	if s := mustStat(t, p); s.ExtentCount != 2 || s.Inflight != 0 {
		t.Errorf("failed puts left something: %+v", s)
	}
	imp.Abort()
	imp.Abort()
	if _, err := imp.Put(bg, bytes.NewReader([]byte("x")), 1); !errors.Is(err, ErrClosed) {
		t.Errorf("put after abort: %v", err)
	}
	mustEmpty(t, p)
}

func TestPublishFailures(t *testing.T) {
	p, _ := newPool(t, 16*mib, manual)
	imp, err := p.NewImport(bg)
	if err != nil {
		t.Fatal(err)
	}
	exts, err := putAll(imp, [][]byte{randomBytes(1, 10), randomBytes(2, 5000)})
	if err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	size := segmentSize(2, 0)
	alien := append(exts[:1:1], Extent{Digest: key("x"), Offset: exts[1].Offset, Size: 5000})
	for name, build := range map[string]BuildFunc{
		"build fails": func(int64) ([]byte, error) { return nil, boom },
		"short":       func(int64) ([]byte, error) { return make([]byte, 10), nil },
		"garbage":     func(int64) ([]byte, error) { return make([]byte, size), nil },
		"alien":       func(off int64) ([]byte, error) { return buildSegment(off, p.size, alien, nil, false, size), nil },
		"image": func(off int64) ([]byte, error) {
			return buildSegment(off, p.size, nil, [][32]byte{{}}, true, size), nil
		},
	} {
		if _, err := imp.PublishLayer(bg, key("a"), size, build, RecordMeta{}); err == nil {
			t.Errorf("%s: published", name)
		}
		if s := mustStat(t, p); s.Segments != 0 || s.Inflight != 0 || s.ExtentCount != 2 || s.FreeRecords != p.sup.records {
			t.Errorf("%s: left behind: %+v", name, s)
		}
	}
	// A subset is published; the rest is given up.
	if _, err := publishExtents(imp, key("a"), exts[1:]); err != nil {
		t.Fatal(err)
	}
	if s := mustStat(t, p); s.ExtentCount != 1 {
		t.Errorf("unused extent is still there: %+v", s)
	}
	if _, err := tryImage(p, key("i"), key("nothing")); !errdefs.IsNotFound(err) {
		t.Errorf("image of a missing layer: %v", err)
	}
	wrong := segmentSize(0, 1)
	if _, err := p.PublishImage(bg, key("i"), [][32]byte{key("a")}, wrong, func(off int64) ([]byte, error) {
		return buildSegment(off, p.size, nil, [][32]byte{key("b")}, true, wrong), nil
	}, RecordMeta{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("image that lists other layers: %v", err)
	}
	if err := p.Remove(bg, KindLayer, key("a")); err != nil {
		t.Fatalf("failed image still uses the layer: %v", err)
	}
	if err := p.Sync(bg); err != nil {
		t.Fatal(err)
	}
	mustEmpty(t, p)
}

func TestFull(t *testing.T) {
	p, _ := newPool(t, 8*mib, manual)
	n := 0
	var err error
	for ; err == nil; n++ {
		_, err = tryLayer(p, key(string(rune(n))), randomBytes(uint64(n), mib))
	}
	var full *FullError
	if !errors.As(err, &full) || !errors.Is(err, ErrFull) || !errdefs.IsResourceExhausted(err) {
		t.Fatalf("got %v", err)
	}
	if full.Wanted != mib || full.Maximum != 8*mib || n < 6 {
		t.Errorf("%d layers, then %+v", n, full)
	}
	mustCheck(t, p)
	before := mustStat(t, p)
	if _, err := tryLayer(p, key("large"), randomBytes(1000, 3*mib)); !errors.Is(err, ErrFull) {
		t.Errorf("large file: %v", err)
	}
	if after := mustStat(t, p); after.Free != before.Free || after.Inflight != 0 {
		t.Errorf("failed put left something: %+v", after)
	}
	// What was removed is reusable at once: a full pool syncs by itself.
	if err := p.Remove(bg, KindLayer, key(string(rune(0)))); err != nil {
		t.Fatal(err)
	}
	addLayer(t, p, "again", randomBytes(2000, mib))
	mustCheck(t, p)
}

func TestNoSpaceOnMedium(t *testing.T) {
	for _, size := range []int{5000, 900 << 10, 3 * mib} {
		for _, room := range []int64{0, 100, 4096, 8192, 100 << 10, mib, 2*mib + 5} {
			m := newMem(32 * mib)
			p, err := Create(bg, m, manual)
			if err != nil {
				t.Fatal(err)
			}
			addLayer(t, p, "first", randomBytes(1, 7000))
			before := mustStat(t, p)
			m.room = room
			_, err = tryLayer(p, key("second"), randomBytes(2, size), randomBytes(3, size))
			m.room = -1
			if err != nil && (!errors.Is(err, ErrFull) || !errors.Is(err, syscall.ENOSPC) || !errdefs.IsResourceExhausted(err)) {
				t.Errorf("size %d room %d: %v", size, room, err)
			}
			if err != nil {
				before.FreeRecords = mustStat(t, p).FreeRecords
				if after := mustStat(t, p); after != before {
					t.Errorf("size %d room %d: left behind\n got %+v\nwant %+v", size, room, after, before)
				}
			}
			mustCheck(t, p)
			mustClose(t, p)
		}
	}
}

func TestPinAndUse(t *testing.T) {
	p, _ := newPool(t, 16*mib, manual)
	addLayer(t, p, "l", randomBytes(1, 100))
	img := addImage(t, p, "i", "l")
	if err := p.Remove(bg, KindLayer, key("l")); !errors.Is(err, ErrInUse) || !errdefs.IsFailedPrecondition(err) {
		t.Errorf("remove a used layer: %v", err)
	}
	_, release, err := p.Pin(KindImage, key("i"))
	if err != nil {
		t.Fatal(err)
	}
	_, release2, err := p.PinAt(img.Offset)
	if err != nil {
		t.Fatal(err)
	}
	release()
	release() // once only
	if err := p.Remove(bg, KindImage, key("i")); !errors.Is(err, ErrInUse) {
		t.Errorf("remove a pinned image: %v", err)
	}
	rep, err := p.Collect(bg, func(Kind, [32]byte) bool { return false }, false)
	if err != nil || len(rep.Removed) != 0 {
		t.Errorf("collect took a pinned image: %+v %v", rep, err)
	}
	release2()
	if err := p.Remove(bg, KindImage, key("i")); err != nil {
		t.Error(err)
	}
	if err := p.Remove(bg, KindImage, key("i")); !errdefs.IsNotFound(err) {
		t.Errorf("remove twice: %v", err)
	}
	if _, _, err := p.Pin(KindImage, key("i")); !errdefs.IsNotFound(err) {
		t.Errorf("pin what is gone: %v", err)
	}
}

func TestCollect(t *testing.T) {
	p, _ := newPool(t, 32*mib, manual)
	shared := randomBytes(1, 9000)
	addLayer(t, p, "a", shared, randomBytes(2, 100))
	addLayer(t, p, "b", shared, randomBytes(3, 100))
	addLayer(t, p, "c", shared, randomBytes(4, 100))
	addImage(t, p, "ia", "a")
	addImage(t, p, "ib", "a", "b")
	live := func(k Kind, id [32]byte) bool { return k == KindImage && id == key("ia") }
	dry, err := p.Collect(bg, live, true)
	if err != nil {
		t.Fatal(err)
	}
	before := mustStat(t, p)
	rep, err := p.Collect(bg, live, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Removed) != 3 || !reflect.DeepEqual(rep, dry) {
		t.Errorf("got %+v, dry run %+v", rep, dry)
	}
	if err := p.Sync(bg); err != nil {
		t.Fatal(err)
	}
	after := mustStat(t, p)
	if after.Free-before.Free != rep.Bytes {
		t.Errorf("freed %d bytes, report says %d", after.Free-before.Free, rep.Bytes)
	}
	if after.LayerCount != 1 || after.ImageCount != 1 {
		t.Errorf("%+v", after)
	}
	mustCheck(t, p)
	if _, err := p.Collect(bg, func(Kind, [32]byte) bool { return false }, false); err != nil {
		t.Fatal(err)
	}
	if err := p.Sync(bg); err != nil {
		t.Fatal(err)
	}
	mustEmpty(t, p)
}

func TestSpaceGoesBackToTheFileSystem(t *testing.T) {
	p, _ := newPool(t, 64*mib, manual)
	empty := mustStat(t, p).Allocated
	addLayer(t, p, "a", randomBytes(1, 8*mib))
	if s := mustStat(t, p); s.Allocated < 8*mib {
		t.Errorf("allocated %d", s.Allocated)
	}
	addLayer(t, p, "zeros", make([]byte, 16*mib))
	if s := mustStat(t, p); s.Allocated > 9*mib+empty {
		t.Errorf("zeros were written: %d allocated", s.Allocated)
	}
	for _, l := range []string{"a", "zeros"} {
		if err := p.Remove(bg, KindLayer, key(l)); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Sync(bg); err != nil {
		t.Fatal(err)
	}
	if s := mustStat(t, p); s.Allocated > empty+64<<10 {
		t.Errorf("%d bytes still allocated, %d when empty", s.Allocated, empty)
	}
}

func TestGrow(t *testing.T) {
	p, path := newPool(t, 8*mib, manual)
	addLayer(t, p, "a", randomBytes(1, 5*mib))
	if _, err := tryLayer(p, key("b"), randomBytes(2, 5*mib)); !errors.Is(err, ErrFull) {
		t.Fatalf("got %v", err)
	}
	mustClose(t, p)
	p = reopen(t, path, Options{MaxSize: 64 * mib, SyncDelay: -1})
	addLayer(t, p, "b", randomBytes(2, 5*mib))
	addLayer(t, p, "c", randomBytes(1, 5*mib), randomBytes(3, 30*mib)) // shares with the old part
	addImage(t, p, "i", "a", "b", "c")
	mustCheck(t, p)
	mustClose(t, p)

	r, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(bg, r, Options{MaxSize: 10 * mib}); !errors.Is(err, ErrTooSmall) || !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("maximum below use: %v", err)
	}
	p = reopen(t, path, Options{MaxSize: 48 * mib, SyncDelay: -1})
	if _, err := tryLayer(p, key("d"), randomBytes(4, 12*mib)); !errors.Is(err, ErrFull) {
		t.Errorf("beyond the maximum: %v", err)
	}
	addLayer(t, p, "e", randomBytes(5, mib))
	mustCheck(t, p)
}

func TestBadRegions(t *testing.T) {
	dir := t.TempDir()
	make := func(name string, damage func(path string)) string {
		path := filepath.Join(dir, name)
		r, err := CreateFile(path, 8*mib)
		if err != nil {
			t.Fatal(err)
		}
		p, err := Create(bg, r, manual)
		if err != nil {
			t.Fatal(err)
		}
		addLayer(t, p, "a", randomBytes(1, 5000))
		mustClose(t, p)
		damage(path)
		return path
	}
	flip := func(off int64) func(string) {
		return func(path string) { flipByte(t, path, off, 0xff) }
	}
	for name, c := range map[string]struct {
		damage func(string)
		class  func(error) bool
	}{
		"magic":    {flip(0), errdefs.IsInvalidArgument},
		"version":  {flip(8), errdefs.IsNotImplemented},
		"checksum": {flip(100), errdefs.IsDataLoss},
		"empty":    {func(p string) { os.Truncate(p, 0) }, errdefs.IsInvalidArgument},
		"cut":      {func(p string) { os.Truncate(p, 7*mib) }, errdefs.IsDataLoss},
		"cut much": {func(p string) { os.Truncate(p, 8192) }, errdefs.IsDataLoss},
		"owners":   {func(p string) { flip(600)(p); flip(1100)(p) }, errdefs.IsDataLoss},
	} {
		path := make(name, c.damage)
		r, err := OpenFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(bg, r, manual); !c.class(err) {
			t.Errorf("%s: %v", name, err)
		}
		if r, err = OpenFileReadOnly(path); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenReadOnly(bg, r); !c.class(err) {
			t.Errorf("%s, read-only: %v", name, err)
		}
	}
	// One torn copy of the owner part is survived.
	for _, off := range []int64{600, 1100} {
		path := make("torn", flip(off))
		p := reopen(t, path, manual)
		if p.own.epoch < 3 {
			t.Errorf("epoch %d may have been used", p.own.epoch)
		}
		mustCheck(t, p)
		mustClose(t, p)
		os.Remove(path)
	}
	path := filepath.Join(dir, "other")
	if err := os.WriteFile(path, bytes.Repeat([]byte("not a pool"), 100000), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenOrCreate(bg, path, Options{MaxSize: 8 * mib}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("some other file: %v", err)
	}
	if _, err := OpenFile(dir); err == nil {
		t.Error("opened a directory")
	}
	if _, err := OpenOrCreate(bg, filepath.Join(dir, "tiny"), Options{MaxSize: 4096}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("too small: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "tiny")); !os.IsNotExist(err) {
		t.Errorf("left behind: %v", err)
	}
}

func flipByte(t testing.TB, path string, off int64, mask byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= mask
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

func TestSecondOwner(t *testing.T) {
	p, path := newPool(t, 8*mib, manual)
	_, err := OpenFile(path)
	if !errors.Is(err, ErrOwned) || !errdefs.IsUnavailable(err) {
		t.Fatalf("second owner: %v", err)
	}
	r, err := OpenFileReadOnly(path)
	if err != nil {
		t.Fatal(err)
	}
	ro, err := OpenReadOnly(bg, r)
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	if _, err := ro.NewImport(bg); !errors.Is(err, ErrReadOnly) {
		t.Errorf("import: %v", err)
	}
	if err := ro.Remove(bg, KindLayer, key("a")); !errors.Is(err, ErrReadOnly) {
		t.Errorf("remove: %v", err)
	}
	mustCheck(t, p)
}

// TestCheckBesideOwner runs a read-only check while the owner publishes and
// removes as fast as it can.
func TestCheckBesideOwner(t *testing.T) {
	p, path := newPool(t, 64*mib, Options{SyncDelay: 1})
	ctx, stop := context.WithCancel(bg)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := uint64(0); ctx.Err() == nil; i++ {
			name := string(rune('a' + i%7))
			if _, err := tryLayer(p, key(name), randomBytes(i, 5000), randomBytes(i/3, 20000)); err != nil {
				t.Error(err)
			}
			if _, err := tryImage(p, key("i"+name), key(name)); err != nil {
				t.Error(err)
			}
			old := string(rune('a' + (i+3)%7))
			p.Remove(bg, KindImage, key("i"+old))
			p.Remove(bg, KindLayer, key(old))
		}
	})
	r, err := OpenFileReadOnly(path)
	if err != nil {
		t.Fatal(err)
	}
	ro, err := OpenReadOnly(bg, r)
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	for range 100 {
		rep, err := ro.Check(bg, CheckOptions{Data: true})
		if err != nil || !rep.OK() {
			for _, q := range rep.Quarantined {
				t.Logf("quarantined %s: %s", q.Name(), q.Quarantined)
			}
			t.Errorf("%v %v", rep.Problems, err)
			break
		}
	}
	stop()
	wg.Wait()
	mustCheck(t, p)
}
