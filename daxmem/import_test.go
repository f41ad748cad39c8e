package daxmem

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
)

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
