package daxmem

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// fakeMapped is a region over a file that stands for a device.
func fakeMapped(t testing.TB, size, unit int64, ro bool) *mappedRegion {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "device"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	r := &mappedRegion{kind: KindDevdax, path: f.Name(), ro: ro, f: f, size: size, unit: unit}
	if err := r.mapAll(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() }) // most tests did
	return r
}

// A device that disappears is an error, in the region and in its windows.
func TestMappedFault(t *testing.T) {
	r := fakeMapped(t, 4*mib, blockSize, false)
	w, err := r.Window(mib, 2*mib, true)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := r.WriteAt([]byte("there"), 3*mib); err != nil {
		t.Fatal(err)
	}
	if err := r.f.Truncate(2 * mib); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 10)
	if _, err := r.ReadAt(b, 3*mib); !errors.Is(err, ErrFault) {
		t.Errorf("read: %v", err)
	}
	if _, err := r.WriteAt(b, 3*mib); !errors.Is(err, ErrFault) {
		t.Errorf("write: %v", err)
	}
	if err := r.Punch(mib, 2*mib); !errors.Is(err, ErrFault) {
		t.Errorf("punch: %v", err)
	}
	if _, err := w.Load(2*mib + 8); !errors.Is(err, ErrFault) {
		t.Errorf("window: %v", err)
	}
	if _, err := r.WriteAt(b, mib); err != nil {
		t.Errorf("what is still there: %v", err)
	}
}

// A window is exactly what was asked for, in whatever units the memory can be
// mapped, and writable where the region is not.
func TestMappedWindow(t *testing.T) {
	for _, unit := range []int64{blockSize, 2 * mib, 0} {
		r := fakeMapped(t, 8*mib, unit, true)
		const off, n = 3*mib - blockSize, 2 * blockSize
		w, err := r.Window(off, n, true)
		if err != nil {
			t.Fatalf("unit %d: %v", unit, err)
		}
		if _, err := r.WriteAt([]byte("x"), off); !errors.Is(err, os.ErrPermission) {
			t.Errorf("unit %d: write to the region: %v", unit, err)
		}
		if err := w.Store(off+8, 0x1122334455667788); err != nil {
			t.Fatal(err)
		}
		if ok, err := w.CompareAndSwap(off+8, 0x1122334455667788, 42); !ok || err != nil {
			t.Errorf("unit %d: swap: %v, %v", unit, ok, err)
		}
		if ok, err := w.CompareAndSwap(off+8, 1, 2); ok || err != nil {
			t.Errorf("unit %d: swap of another word: %v, %v", unit, ok, err)
		}
		if v, err := w.Load(off + 8); v != 42 || err != nil || !w.Atomic() {
			t.Errorf("unit %d: %d, %v", unit, v, err)
		}
		if _, err := w.WriteAt([]byte("the end."), off+n-8); err != nil {
			t.Error(err)
		}
		b := make([]byte, n)
		if _, err := r.ReadAt(b, off); err != nil || b[8] != 42 || string(b[n-8:]) != "the end." {
			t.Errorf("unit %d: the region has %q, %v", unit, b[n-8:], err)
		}
		if _, err := w.ReadAt(b, off); err != nil || b[8] != 42 {
			t.Errorf("unit %d: read: %v", unit, err)
		}
		for _, at := range []int64{off - 8, off + n} {
			_, lerr := w.Load(at)
			_, cerr := w.CompareAndSwap(at, 0, 1)
			_, rerr := w.ReadAt(b[:8], at)
			_, werr := w.WriteAt(b[:8], at)
			for _, err := range []error{lerr, cerr, rerr, werr, w.Store(at, 1)} {
				if !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("unit %d: outside, at %d: %v", unit, at, err)
				}
			}
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		for _, bad := range [][2]int64{{-blockSize, blockSize}, {8*mib - blockSize, 2 * blockSize}, {0, 0}, {1 << 62, 1 << 62}} {
			if _, err := r.Window(bad[0], bad[1], false); !errors.Is(err, ErrInvalid) {
				t.Errorf("unit %d: window %v: %v", unit, bad, err)
			}
		}
	}
}

// A pool works in all units, with a reader beside its owner.
func TestMappedPool(t *testing.T) {
	for _, unit := range []int64{2 * mib, 0} {
		r := fakeMapped(t, 16*mib, unit, false)
		p, err := Create(bg, r, manual)
		if err != nil {
			t.Fatal(err)
		}
		content := randomBytes(1, 3*mib)
		addLayer(t, p, "a", content)
		f, err := os.OpenFile(r.f.Name(), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		ro := &mappedRegion{kind: KindDevdax, path: f.Name(), ro: true, f: f, size: r.size, unit: unit}
		if err := ro.mapAll(); err != nil {
			t.Fatal(err)
		}
		reader, err := Attach(bg, ro, Options{bootID: func() ([16]byte, error) { return [16]byte{1}, nil }})
		if err != nil {
			t.Fatal(err)
		}
		if rec, err := reader.Layer(key("a")); err != nil || rec.Key != key("a") {
			t.Errorf("unit %d: lookup: %v, %v", unit, rec, err)
		}
		if err := reader.Close(); err != nil {
			t.Error(err)
		}
		mustCheck(t, p)
		mustClose(t, p)
	}
}

// Memory that is no whole number of blocks is refused, and its file closed.
func TestMappedSize(t *testing.T) {
	for _, size := range []int64{0, 100, blockSize + 1} {
		f, err := os.Create(filepath.Join(t.TempDir(), "device"))
		if err != nil {
			t.Fatal(err)
		}
		r := &mappedRegion{path: f.Name(), f: f, size: size, unit: blockSize}
		if err := r.mapAll(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%d bytes: %v", size, err)
		}
		if err := f.Close(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%d bytes: the file is open: %v", size, err)
		}
	}
}

// Sync flushes what was written since the last one, and all of the windows.
func TestPersistentSync(t *testing.T) {
	m := fakeMapped(t, 8*mib, blockSize, false)
	deep := filepath.Join(t.TempDir(), "deep_flush")
	if err := os.WriteFile(deep, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var flushed int
	var contents []byte
	r := &persistentRegion{mappedRegion: m, deepFlush: deep, flush: func(b []byte) {
		flushed += len(b)
		contents = append(contents, b...)
	}}
	w, err := r.Window(0, blockSize, true)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	sync := func(want int) {
		t.Helper()
		flushed, contents = 0, nil
		if err := r.Sync(); err != nil || flushed != want {
			t.Errorf("flushed %d bytes, want %d, %v", flushed, want, err)
		}
	}
	sync(blockSize)
	if b, _ := os.ReadFile(deep); string(b) != "1" {
		t.Errorf("deep flush: %q", b)
	}
	want := bytes.Repeat([]byte("written "), 1000)
	for _, off := range []int64{mib, mib + 8000} { // one behind the other
		if _, err := r.WriteAt(want, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Punch(4*mib, mib); err != nil {
		t.Fatal(err)
	}
	sync(dirtyUnit + mib + blockSize)
	if !bytes.HasPrefix(contents, append(want, want...)) {
		t.Error("other bytes were flushed")
	}
	sync(blockSize)
	// What failed is flushed the next time.
	if _, err := r.WriteAt(want, 8*mib-8000); err != nil {
		t.Fatal(err)
	}
	r.deepFlush = filepath.Join(t.TempDir(), "none", "deep_flush")
	if err := r.Sync(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	r.deepFlush = ""
	sync(dirtyUnit + blockSize)
	if !bytes.HasSuffix(contents[:dirtyUnit], want) {
		t.Error("other bytes were flushed after a failure")
	}
}

// Files of a layer lie high and its index low. However many there are, what
// lies between is not flushed.
func TestPersistentSyncScattered(t *testing.T) {
	const size, files = 64 * mib, 10_000
	flushed := 0
	r := &persistentRegion{mappedRegion: fakeMapped(t, size, blockSize, false), flush: func(b []byte) { flushed += len(b) }}
	for i := range int64(files) {
		if _, err := r.WriteAt([]byte("file"), size-(i%1000+1)*blockSize); err != nil {
			t.Fatal(err)
		}
		if _, err := r.WriteAt([]byte("index"), i%10*blockSize); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Sync(); err != nil {
		t.Fatal(err)
	}
	if want := 1000*blockSize + 10*blockSize + 2*dirtyUnit; flushed > want {
		t.Errorf("flushed %d bytes, want at most %d", flushed, want)
	}
}

// Flushing changes nothing, whatever the alignment.
func TestFlushCache(t *testing.T) {
	if !canFlush {
		t.Skip("not on this processor")
	}
	b := randomBytes(1, 10000)
	want := bytes.Clone(b)
	for _, r := range [][2]int{{0, 0}, {0, 1}, {63, 65}, {64, 128}, {1, 10000}, {0, 10000}, {9999, 10000}} {
		flushCache(b[r[0]:r[1]])
	}
	flushCache(nil)
	if !bytes.Equal(b, want) {
		t.Error("bytes changed")
	}
}
