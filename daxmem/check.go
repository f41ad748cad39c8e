package daxmem

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// CheckOptions of Pool.Check.
type CheckOptions struct {
	// Data hashes every extent.
	Data bool

	// Progress, when not nil, is told how many of all bytes have been read.
	Progress func(done, total int64)
}

// Problem is one thing that is not as it must be.
type Problem struct {
	Name            string // what: "layer 3f2a…", "extent 77c0…", "superblock"
	Offset, Size    int64  // where in the region
	Expected, Found string
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
	c := &checker{p: p, opts: opts, rep: &CheckReport{}}
	if err := c.run(ctx); err != nil {
		return c.rep, fmt.Errorf("check pool in %s: %w", p.region.Path(), err)
	}
	return c.rep, nil
}

type checker struct {
	p     *Pool
	opts  CheckOptions
	rep   *CheckReport
	total int64
}

// subject is a record as it was when the check began.
type subject struct {
	entry
	rec *record
}

// job is an extent to hash, with one record that uses it.
type job struct {
	*extent
	by subject
}

func (c *checker) bad(name string, off, size int64, want, found string, args ...any) {
	c.rep.Problems = append(c.rep.Problems, Problem{name, off, size, want, fmt.Sprintf(found, args...)})
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
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.indexed(s); err != nil {
			return err
		}
		c.segment(s)
		if s.word.kind() != KindChain { // it is its record, which ownerView has compared
			c.rep.Records++
		}
		c.progress(s.size)
	}
	c.rep.Extents = len(jobs)
	if !c.opts.Data {
		return nil
	}
	for _, j := range jobs {
		if err := c.data(ctx, j); err != nil {
			return err
		}
		c.progress(j.size)
	}
	for _, s := range subjects {
		if s.copiesSpan().size == 0 {
			continue
		}
		if err := c.copies(ctx, s); err != nil {
			return err
		}
		c.progress(s.copiesSpan().size)
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
	return err == nil && word(le.Uint64(b[:])) != s.word
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

func (c *checker) segment(s subject) {
	p := c.p
	if s.word.kind() == KindChain {
		return
	}
	b, err := readSegment(p.region, &s.entry, p.sup.dataStart, p.size)
	var seg *segment
	if err == nil {
		seg, err = parseSegment(b, s.off, p.size, s.word.kind())
	}
	name := recordName(s.word.kind(), s.key)
	switch {
	case err != nil && !c.changed(s):
		c.bad(name, s.off, s.size, fmt.Sprintf("a segment of digest %x", s.digest[:8]), "%v", err)
	case err != nil:
	case s.word.kind() == KindLayer && !slices.EqualFunc(seg.rows, s.rec.exts, func(w row, e *extent) bool { return e.row == w }) && !c.changed(s):
		c.bad(name, s.off, s.size, fmt.Sprintf("extent table of %d rows", len(s.rec.exts)), "%d rows, not the same", len(seg.rows))
	case s.word.kind() == KindImage && !slices.EqualFunc(seg.layers, s.rec.layers, func(k [32]byte, l *record) bool { return l.key == k }) && !c.changed(s):
		c.bad(name, s.off, s.size, fmt.Sprintf("list of %d layers", len(s.rec.layers)), "%d layers, not the same", len(seg.layers))
	}
}

func (c *checker) data(ctx context.Context, j job) error {
	d, err := hashRegion(ctx, c.p.region, j.off, j.size)
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
	c.bad(extentName(j.extent)+" of "+recordName(j.by.word.kind(), j.by.key), j.off, j.size, fmt.Sprintf("digest %x", j.digest[:8]), "%s", found)
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
	d, err := hashRegion(ctx, c.p.region, at.off, at.size)
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
	c.bad("files of "+recordName(s.word.kind(), s.key), at.off, at.size, fmt.Sprintf("digest %x", s.copies[:8]), "%s", found)
	return nil
}

// extentChanged reports whether the extent is gone: for the owner it is then
// out of the index, for others the record that named it is another one.
func (c *checker) extentChanged(j job) bool {
	p := c.p
	if p.ro {
		return c.changed(j.by)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.byOff[j.off] != j.extent
}
