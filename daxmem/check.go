package daxmem

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
)

// CheckOptions of Pool.Check.
type CheckOptions struct {
	// Data hashes every extent.
	Data bool

	// Rate is how many bytes per second are read, so that who uses the memory
	// meanwhile does not notice; 0: as fast as it goes. On a read-only pool the
	// metadata of records is read once more at full speed, to find the extents.
	Rate int64

	// Progress, when not nil, is told how many of all bytes have been read.
	Progress func(done, total int64)
}

// Problem is one thing that is not as it must be.
type Problem struct {
	Name            string // what: "layer 3f2a…", "extent 77c0…", "superblock"
	Offset, Size    int64  // where in the region
	Expected, Found string

	// Records are whose bytes these are: of a segment or of copies, the record;
	// of an extent, its layers. DrawOn are the images and chains that need
	// those layers. Both are empty for what is wrong with the books.
	Records, DrawOn []*Record
}

func (p Problem) String() string {
	return fmt.Sprintf("%s at [%d,+%d): want %s, found %s", p.Name, p.Offset, p.Size, p.Expected, p.Found)
}

// CheckReport is the outcome of Check.
type CheckReport struct {
	Records, Extents int   // that were looked at
	Bytes            int64 // that were read
	Problems         []Problem

	// Quarantined records are known to be bad and out of use already.
	Quarantined []*Record
}

// OK reports whether nothing is wrong.
func (r *CheckReport) OK() bool { return len(r.Problems) == 0 && len(r.Quarantined) == 0 }

// Check holds the whole pool against its invariants: superblock, catalog,
// segments with their digests and tables, reference counts, one owner for each
// byte, and with Data each extent against its digest. The pool may be in use
// meanwhile; on a read-only pool, by another process. It repairs nothing. The
// error is for what kept it from checking.
func (p *Pool) Check(ctx context.Context, opts CheckOptions) (*CheckReport, error) {
	if err := p.begin(); err != nil {
		return nil, err
	}
	defer p.end()
	if opts.Rate < 0 {
		return nil, invalidf("check pool in %s: rate of %d bytes per second", p.region.Path(), opts.Rate)
	}
	c := &checker{p: p, opts: opts, rep: &CheckReport{}, pace: pace{rate: opts.Rate}}
	if err := c.run(ctx); err != nil {
		return c.rep, fmt.Errorf("check pool in %s: %w", p.region.Path(), err)
	}
	return c.rep, nil
}

type checker struct {
	p     *Pool
	opts  CheckOptions
	rep   *CheckReport
	pace  pace
	total int64
}

// reader is what segments and data are read through.
func (c *checker) reader(ctx context.Context) io.ReaderAt {
	return pacedReader{c.p.region, func(n int64) error { return c.pace.wait(ctx, n) }, c.progress}
}

// subject is a record as it was when the check began.
type subject struct {
	entry
	rec *record

	users []*Record // images and chains that need this layer
}

// job is an extent to hash, with the layers that have it.
type job struct {
	*extent
	by []subject
}

func (c *checker) bad(name string, off, size int64, want, found string, args ...any) {
	c.badOf(nil, name, off, size, want, found, args...)
}

// badOf is bad for bytes that records have.
func (c *checker) badOf(by []subject, name string, off, size int64, want, found string, args ...any) {
	p := Problem{Name: name, Offset: off, Size: size, Expected: want, Found: fmt.Sprintf(found, args...)}
	drawn := map[int]bool{} // by slot
	for _, s := range by {
		p.Records = append(p.Records, s.public())
		for _, u := range s.users {
			if !drawn[u.Slot] {
				drawn[u.Slot] = true
				p.DrawOn = append(p.DrawOn, u)
			}
		}
	}
	c.rep.Problems = append(c.rep.Problems, p)
}

// public is the record as it was when the check began.
func (s subject) public() *Record {
	return (&record{entry: s.entry, slot: s.rec.slot}).public()
}

func (c *checker) run(ctx context.Context) error {
	if err := c.superblock(); err != nil {
		return err
	}
	var subjects []subject
	var jobs []job
	var err error
	if c.p.ro {
		subjects, jobs, err = c.readOnlyView(ctx)
	} else {
		subjects, jobs, err = c.ownerView()
	}
	if err != nil {
		return err
	}
	for _, s := range subjects {
		c.total += s.size
	}
	if c.opts.Data {
		for _, s := range subjects {
			c.total += s.copiesSpan().size
		}
		for _, j := range jobs {
			c.total += j.size
		}
	}
	for _, s := range subjects {
		if err := c.indexed(s); err != nil {
			return err
		}
		if c.segment(ctx, s); ctx.Err() != nil {
			return ctx.Err()
		}
		if s.word.kind() != KindChain { // it is its record, which ownerView has compared
			c.rep.Records++
		}
	}
	c.rep.Extents = len(jobs)
	if !c.opts.Data {
		return nil
	}
	for _, j := range jobs {
		if err := c.data(ctx, j); err != nil {
			return err
		}
	}
	for _, s := range subjects {
		if s.copiesSpan().size == 0 {
			continue
		}
		if err := c.copies(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) progress(n int64) {
	c.rep.Bytes += n
	if c.opts.Progress != nil {
		c.opts.Progress(c.rep.Bytes, c.total)
	}
}

func (c *checker) superblock() error {
	p := c.p
	sup, own, err := readSuper(p.region)
	if err != nil {
		c.bad("superblock", 0, catalogStart, "a sound superblock", "%v", err)
		return nil
	}
	if sup.uuid != p.sup.uuid {
		c.bad("superblock", 0, catalogStart, fmt.Sprintf("pool %x", p.sup.uuid), "pool %x", sup.uuid)
	}
	p.mu.Lock()
	epoch := p.own.epoch
	p.mu.Unlock()
	if !p.ro && own.epoch != epoch {
		c.bad("superblock", 0, catalogStart, fmt.Sprintf("owner epoch %d", epoch), "%d: the pool has another owner", own.epoch)
	}
	return nil
}

// changed reports whether the record is another one by now, so that what was
// found at its place says nothing about it.
func (c *checker) changed(s subject) bool {
	p := c.p
	if !p.ro {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.slots[s.rec.slot] != s.rec
	}
	var b [8]byte
	_, err := p.region.ReadAt(b[:], slotOffset(s.rec.slot))
	now := word(le.Uint64(b[:]))
	// A takeover changes the fence and nothing else.
	return err == nil && (now.state() != s.word.state() || now.life() != s.word.life())
}

// indexed looks a record up as other kernels do (invariant X). A pool that
// nobody owns has an index that nobody needs.
func (c *checker) indexed(s subject) error {
	if ow, err := loadOwnerWord(c.p.w); err != nil || ow.state() != owned {
		return err
	}
	found, err := c.p.ix.find(s.word.kind(), s.key, func(slot int) (bool, error) { return slot == s.rec.slot, nil })
	switch {
	case errors.Is(err, ErrCorrupt):
		c.bad("index", c.p.sup.index, c.p.sup.indexSize, "a sound index", "%v", err)
	case err != nil:
		return err
	case !found && !c.changed(s):
		c.bad(recordName(s.word.kind(), s.key), slotOffset(s.rec.slot), recordSize, "in the index", "it is not")
	}
	return nil
}

func (c *checker) segment(ctx context.Context, s subject) {
	p := c.p
	if s.word.kind() == KindChain {
		return
	}
	b, err := readSegment(c.reader(ctx), &s.entry, p.sup.dataStart, p.size)
	if ctx.Err() != nil {
		return
	}
	var seg *segment
	if err == nil {
		seg, err = parseSegment(b, s.off, p.size, s.word.kind())
	}
	name, by := recordName(s.word.kind(), s.key), []subject{s}
	switch {
	case err != nil && !c.changed(s):
		c.badOf(by, name, s.off, s.size, fmt.Sprintf("a segment of digest %x", s.digest[:8]), "%v", err)
	case err != nil:
	case s.word.kind() == KindLayer && !slices.EqualFunc(seg.rows, s.rec.exts, func(w row, e *extent) bool { return e.row == w }) && !c.changed(s):
		c.badOf(by, name, s.off, s.size, fmt.Sprintf("extent table of %d rows", len(s.rec.exts)), "%d rows, not the same", len(seg.rows))
	case s.word.kind() == KindImage && !slices.EqualFunc(seg.layers, s.rec.layers, func(k [32]byte, l *record) bool { return l.key == k }) && !c.changed(s):
		c.badOf(by, name, s.off, s.size, fmt.Sprintf("list of %d layers", len(s.rec.layers)), "%d layers, not the same", len(seg.layers))
	}
}

func (c *checker) data(ctx context.Context, j job) error {
	d, err := hashRegion(ctx, c.reader(ctx), j.off, j.size)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil && d == j.digest || c.extentChanged(j) {
		return nil
	}
	found := fmt.Sprintf("%x", d[:8])
	if err != nil {
		found = err.Error()
	}
	first := j.by[0]
	c.badOf(j.by, extentName(j.extent)+" of "+recordName(first.word.kind(), first.key), j.off, j.size, fmt.Sprintf("digest %x", j.digest[:8]), "%s", found)
	return nil
}

// copiesSpan is where a self-contained image's files are; empty for others.
func (s subject) copiesSpan() span {
	if len(s.rec.spans) < 2 {
		return span{}
	}
	return s.rec.spans[1]
}

func (c *checker) copies(ctx context.Context, s subject) error {
	at := s.copiesSpan()
	d, err := hashRegion(ctx, c.reader(ctx), at.off, at.size)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil && d == s.copies || c.changed(s) {
		return nil
	}
	found := fmt.Sprintf("%x", d[:8])
	if err != nil {
		found = err.Error()
	}
	c.badOf([]subject{s}, "files of "+recordName(s.word.kind(), s.key), at.off, at.size, fmt.Sprintf("digest %x", s.copies[:8]), "%s", found)
	return nil
}

// extentChanged reports whether the extent is gone: for the owner it is then
// out of the index, for others all records that named it are other ones.
func (c *checker) extentChanged(j job) bool {
	p := c.p
	if p.ro {
		return !slices.ContainsFunc(j.by, func(s subject) bool { return !c.changed(s) })
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.byOff[j.off] != j.extent
}
