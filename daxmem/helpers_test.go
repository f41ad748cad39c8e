package daxmem

import (
	"bytes"
	"context"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/log"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

const mib = 1 << 20

var bg = context.Background()

// buildSegment makes the smallest segment that the pool accepts.
func buildSegment(off, regionSize int64, exts []Extent, layers [][32]byte, image bool, size int64) []byte {
	b := make([]byte, size)
	total := uint64(regionSize - off)
	sb := disk.Superblock{
		Version: disk.VersionNative, BlockSize: blockSize, TotalSize: total, BaseOffset: blockSize,
		BaseSize: total - blockSize, InodeCount: 1, RootIno: 1, DataOffset: uint64(size) - blockSize,
		MetaSize: disk.InodeSize, ExtentCount: uint64(len(exts)), LayerCount: uint64(len(layers)),
	}
	if !image {
		sb.Incompat = disk.IncompatLayer
	}
	at := uint64(disk.InodeSize)
	sb.ExtentOffset = at
	exts = slices.SortedFunc(slices.Values(exts), func(a, b Extent) int { return bytes.Compare(a.Digest[:], b.Digest[:]) })
	for _, e := range exts {
		x := disk.Extent{Digest: e.Digest, Size: uint64(e.Size), Offset: uint64(e.Offset-off) - blockSize}
		x.Encode(b[blockSize+at:])
		at += disk.ExtentSize
	}
	sb.LayerOffset = at
	for _, l := range layers {
		copy(b[blockSize+at:], l[:])
		at += disk.LayerRefSize
	}
	sb.MetaSize = at
	sb.Encode(b)
	return b
}

func segmentSize(exts, layers int) int64 {
	return int64(blockSize + disk.InodeSize + exts*disk.ExtentSize + layers*disk.LayerRefSize)
}

func key(s string) [32]byte { return hashBytes([]byte(s)) }

func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	c := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24), 1})
	c.Read(b)
	return b
}

// distinct is the extents of a layer as its table lists them.
func distinct(exts []Extent) []Extent {
	m := map[[32]byte]Extent{}
	for _, e := range exts {
		if e.Size > 0 {
			m[e.Digest] = e
		}
	}
	return slices.Collect(maps.Values(m))
}

func putAll(imp *Import, files [][]byte) ([]Extent, error) {
	var exts []Extent
	for _, f := range files {
		e, err := imp.Put(bg, bytes.NewReader(f), int64(len(f)))
		if err != nil {
			return nil, err
		}
		exts = append(exts, e)
	}
	return exts, nil
}

func publishExtents(imp *Import, k [32]byte, exts []Extent) (*Record, error) {
	exts = distinct(exts)
	size := segmentSize(len(exts), 0)
	return imp.PublishLayer(bg, k, size, func(off int64) ([]byte, error) {
		return buildSegment(off, imp.p.size, exts, nil, false, size), nil
	}, RecordMeta{Entries: uint64(len(exts))})
}

// tryLayer imports files as a layer; after an error nothing of it is left.
func tryLayer(p *Pool, k [32]byte, files ...[]byte) (*Record, error) {
	imp, err := p.NewImport(bg)
	if err != nil {
		return nil, err
	}
	defer imp.Abort()
	exts, err := putAll(imp, files)
	if err != nil {
		return nil, err
	}
	return publishExtents(imp, k, exts)
}

func tryImage(p *Pool, k [32]byte, layers ...[32]byte) (*Record, error) {
	size := segmentSize(0, len(layers))
	return p.PublishImage(bg, k, layers, size, func(off int64) ([]byte, error) {
		return buildSegment(off, p.size, nil, layers, true, size), nil
	}, RecordMeta{})
}

func addLayer(t testing.TB, p *Pool, name string, files ...[]byte) *Record {
	t.Helper()
	rec, err := tryLayer(p, key(name), files...)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

func addImage(t testing.TB, p *Pool, name string, layers ...string) *Record {
	t.Helper()
	var keys [][32]byte
	for _, l := range layers {
		keys = append(keys, key(l))
	}
	rec, err := tryImage(p, key(name), keys...)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// manual is for tests that decide when to sync.
var manual = Options{SyncDelay: -1}

func newPool(t testing.TB, size int64, opts Options) (*Pool, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pool")
	r, err := CreateFile(path, size)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Create(bg, r, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p, path
}

func reopen(t testing.TB, path string, opts Options) *Pool {
	t.Helper()
	r, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Open(bg, r, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func mustClose(t testing.TB, p *Pool) {
	t.Helper()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

func mustStat(t testing.TB, p *Pool) Stat {
	t.Helper()
	s, err := p.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if sum := s.Superblock + s.Catalog + s.Segments + s.Extents + s.Copies + s.Quarantined + s.Inflight + s.Retired + s.Lost + s.Free; sum != s.Size {
		t.Fatalf("owners add up to %d, want %d", sum, s.Size)
	}
	return s
}

// mustCheck runs Check with data and verifies invariant Z, which Check leaves
// out because it would have to read all free space.
func mustCheck(t testing.TB, p *Pool) {
	t.Helper()
	rep, err := p.Check(bg, CheckOptions{Data: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, pr := range rep.Problems {
		t.Errorf("check: %v", pr)
	}
	for _, r := range rep.Quarantined {
		t.Errorf("check: quarantined %s: %s", r.Name(), r.Quarantined)
	}
	mustZero(t, p)
	if t.Failed() {
		t.FailNow()
	}
}

func mustZero(t testing.TB, p *Pool) {
	t.Helper()
	for _, o := range p.Owners() {
		if o.Kind != OwnFree {
			continue
		}
		b := make([]byte, min(o.Size, mib))
		for at := o.Offset; at < o.Offset+o.Size; at += int64(len(b)) {
			n := min(int64(len(b)), o.Offset+o.Size-at)
			if _, err := p.region.ReadAt(b[:n], at); err != nil {
				t.Fatal(err)
			}
			if !isZero(b[:n]) {
				t.Fatalf("free space [%d,+%d) is not zero", at, n)
			}
		}
	}
}

func content(t testing.TB, p *Pool, e Extent) []byte {
	t.Helper()
	b := make([]byte, e.Size)
	if _, err := p.region.ReadAt(b, e.Offset); err != nil {
		t.Fatal(err)
	}
	return b
}

// eventually polls for what a background goroutine does.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 500 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("timed out waiting for %s", what)
}

// TestMain keeps the log quiet: crash tests make thousands of damaged pools.
func TestMain(m *testing.M) {
	if err := log.SetLevel("error"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}
