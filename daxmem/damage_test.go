package daxmem

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// damaged makes a pool with three independent layers and images and returns
// its bytes on disk after a clean close.
func damagedBase(t *testing.T) (path string, recs []*Record) {
	p, path := newPool(t, 16*mib, manual)
	for i, n := range []string{"a", "b", "c"} {
		addLayer(t, p, n, randomBytes(uint64(i), 6000), randomBytes(9, 500))
		addImage(t, p, "i"+n, n)
	}
	mustClose(t, p)
	r, err := OpenFileReadOnly(path)
	if err != nil {
		t.Fatal(err)
	}
	ro, err := OpenReadOnly(bg, r)
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	return path, ro.Records()
}

// TestFlippedRecord damages each byte of each record: that record is put aside,
// with the image that draws from it when it is a layer, and nothing else.
func TestFlippedRecord(t *testing.T) {
	base, recs := damagedBase(t)
	whole, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	step := 3
	if testing.Short() {
		step = 29
	}
	for _, rec := range recs {
		for at := int64(0); at < recordSize; at += int64(step) {
			m := newMem(0)
			m.mem = append([]byte(nil), whole...)
			m.mem[slotOffset(rec.Slot)+at] ^= 0xff
			p, err := Open(bg, m, manual)
			if err != nil {
				t.Fatalf("%s byte %d: %v", rec.Name(), at, err)
			}
			want := 1
			if rec.Kind == KindLayer {
				want = 2 // and its image
			}
			if at == 2 || at == 3 {
				want = 0 // the fence, which says nothing about the record
			}
			s := mustStat(t, p)
			if s.QuarantinedCount != want || s.LayerCount+s.ImageCount != len(recs)-want {
				t.Fatalf("%s byte %d: %d quarantined, want %d: %+v", rec.Name(), at, s.QuarantinedCount, want, s)
			}
			rep, err := p.Check(bg, CheckOptions{Data: true})
			if err != nil || len(rep.Problems) > 0 || len(rep.Quarantined) != want {
				t.Fatalf("%s byte %d: %v %v", rec.Name(), at, rep, err)
			}
			mustZero(t, p)
			// New content goes beside what was put aside, and the rest works.
			addLayer(t, p, "new", randomBytes(50, 6000))
			before := m.mem[rec.Offset : rec.Offset+rec.Size]
			if string(before) != string(whole[rec.Offset:rec.Offset+rec.Size]) {
				t.Fatalf("%s byte %d: segment of a quarantined record was overwritten", rec.Name(), at)
			}
			// Built again under the same key, the damaged one can go.
			if rec.Kind == KindLayer {
				name := map[[32]byte]string{key("a"): "a", key("b"): "b", key("c"): "c"}[rec.Key]
				addLayer(t, p, name, randomBytes(60, 700))
				addImage(t, p, "i"+name, name)
			} else if _, err := tryImage(p, rec.Key, key("a")); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Collect(bg, func(k Kind, _ [32]byte) bool { return k == KindLayer || k == KindImage }, false); err != nil {
				t.Fatal(err)
			}
			if s := mustStat(t, p); s.QuarantinedCount != 0 && at >= 64 {
				t.Fatalf("%s byte %d: %d still quarantined", rec.Name(), at, s.QuarantinedCount)
			}
			if _, err := p.Collect(bg, func(Kind, [32]byte) bool { return false }, false); err != nil {
				t.Fatal(err)
			}
			if err := p.Sync(bg); err != nil {
				t.Fatal(err)
			}
			s = mustStat(t, p)
			if s.Free != s.Size-s.Superblock-s.Catalog || s.FreeRecords != p.sup.records {
				t.Fatalf("%s byte %d: not empty after collect: %+v", rec.Name(), at, s)
			}
			mustClose(t, p)
		}
	}
}

func TestFlippedSegment(t *testing.T) {
	base, recs := damagedBase(t)
	for _, rec := range recs {
		for _, at := range []int64{0, 16, 200, 1000, blockSize + 3, rec.Size - 1} {
			path := filepath.Join(t.TempDir(), "pool")
			if err := os.Link(base, path); err != nil {
				t.Fatal(err)
			}
			flipByte(t, path, rec.Offset+at, 0x40)
			p := reopen(t, path, manual)
			if _, err := p.find(rec.Kind, rec.Key); err == nil {
				t.Errorf("%s byte %d of the segment: still served", rec.Name(), at)
			}
			mustClose(t, p)
			// The quarantine lasts, also when the byte is right again.
			flipByte(t, path, rec.Offset+at, 0x40)
			p = reopen(t, path, manual)
			if s := mustStat(t, p); s.QuarantinedCount == 0 {
				t.Errorf("%s: quarantine was forgotten", rec.Name())
			}
			mustZero(t, p)
			mustClose(t, p)
			// Undo for the next one.
			undoQuarantine(t, path)
		}
	}
}

func undoQuarantine(t *testing.T, path string) {
	r, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for slot := range 16 {
		b := make([]byte, recordSize)
		if _, err := r.ReadAt(b, slotOffset(slot)); err != nil {
			t.Fatal(err)
		}
		if e, cond, _ := decodeEntry(b); cond == condLive {
			e.flags &^= flagQuarantined
			if _, err := r.WriteAt(e.encode(), slotOffset(slot)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestFlippedExtentIsFoundByCheck(t *testing.T) {
	p, path := newPool(t, 16*mib, manual)
	imp, err := p.NewImport(bg)
	if err != nil {
		t.Fatal(err)
	}
	exts, err := putAll(imp, [][]byte{randomBytes(1, 100), randomBytes(2, 9000)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := publishExtents(imp, key("a"), exts); err != nil {
		t.Fatal(err)
	}
	flipByte(t, path, exts[1].Offset+8999, 1)
	if rep, err := p.Check(bg, CheckOptions{}); err != nil || !rep.OK() {
		t.Errorf("without data: %v %v", rep, err)
	}
	done := int64(0)
	rep, err := p.Check(bg, CheckOptions{Data: true, Progress: func(d, total int64) {
		if d <= done || d > total {
			t.Errorf("progress %d of %d after %d", d, total, done)
		}
		done = d
	}})
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Problems) != 1 || rep.Problems[0].Offset != exts[1].Offset || !strings.HasPrefix(rep.Problems[0].Name, "extent ") {
		t.Errorf("%v", rep.Problems)
	}
}

// TestOverlappingRecords: two sound records that claim the same bytes. The
// newer one wins; the other is put aside.
func TestOverlappingRecords(t *testing.T) {
	p, path := newPool(t, 16*mib, manual)
	rec := addLayer(t, p, "a", randomBytes(1, 5000))
	r := p.slots[rec.Slot]
	forged := r.entry
	forged.key, forged.seq = key("b"), 77
	mustClose(t, p)
	reg, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reg.WriteAt(forged.encode(), slotOffset(rec.Slot+1)); err != nil {
		t.Fatal(err)
	}
	p, err = Open(bg, reg, manual)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	s := mustStat(t, p)
	if s.LayerCount != 1 || s.QuarantinedCount != 1 {
		t.Errorf("%+v", s)
	}
	if _, err := p.Layer(key("b")); err != nil {
		t.Error(err)
	}
}
