package kills

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/integration/lab/sweep"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// inspect opens a pool as `daxfsctl pool` does.
func inspect(t *testing.T, path string) *daxmem.Pool {
	t.Helper()
	region, err := daxmem.OpenRegionReadOnly(path)
	if err != nil {
		t.Fatal(err)
	}
	p, err := daxmem.OpenReadOnly(context.Background(), region)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() }) // once more is nothing
	return p
}

// mustBeSound is `daxfsctl pool check --data`. still says that nobody writes:
// then the inodes of every record are looked at too.
func mustBeSound(t *testing.T, path string, still bool) (bytes int64) {
	t.Helper()
	p := inspect(t, path)
	defer p.Close()
	rep, err := p.Check(context.Background(), daxmem.CheckOptions{Data: true})
	if err != nil {
		t.Fatalf("check %s: %v", path, err)
	}
	for _, pr := range rep.Problems {
		t.Errorf("check %s: %v", path, pr)
	}
	for _, r := range rep.Quarantined {
		t.Errorf("check %s: %s is in quarantine: %s", path, r.Name(), r.Quarantined)
	}
	if still {
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
	}
	if t.Failed() {
		t.FailNow()
	}
	return rep.Bytes
}

// mustBeEmpty says that nothing is in a pool.
func mustBeEmpty(t *testing.T, path string) {
	t.Helper()
	p := inspect(t, path)
	defer p.Close()
	st, err := p.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if used := st.Size - st.Superblock - st.Catalog - st.Free; used != 0 || st.LayerCount+st.ImageCount+st.ChainCount+st.QuarantinedCount != 0 {
		t.Errorf("%d bytes are in use in %s after the last release: %+v", used, path, st)
	}
}

// seatsOf lists the kernels at a pool.
func seatsOf(t *testing.T, path string) []*daxmem.Seat {
	t.Helper()
	p := inspect(t, path)
	defer p.Close()
	seats, err := p.Seats()
	if err != nil {
		t.Fatal(err)
	}
	return seats
}

// evict is `daxfsctl lease evict`.
func evict(t *testing.T, path string, s *daxmem.Seat) {
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

// nothingMounted says that no mount and no loop device is left of the files in
// a directory.
func nothingMounted(t *testing.T, dir string) {
	t.Helper()
	points, err := sweep.MountsBelow(dir)
	if err != nil {
		t.Fatal(err)
	}
	if loops := sweep.LoopsOf(dir); len(points)+len(loops) > 0 {
		t.Errorf("after the last release: mounts %q, loop devices %q", points, loops)
	}
}

// holderOf is what the seat of a daemon says.
func holderOf(t *testing.T, root string) string {
	t.Helper()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return daxmem.HolderName(host + ":" + filepath.Clean(root))
}
