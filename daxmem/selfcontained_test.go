package daxmem

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// selfContained makes the smallest image segment that a pool of self-contained
// images accepts, with copies of all extents of layers behind it.
func selfContained(p *Pool, layers ...string) (size, space int64, copies []Copy, build BuildFunc) {
	size = blockSize + disk.InodeSize
	at := disk.AlignUp(size, blockSize)
	for _, l := range layers {
		p.mu.Lock()
		exts := slices.Clone(p.live[recordKey{KindLayer, key(l)}].exts)
		p.mu.Unlock()
		for _, e := range exts {
			copies = append(copies, Copy{From: e.off, To: at, Size: e.size})
			at += e.space()
		}
	}
	at += blockSize // a gap
	return size, at, copies, func(int64) ([]byte, error) {
		b := make([]byte, size)
		sb := disk.Superblock{
			Version: disk.VersionNative, BlockSize: blockSize, TotalSize: uint64(at), BaseOffset: blockSize,
			BaseSize: uint64(at) - blockSize, InodeCount: 1, RootIno: 1, MetaSize: disk.InodeSize,
		}
		sb.Encode(b)
		return b, nil
	}
}

func addSelfContained(t testing.TB, p *Pool, name string, layers ...string) *Record {
	t.Helper()
	size, space, copies, build := selfContained(p, layers...)
	rec, err := p.PublishSelfContained(bg, key(name), size, space, copies, build, RecordMeta{})
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// An image has its own bytes, wherever else they are, and keeps them when the
// layers go.
func TestSelfContained(t *testing.T) {
	opts := manual
	opts.SelfContained = true
	p, path := newPool(t, 20*mib, opts)
	big, small := randomBytes(1, 3*mib+5), randomBytes(2, 100)
	addLayer(t, p, "a", big, small)
	before := mustStat(t, p)
	one := addSelfContained(t, p, "one", "a", "a") // each file twice
	two := addSelfContained(t, p, "two", "a")
	if again := addSelfContained(t, p, "two", "a"); again.Offset != two.Offset {
		t.Errorf("published twice, at %d and %d", two.Offset, again.Offset)
	}
	s := mustStat(t, p)
	if want := before.Copies + 3*(disk.AlignUp(int64(len(big)), blockSize)+blockSize) + 2*blockSize; s.Copies != want {
		t.Errorf("%d bytes of copies, want %d", s.Copies, want)
	}
	if s.Extents != before.Extents || s.ImageCount != 2 || s.Inflight != 0 {
		t.Errorf("%+v", s)
	}
	if s.Segments != before.Segments+4*blockSize {
		t.Errorf("%d bytes of segments, %d before", s.Segments, before.Segments)
	}
	_, _, copies, _ := selfContained(p, "a", "a")
	for i, c := range copies {
		want := big
		if c.Size == 100 {
			want = small
		}
		if got := content(t, p, Extent{Offset: one.Offset + c.To, Size: c.Size}); !bytes.Equal(got, want) {
			t.Errorf("copy %d at %d is something else", i, c.To)
		}
	}
	mustCheck(t, p)
	// Nothing of an image stands in the way of segments and extents.
	addLayer(t, p, "b", randomBytes(3, 5000))
	if rec, err := p.Layer(key("b")); err != nil || rec.Offset >= one.Offset {
		t.Errorf("segment at %d, the image at %d, %v", rec.Offset, one.Offset, err)
	}
	if err := p.Remove(bg, KindLayer, key("a")); err != nil {
		t.Errorf("an image keeps the layer that it was copied from: %v", err)
	}
	mustClose(t, p)

	p = reopen(t, path, manual)
	if !p.SelfContained() {
		t.Fatal("the pool has forgotten what it is")
	}
	mustCheck(t, p)
	if rec, err := p.Image(key("one")); err != nil || rec.Offset != one.Offset || !rec.Durable {
		t.Errorf("%+v, %v", rec, err)
	}
	used := mustStat(t, p)
	rep, err := p.Collect(bg, func(_ Kind, k [32]byte) bool { return k == key("two") || k == key("b") }, false)
	if err != nil || len(rep.Removed) != 1 || rep.Bytes != used.Copies+used.Segments-mustStat(t, p).Copies-mustStat(t, p).Segments {
		t.Errorf("%+v, %v", rep, err)
	}
	if err := p.Sync(bg); err != nil {
		t.Fatal(err)
	}
	mustCheck(t, p)
}

// A byte of a copy that is not what it was is found by Check, and by an Open
// that has reason to look.
func TestSelfContainedDamage(t *testing.T) {
	m := newMem(16 * mib)
	opts := boot(bootA)
	opts.SelfContained = true
	p, err := Create(bg, m, opts)
	if err != nil {
		t.Fatal(err)
	}
	addLayer(t, p, "a", randomBytes(1, 50000))
	rec := addSelfContained(t, p, "i", "a")
	m.mem[rec.Offset+2*blockSize+7] ^= 1
	rep, err := p.Check(bg, CheckOptions{Data: true})
	if err != nil || len(rep.Problems) != 1 || !strings.HasPrefix(rep.Problems[0].Name, "files of image ") {
		t.Errorf("%+v, %v", rep, err)
	}
	// Not closed, and another boot: what is not durable is proved.
	died := newMem(0)
	died.mem = bytes.Clone(m.mem)
	if p, err = Open(bg, died, boot(bootB)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Image(key("i")); !errors.Is(err, ErrNotFound) {
		t.Errorf("a damaged image is believed: %v", err)
	}
	s := mustStat(t, p)
	if s.QuarantinedCount != 1 || s.Quarantined != mustSpace(rec, 50000) || s.LayerCount != 1 {
		t.Errorf("%+v", s)
	}
	mustZero(t, p)
	// Made again, the damaged one can go.
	addSelfContained(t, p, "i", "a")
	if _, err := p.Collect(bg, func(Kind, [32]byte) bool { return true }, false); err != nil {
		t.Fatal(err)
	}
	if err := p.Sync(bg); err != nil {
		t.Fatal(err)
	}
	mustCheck(t, p)
	// Without its record's checksum nothing but the superblock tells what it takes.
	rec, err = p.Image(key("i"))
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, p)
	died.mem[slotOffset(rec.Slot)+20] ^= 1
	if p, err = Open(bg, died, boot(bootB)); err != nil {
		t.Fatal(err)
	}
	if s := mustStat(t, p); s.QuarantinedCount != 1 || s.Quarantined != mustSpace(rec, 50000) {
		t.Errorf("%+v", s)
	}
	mustZero(t, p)
}

// mustSpace is what selfContained takes for one file.
func mustSpace(rec *Record, file int64) int64 {
	return disk.AlignUp(rec.Size, blockSize) + disk.AlignUp(file, blockSize) + blockSize
}

func TestSelfContainedBad(t *testing.T) {
	opts := manual
	opts.SelfContained = true
	p, _ := newPool(t, 16*mib, opts)
	addLayer(t, p, "a", randomBytes(1, 50000))
	shared, _ := newPool(t, 16*mib, manual)
	addLayer(t, shared, "a", randomBytes(1, 50000))
	before := mustStat(t, p)
	for name, c := range map[string]struct {
		pool   *Pool
		ctx    context.Context
		change func(size, space *int64, copies []Copy, build *BuildFunc)
		want   error
	}{
		"shared pool":    {pool: shared, want: ErrInvalid},
		"no segment":     {change: func(size, _ *int64, _ []Copy, _ *BuildFunc) { *size = 0 }, want: ErrInvalid},
		"half a block":   {change: func(_, space *int64, _ []Copy, _ *BuildFunc) { *space += 100 }, want: ErrInvalid},
		"other space":    {change: func(_, space *int64, _ []Copy, _ *BuildFunc) { *space += blockSize }, want: ErrInvalid},
		"too much space": {change: func(_, space *int64, _ []Copy, _ *BuildFunc) { *space = 64 * mib }, want: ErrFull},
		"in the segment": {change: func(_, _ *int64, c []Copy, _ *BuildFunc) { c[0].To = blockSize }, want: ErrInvalid},
		"no block":       {change: func(_, _ *int64, c []Copy, _ *BuildFunc) { c[0].To++ }, want: ErrInvalid},
		"too long":       {change: func(_, _ *int64, c []Copy, _ *BuildFunc) { c[0].Size += 8192 }, want: ErrInvalid},
		"from outside":   {change: func(_, _ *int64, c []Copy, _ *BuildFunc) { c[0].From = 16*mib - 4096 }, want: ErrInvalid},
		"no bytes":       {change: func(_, _ *int64, _ []Copy, b *BuildFunc) { *b = func(int64) ([]byte, error) { return nil, nil } }, want: ErrInvalid},
		"layers": {change: func(size, _ *int64, _ []Copy, b *BuildFunc) {
			*b = func(off int64) ([]byte, error) {
				return buildSegment(off, p.size, nil, [][32]byte{key("a")}, true, *size), nil
			}
			*size += disk.LayerRefSize
		}, want: ErrInvalid},
		"interrupted": {ctx: cancelled(), want: context.Canceled},
	} {
		if c.pool == nil {
			c.pool = p
		}
		if c.ctx == nil {
			c.ctx = bg
		}
		size, space, copies, build := selfContained(c.pool, "a")
		if c.change != nil {
			c.change(&size, &space, copies, &build)
		}
		if _, err := c.pool.PublishSelfContained(c.ctx, key("i"), size, space, copies, build, RecordMeta{}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if s := mustStat(t, p); s != before {
		t.Errorf("left behind: %+v, before %+v", s, before)
	}
	mustCheck(t, p)
	if _, err := tryImage(p, key("j")); !errors.Is(err, ErrInvalid) {
		t.Errorf("image of no layers: %v", err)
	}
	// The record of such an image, in a pool that has none.
	s, space, copies, build := selfContained(p, "a")
	if _, err := p.PublishSelfContained(bg, key("i"), s, space, copies, build, RecordMeta{}); err != nil {
		t.Fatal(err)
	}
	p.sup.incompat = 0
	if _, err := p.region.WriteAt(p.sup.encode(), 0); err != nil {
		t.Fatal(err)
	}
	ro, err := OpenReadOnly(bg, mustOpenReadOnly(t, p.region.Path()))
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	if st := mustStat(t, ro); st.QuarantinedCount != 1 || st.ImageCount != 0 {
		t.Errorf("%+v", st)
	}
}

func cancelled() context.Context {
	ctx, cancel := context.WithCancel(bg)
	cancel()
	return ctx
}
