package daxmem

import (
	"errors"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
)

var errNoSpace = syscall.ENOSPC

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

// TestNoSpaceAtEachByte: wherever the medium ends, the pool is as before.
func TestNoSpaceAtEachByte(t *testing.T) {
	for room := int64(0); room < 19000; room += 61 {
		m := newMem(2 * mib)
		p, err := Create(bg, m, manual)
		if err != nil {
			t.Fatal(err)
		}
		addLayer(t, p, "first", randomBytes(1, 7000))
		before := mustStat(t, p)
		m.room = room
		_, err = tryLayer(p, key("second"), randomBytes(2, 5000), randomBytes(1, 7000))
		if err == nil {
			_, err = tryImage(p, key("image"), key("second"))
		}
		m.room = -1
		if err != nil && (!errors.Is(err, ErrFull) || !errors.Is(err, syscall.ENOSPC)) {
			t.Fatalf("room %d: %v", room, err)
		}
		if p.syncErr != nil {
			t.Fatalf("room %d: pool failed: %v", room, p.syncErr)
		}
		if s := mustStat(t, p); s.LayerCount == 1 && (s.Free != before.Free || s.Inflight != 0) {
			t.Fatalf("room %d: left behind: %+v", room, s)
		}
		mustCheck(t, p)
		mustClose(t, p)
	}
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
