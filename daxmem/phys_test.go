package daxmem

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeMem is a file that stands for /dev/mem: as large as l reaches, and full
// of what memory may hold.
func fakeMem(t testing.TB, l Location) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mem")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(l.Address) + l.Size + mib); err != nil {
		t.Fatal(err)
	}
	garbage := bytes.Repeat([]byte("garbage "), mib/8)
	for _, at := range []int64{int64(l.Address) - mib, int64(l.Address) + 3*mib, int64(l.Address) + l.Size} {
		if _, err := f.WriteAt(garbage, at); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// somewhere is no System RAM on any machine that runs tests.
var somewhere = Location{Address: 1 << 43, Size: 8 * mib}

func openFake(t testing.TB, mem string, l Location, readOnly bool) Region {
	t.Helper()
	a := toOwn
	if readOnly {
		a = toInspect
	}
	r, err := openPhys(mem, l.String(), l, a)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestPhysRegion(t *testing.T) {
	mem := fakeMem(t, somewhere)
	r := openFake(t, mem, somewhere, false)
	if r.Kind() != KindPhys || r.Address() != somewhere.Address || r.Size() != somewhere.Size || !r.Fixed() || r.Path() != "phys:0x80000000000,size=8388608" {
		t.Errorf("kind %s, address %#x, size %d, fixed %v, path %s", r.Kind(), r.Address(), r.Size(), r.Fixed(), r.Path())
	}
	want := randomBytes(1, 10000)
	if n, err := r.WriteAt(want, 4097); n != len(want) || err != nil {
		t.Fatal(n, err)
	}
	word := []byte("8 bytes.")
	if n, err := r.WriteAt(word, 8*mib-8); n != 8 || err != nil {
		t.Fatal(n, err)
	}
	got := make([]byte, len(want))
	if n, err := r.ReadAt(got, 4097); n != len(got) || err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes, %v", n, err)
	}
	// At the right place of the memory, and nowhere else.
	f, err := os.Open(mem)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, c := range []struct {
		off  int64
		want string
	}{{4097, string(want)}, {8*mib - 8, "8 bytes.garbage "}, {-16, "garbage garbage \x00"}} {
		got := make([]byte, len(c.want))
		if _, err := f.ReadAt(got, int64(somewhere.Address)+c.off); err != nil || string(got) != c.want {
			t.Errorf("memory at %d: %.20q, %v, want %.20q", c.off, got, err, c.want)
		}
	}
	// The end.
	if n, err := r.ReadAt(got, 8*mib-8); n != 8 || !errors.Is(err, io.EOF) {
		t.Errorf("read over the end: %d, %v", n, err)
	}
	for _, off := range []int64{-1, 8*mib - 9999, 8 * mib, 1 << 60} {
		if n, err := r.WriteAt(want, off); n != 0 || err == nil {
			t.Errorf("write at %d: %d, %v", off, n, err)
		}
	}
	if err := r.Punch(4096, 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadAt(got, 4096); err != nil || !isZero(got[:4096]) || got[4096] != want[4095] {
		t.Errorf("after a punch: %v", err)
	}
	if err := r.Punch(8*mib-4096, 8192); err == nil {
		t.Error("punched over the end")
	}
	if err := r.Grow(16 * mib); !errors.Is(err, ErrInvalid) {
		t.Errorf("grow: %v", err)
	}

	ro := openFake(t, mem, somewhere, true)
	if _, err := ro.ReadAt(got[:8], 8*mib-8); err != nil || string(got[:8]) != string(word) {
		t.Errorf("another reader: %q, %v", got[:8], err)
	}
	if _, err := ro.WriteAt(word, 0); !errors.Is(err, os.ErrPermission) {
		t.Errorf("write read-only: %v", err)
	}
	if err := ro.Punch(0, 4096); !errors.Is(err, os.ErrPermission) {
		t.Errorf("punch read-only: %v", err)
	}
	for _, r := range []Region{ro, r} {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if _, err := r.ReadAt(got, 0); !errors.Is(err, os.ErrClosed) {
			t.Errorf("read after close: %v", err)
		}
	}
}

// One owner for a range, also where two ranges overlap in part. Readers do not
// count, and a reader's end does not end the owner's lock.
func TestPhysOwner(t *testing.T) {
	mem := fakeMem(t, somewhere)
	half := Location{Address: somewhere.Address + 6*mib, Size: 2 * mib}
	r := openFake(t, mem, somewhere, false)
	if err := openFake(t, mem, half, true).Close(); err != nil {
		t.Fatal(err)
	}
	for _, l := range []Location{somewhere, half} {
		if _, err := openPhys(mem, l.String(), l, toOwn); !errors.Is(err, ErrOwned) {
			t.Errorf("second owner of %v: %v", l, err)
		}
	}
	below := Location{Address: somewhere.Address - 2*mib, Size: 2 * mib}
	if err := openFake(t, mem, below, false).Close(); err != nil {
		t.Error(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := openFake(t, mem, half, false).Close(); err != nil {
		t.Errorf("after the owner's end: %v", err)
	}
}

func TestFindRAM(t *testing.T) {
	const iomem = `00000000-00000fff : Reserved
00001000-0009fbff : System RAM
  0000a000-0000bfff : Kernel data
100000000-13fffffff : System RAM
  120000000-120ffffff : Kernel code
140000000-17fffffff : Persistent Memory
  140000000-17fffffff : namespace0.0
200000000-23fffffff : dax0.0
  200000000-23fffffff : System RAM (kmem)
`
	for _, c := range []struct {
		address uint64
		size    int64
		ram     bool
	}{
		{0x140000000, 1 << 30, false},
		{0x180000000, 1 << 30, false},
		{0x13fe00000, 2 << 20, true},
		{0x13fe00000, 4 << 20, true},
		{0x120000000, 2 << 20, true},
		{0x0fe000000, 1 << 30, true},
		{0x200000, 2 << 20, false},
		{0x200000000, 2 << 20, true},
	} {
		err := findRAM(mustParseIomem(t, iomem), Location{Address: c.address, Size: c.size})
		if errors.Is(err, ErrInvalid) != c.ram {
			t.Errorf("[%#x,+%#x): %v", c.address, c.size, err)
		}
	}
}

// The machine's own memory is refused, whatever /dev/mem would say.
func TestPhysRefusesOwnMemory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: /proc/iomem shows no addresses to others")
	}
	if _, err := OpenRegion("phys:0x1000000,size=64MiB"); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "System RAM") {
		t.Errorf("%v", err)
	}
}

// A pool in memory: made over garbage, as large as the memory whatever its
// maximum, opened again by the next owner, refused where the memory is too
// small or holds something else.
func TestPhysPool(t *testing.T) {
	mem := fakeMem(t, somewhere)
	opts := Options{MaxSize: 64 << 30, SyncDelay: -1}
	p, err := Create(bg, openFake(t, mem, somewhere, false), opts)
	if err != nil {
		t.Fatal(err)
	}
	if p.Size() != somewhere.Size {
		t.Errorf("size %d, want the memory's %d", p.Size(), somewhere.Size)
	}
	mustCheck(t, p) // and free space is zero
	content := randomBytes(1, 3*mib)
	addLayer(t, p, "a", content, randomBytes(2, 5000))
	addImage(t, p, "i", "a")
	if _, err := tryLayer(p, key("b"), randomBytes(3, 6*mib)); !errors.Is(err, ErrFull) {
		t.Errorf("more than fits: %v", err)
	}
	mustCheck(t, p)

	ro, err := OpenReadOnly(bg, openFake(t, mem, somewhere, true))
	if err != nil {
		t.Fatal(err)
	}
	if rep, err := ro.Check(bg, CheckOptions{Data: true}); err != nil || !rep.OK() || rep.Records != 2 {
		t.Errorf("read-only check beside the owner: %+v, %v", rep, err)
	}
	mustClose(t, ro)
	mustClose(t, p)

	if p, err = Open(bg, openFake(t, mem, somewhere, false), opts); err != nil {
		t.Fatal(err)
	}
	if err := p.Remove(bg, KindImage, key("i")); err != nil {
		t.Fatal(err)
	}
	if err := p.Remove(bg, KindLayer, key("a")); err != nil {
		t.Fatal(err)
	}
	if err := p.Sync(bg); err != nil {
		t.Fatal(err)
	}
	mustEmpty(t, p)
	mustClose(t, p)

	small := Location{Address: somewhere.Address, Size: 4 * mib}
	if _, err := Open(bg, openFake(t, mem, small, false), opts); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "4194304 bytes, the pool has 8388608") {
		t.Errorf("memory smaller than its pool: %v", err)
	}
	other := Location{Address: somewhere.Address + 2*mib, Size: 2 * mib}
	if _, err := Open(bg, openFake(t, mem, other, false), opts); !errors.Is(err, ErrNotPool) {
		t.Errorf("the middle of a pool: %v", err)
	}
	// More memory than before.
	if err := os.Truncate(mem, int64(somewhere.Address)+32*mib); err != nil {
		t.Fatal(err)
	}
	large := Location{Address: somewhere.Address, Size: 16 * mib}
	zero := openFake(t, mem, large, false)
	if err := zero.Punch(8*mib, 8*mib); err != nil {
		t.Fatal(err)
	}
	if p, err = Open(bg, zero, opts); err != nil {
		t.Fatal(err)
	}
	if p.Size() != 16*mib {
		t.Errorf("size %d in larger memory", p.Size())
	}
	addLayer(t, p, "c", randomBytes(4, 9*mib))
	mustCheck(t, p)
	mustClose(t, p)
}

// The memory may hold anything where a pool would begin: it stays as it is.
func TestPhysPoolRefusesGarbage(t *testing.T) {
	for _, at := range []int64{0, 100_000} {
		mem := fakeMem(t, somewhere)
		f, err := os.OpenFile(mem, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte("precious"), int64(somewhere.Address)+at); err != nil {
			t.Fatal(err)
		}
		for name, open := range map[string]func(context.Context, Region, Options) (*Pool, error){"create": Create, "open": Open} {
			if _, err := open(bg, openFake(t, mem, somewhere, false), manual); !errors.Is(err, ErrNotPool) {
				t.Errorf("%s over garbage at %d: %v", name, at, err)
			}
		}
		b := make([]byte, somewhere.Size)
		if _, err := f.ReadAt(b, int64(somewhere.Address)); err != nil || string(b[at:at+8]) != "precious" || string(b[3*mib:3*mib+7]) != "garbage" {
			t.Errorf("garbage at %d: the memory was changed, %v", at, err)
		}
	}
}

// Lend gives space that no record names, and takes it back.
func TestLend(t *testing.T) {
	p, path := newPool(t, 9*mib, manual)
	before := mustStat(t, p)
	b := randomBytes(1, 5000)
	off, giveBack, err := p.Lend(bg, b)
	if err != nil {
		t.Fatal(err)
	}
	if got := content(t, p, Extent{Offset: off, Size: 5000}); !bytes.Equal(got, b) || off%blockSize != 0 {
		t.Errorf("other bytes at %d", off)
	}
	if s := mustStat(t, p); s.Inflight != 8192 {
		t.Errorf("%d bytes in flight", s.Inflight)
	}
	mustCheckButZero(t, p)
	giveBack()
	giveBack()
	if s := mustStat(t, p); s != before {
		t.Errorf("%+v, before %+v", s, before)
	}
	mustCheck(t, p)
	if _, _, err := p.Lend(bg, make([]byte, 16*mib)); !errors.Is(err, ErrFull) {
		t.Errorf("more than fits: %v", err)
	}
	// Extents leave a little for segments, and for this.
	for i := uint64(0); ; i++ {
		if _, err := tryLayer(p, key(string(rune(i))), randomBytes(i, 100_000)); errors.Is(err, ErrFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if _, giveBack, err = p.Lend(bg, b); err != nil {
		t.Errorf("in a pool full of extents: %v", err)
	} else {
		giveBack()
	}
	ro, err := OpenReadOnly(bg, mustOpenReadOnly(t, path))
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	if _, _, err := ro.Lend(bg, b); !errors.Is(err, ErrReadOnly) {
		t.Errorf("read-only: %v", err)
	}
}

func mustOpenReadOnly(t testing.TB, path string) Region {
	t.Helper()
	r, err := OpenRegionReadOnly(path)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// mustCheckButZero is mustCheck while space is in flight.
func mustCheckButZero(t testing.TB, p *Pool) {
	t.Helper()
	rep, err := p.Check(bg, CheckOptions{Data: true})
	if err != nil || !rep.OK() {
		t.Fatalf("%+v, %v", rep, err)
	}
}

func TestOpenRegionBad(t *testing.T) {
	dir := t.TempDir()
	for location, want := range map[string]error{
		"relative":        ErrInvalid,
		dir:               ErrInvalid,
		"/dev/null":       ErrInvalid,
		dir + "/none":     os.ErrNotExist,
		"phys:0x1,size=1": ErrInvalid,
	} {
		for _, open := range []func(string) (Region, error){OpenRegion, OpenRegionReadOnly} {
			if _, err := open(location); !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", location, err, want)
			}
		}
	}
	// A device that is not there is no place for a file.
	if _, err := OpenOrCreate(bg, "/dev/pmem99", Options{MaxSize: 8 * mib}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	var st unix.Stat_t
	if unix.Stat("/dev/pmem99", &st) == nil {
		t.Error("it was made")
		os.Remove("/dev/pmem99")
	}
}
