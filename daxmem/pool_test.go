package daxmem

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
)

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
	if got, err := p.Image(key("image")); err != nil || got.Key != key("image") {
		t.Errorf("image: %v %v", got, err)
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

func TestDurable(t *testing.T) {
	p, path := newPool(t, 16*mib, Options{SyncDelay: 1})
	addLayer(t, p, "a", randomBytes(1, 100))
	eventually(t, "the background sync", func() bool { return mustStat(t, p).NotDurable == 0 })
	if err := p.Remove(bg, KindLayer, key("a")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "space to be freed", func() bool { return mustStat(t, p).Retired == 0 })
	mustEmpty(t, p)
	mustClose(t, p)

	p = reopen(t, path, Options{SyncOnPublish: true, SyncDelay: -1})
	if rec := addLayer(t, p, "b", randomBytes(2, 100)); !rec.Durable || mustStat(t, p).NotDurable != 0 {
		t.Errorf("%+v", rec)
	}
	ctx, cancel := context.WithCancel(bg)
	cancel()
	if _, err := p.NewImport(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	imp, err := p.NewImport(bg)
	if err != nil {
		t.Fatal(err)
	}
	defer imp.Abort()
	for _, n := range []int64{5, 3 * mib} {
		if _, err := imp.Put(ctx, &errReader{int(n)}, n); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled put of %d: %v", n, err)
		}
	}
	if s := mustStat(t, p); s.Inflight != 0 || s.ExtentCount != 1 {
		t.Errorf("%+v", s)
	}
}

func TestSentinelClasses(t *testing.T) {
	for _, c := range []struct {
		err   error
		class func(error) bool
	}{
		{ErrFull, errdefs.IsResourceExhausted},
		{&FullError{Cause: syscall.ENOSPC}, errdefs.IsResourceExhausted},
		{ErrInUse, errdefs.IsFailedPrecondition},
		{ErrNotFound, errdefs.IsNotFound},
		{ErrOwned, errdefs.IsUnavailable},
		{ErrClosed, errdefs.IsUnavailable},
		{ErrReadOnly, errdefs.IsFailedPrecondition},
		{ErrNotPool, errdefs.IsInvalidArgument},
		{ErrUnsupported, errdefs.IsNotImplemented},
		{ErrCorrupt, errdefs.IsDataLoss},
		{ErrTooSmall, errdefs.IsFailedPrecondition},
		{ErrInvalid, errdefs.IsInvalidArgument},
	} {
		if !c.class(c.err) {
			t.Errorf("%v: wrong class", c.err)
		}
	}
}
