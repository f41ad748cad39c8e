package daxmem

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// look is one look at a pool from outside, by its path.
func look(t testing.TB, w *Watch, path string) *Usage {
	t.Helper()
	r, err := OpenFileReadOnly(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	u, err := w.Look(bg, r)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func (u *Usage) use(t testing.TB, kind Kind, k [32]byte) *Use {
	t.Helper()
	i := slices.IndexFunc(u.Uses, func(s *Use) bool { return s.Kind == kind && s.Key == k })
	if i < 0 {
		t.Fatalf("%s is not in use", recordName(kind, k))
	}
	return u.Uses[i]
}

// Whoever looks sees what the owner's books say, and who has pinned what.
func TestWatch(t *testing.T) {
	p := newShared(t, 64*mib, manual)
	var w Watch
	if u := look(t, &w, p.path); len(u.Uses) != 0 || len(u.Seats) != 1 || !u.Seats[0].Owner || !u.Owned || u.Used != p.sup.dataStart {
		t.Errorf("empty pool: %+v", u)
	}
	shared := randomBytes(1, 100_000)
	addLayer(t, p.Pool, "a", shared, randomBytes(2, 5000))
	addLayer(t, p.Pool, "b", shared)
	addImage(t, p.Pool, "iab", "a", "b")
	addImage(t, p.Pool, "ib", "b")
	if _, err := p.PublishChain(bg, key("chain"), key("b"), [32]byte{}); err != nil {
		t.Fatal(err)
	}
	r1, r2 := p.attach(t, asKernel(1)), p.attach(t, asKernel(2))
	var unpins []func()
	for _, r := range []*Reader{r1, r2} {
		_, unpin, err := r.Pin(KindImage, key("iab"))
		if err != nil {
			t.Fatal(err)
		}
		unpins = append(unpins, unpin)
	}
	for range 2 { // the second look reads no segment again
		u := look(t, &w, p.path)
		if u.UUID != p.UUID() || u.Size != p.Size() || len(u.Seats) != 3 || len(u.Uses) != 5 {
			t.Fatalf("%+v", u)
		}
		if got := u.use(t, KindImage, key("iab")); !slices.Equal(got.Seats, []int{1, 2}) || got.Data != 102400+8192 || got.Space != 8192 || got.Removed {
			t.Errorf("image: %+v", got)
		}
		if got := u.use(t, KindImage, key("ib")); len(got.Seats) != 0 || got.Data != 102400 {
			t.Errorf("unused image: %+v", got)
		}
		if s := mustStat(t, p.Pool); u.Used != s.Size-s.Free {
			t.Errorf("%d bytes are in use, the owner's books have %d", u.Used, s.Size-s.Free)
		}
	}
	// What a pool that was opened for inspection says of seats and pins.
	in := inspect(t, p.path)
	pinned, err := in.Pinned()
	if err != nil || len(pinned) != 1 || !slices.Equal(pinned[look(t, &w, p.path).use(t, KindImage, key("iab")).Slot], []int{1, 2}) {
		t.Errorf("pinned %v, %v", pinned, err)
	}
	if seats, err := in.Seats(); err != nil || len(seats) != 3 {
		t.Errorf("%d seats, %v", len(seats), err)
	}
	// One kernel less, and one that was late: the image was removed already.
	unpins[0]()
	if got := look(t, &w, p.path).use(t, KindImage, key("iab")); !slices.Equal(got.Seats, []int{2}) {
		t.Errorf("image: %+v", got)
	}
	unpins[1]()
	hook(t, func(name string) {
		if name == "before retire" {
			var err error
			if _, unpins[1], err = r2.Pin(KindImage, key("iab")); err != nil {
				t.Error(err)
			}
		}
	})
	if err := p.Remove(bg, KindImage, key("iab")); err != nil {
		t.Fatal(err)
	}
	if got := look(t, &w, p.path).use(t, KindImage, key("iab")); !got.Removed || len(got.Seats) != 1 {
		t.Errorf("removed image: %+v", got)
	}
	unpins[1]()
	if err := p.Sync(bg); err != nil {
		t.Fatal(err)
	}
	u := look(t, &w, p.path)
	if s := mustStat(t, p.Pool); len(u.Uses) != 4 || u.Used != s.Size-s.Free {
		t.Errorf("after removal: %d records, %d bytes, the books have %d", len(u.Uses), u.Used, s.Size-s.Free)
	}
}

// A pool that is made anew, damaged, or no pool.
func TestWatchDamage(t *testing.T) {
	p := newShared(t, 64*mib, manual)
	addLayer(t, p.Pool, "a", randomBytes(1, 5000))
	b := addLayer(t, p.Pool, "b", randomBytes(2, 5000))
	damage(t, p.Pool, b.Offset+blockSize+5)
	var w Watch
	u := look(t, &w, p.path)
	if got := u.use(t, KindLayer, key("b")); got.Damaged == "" || got.Data != 0 {
		t.Errorf("damaged layer: %+v", got)
	}
	if got := u.use(t, KindLayer, key("a")); got.Damaged != "" || got.Data != 8192 {
		t.Errorf("sound layer: %+v", got)
	}
	other := newShared(t, 64*mib, manual)
	addLayer(t, other.Pool, "c", randomBytes(1, 5000))
	if u := look(t, &w, other.path); len(u.Uses) != 1 || u.Uses[0].Damaged != "" || u.Used != mustStat(t, other.Pool).Size-mustStat(t, other.Pool).Free {
		t.Errorf("another pool: %+v", u)
	}
	none := filepath.Join(t.TempDir(), "none")
	if err := os.WriteFile(none, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := OpenFileReadOnly(none)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.Look(bg, r); !errors.Is(err, ErrNotPool) {
		t.Errorf("no pool: %v, want %v", err, ErrNotPool)
	}
}

// Room does not count what was removed and waits for a sync.
func TestRoom(t *testing.T) {
	p, _ := newPool(t, 64*mib, manual)
	empty := p.Room()
	if empty.Max != 64*mib || empty.Used != p.sup.dataStart || empty.Records != 0 || empty.MaxRecords != p.sup.records {
		t.Errorf("empty pool: %+v", empty)
	}
	addLayer(t, p, "a", randomBytes(1, 32*mib))
	full := p.Room()
	if full.Used < 32*mib || full.Records != 1 || full.Percent() < 50 || full.Percent() > 60 {
		t.Errorf("%+v", full)
	}
	if err := p.Remove(bg, KindLayer, key("a")); err != nil {
		t.Fatal(err)
	}
	if got := p.Room(); got != empty {
		t.Errorf("removed: %+v, want %+v", got, empty)
	}
	if err := p.Sync(bg); err != nil {
		t.Fatal(err)
	}
	if got := p.Room(); got != empty {
		t.Errorf("removed and synced: %+v, want %+v", got, empty)
	}
	if got := (Room{Used: 1, Max: 100, Records: 91, MaxRecords: 100}).Percent(); got != 91 {
		t.Error("a catalog that is full does not count")
	}
}
