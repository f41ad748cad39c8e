// Package poolcheck looks at a pool from outside, as daxfsctl does, for tests
// that end its owner and its readers at any moment.
package poolcheck

import (
	"context"
	"io"
	"testing"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// look opens a pool for inspection and closes it when f has returned.
func look(t testing.TB, path string, f func(p *daxmem.Pool)) {
	t.Helper()
	region, err := daxmem.OpenRegionReadOnly(path)
	if err != nil {
		t.Fatal(err)
	}
	p, err := daxmem.OpenReadOnly(context.Background(), region)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	f(p)
}

// Sound fails the test unless the pool is as `daxfsctl pool check --data` wants
// it. still says that nobody writes: then the inodes of every record are looked
// at too, which takes it that they stay. It returns how many bytes were read.
func Sound(t testing.TB, path string, still bool) (bytes int64) {
	t.Helper()
	look(t, path, func(p *daxmem.Pool) {
		rep, err := p.Check(context.Background(), daxmem.CheckOptions{Data: true})
		if err != nil {
			t.Fatalf("check %s: %v", path, err)
		}
		bytes = rep.Bytes
		for _, pr := range rep.Problems {
			t.Errorf("check %s: %v", path, pr)
		}
		for _, r := range rep.Quarantined {
			t.Errorf("check %s: %s is in quarantine: %s", path, r.Name(), r.Quarantined)
		}
		if !still {
			return
		}
		for _, rec := range p.Records() {
			if rec.Kind == daxmem.KindChain {
				continue
			}
			size := p.Size() - rec.Offset
			img, err := mkdaxfs.Open(io.NewSectionReader(p.Region(), rec.Offset, size), size)
			if err == nil {
				_, err = mkdaxfs.Check(img, rec.Offset)
			}
			if err != nil {
				t.Errorf("check %s: %s: %v", path, rec.Name(), err)
			}
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return bytes
}

// Empty fails the test if the pool has anything in it.
func Empty(t testing.TB, path string) {
	t.Helper()
	look(t, path, func(p *daxmem.Pool) {
		st, err := p.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if used := st.Size - st.Superblock - st.Catalog - st.Free; used != 0 || st.LayerCount+st.ImageCount+st.ChainCount+st.QuarantinedCount != 0 {
			t.Errorf("%d bytes are in use in %s after the last release: %+v", used, path, st)
		}
	})
}

// Seats lists the kernels at a pool.
func Seats(t testing.TB, path string) (seats []*daxmem.Seat) {
	t.Helper()
	look(t, path, func(p *daxmem.Pool) {
		var err error
		if seats, err = p.Seats(); err != nil {
			t.Fatal(err)
		}
	})
	return seats
}

// Evict is `daxfsctl lease evict`.
func Evict(t testing.TB, path string, s *daxmem.Seat) {
	t.Helper()
	region, err := daxmem.OpenRegionShared(path)
	if err != nil {
		t.Fatal(err)
	}
	defer region.Close()
	if err := daxmem.Evict(region, s.Number, s.Generation); err != nil {
		t.Fatal(err)
	}
}
