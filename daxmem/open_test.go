package daxmem

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
)

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
