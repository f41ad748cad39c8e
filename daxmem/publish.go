package daxmem

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// BuildFunc makes the bytes of a segment that will lie at off in the region.
// It returns exactly the size that was asked for, and does not keep the slice.
type BuildFunc func(off int64) ([]byte, error)

// draft is a segment on its way into the catalog: space and slot are taken, the
// bytes are in place, nothing is visible.
type draft struct {
	slot   int
	off    int64
	size   int64
	digest [32]byte
	copies [32]byte // digest
	seg    *segment
}

// prepare makes a draft of a segment that must end at or below limit.
func (p *Pool) prepare(ctx context.Context, kind Kind, size, limit int64, build BuildFunc) (*draft, error) {
	return p.draft(ctx, kind, size, size, func() (int64, bool) { return p.allocSegment(size, limit) }, build)
}

// draft makes a draft of a segment in space bytes that place finds.
func (p *Pool) draft(ctx context.Context, kind Kind, size, space int64, place func() (int64, bool), build BuildFunc) (*draft, error) {
	slot, err := p.takeSlot(ctx)
	if err != nil {
		return nil, err
	}
	d := &draft{slot: slot, size: size}
	d.off, err = p.allocate(ctx, "segment", space, place)
	if err != nil {
		p.putSlot(slot)
		return nil, err
	}
	if err := p.fill(d, kind, build); err != nil {
		p.discard(ctx, d)
		return nil, err
	}
	return d, nil
}

func (p *Pool) fill(d *draft, kind Kind, build BuildFunc) error {
	b, err := build(d.off)
	if err != nil {
		return fmt.Errorf("build segment: %w", err)
	}
	if int64(len(b)) != d.size {
		return invalidf("segment of %d bytes, want %d", len(b), d.size)
	}
	if d.seg, err = parseSegment(b, d.off, p.size, kind); err != nil {
		return err
	}
	d.digest = hashBytes(b)
	if err := p.mayWrite(); err != nil {
		return err
	}
	if err := writeSparse(p.region, b, d.off); err != nil {
		return p.writeFailed("segment", d.size, err)
	}
	return nil
}

func (p *Pool) discard(ctx context.Context, d *draft) {
	p.putSlot(d.slot)
	p.giveBack(ctx, d.off)
}

// takeSlot reserves a FREE record; when there is none, room is made.
func (p *Pool) takeSlot(ctx context.Context) (int, error) {
	for {
		p.mu.Lock()
		if n := len(p.avail); n > 0 {
			slot := p.avail[n-1]
			p.avail = p.avail[:n-1]
			p.mu.Unlock()
			return slot, nil
		}
		full := p.full("catalog", recordSize, nil)
		p.mu.Unlock()
		if err := p.makeRoom(ctx, full); err != nil {
			return 0, err
		}
	}
}

func (p *Pool) putSlot(slot int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.avail = append(p.avail, slot)
}

// commit makes a draft visible: payload first, then the state word. Caller
// holds p.mu and has checked everything.
func (p *Pool) commit(d *draft, r *record, kind Kind, key [32]byte, meta RecordMeta) error {
	r.slot = d.slot
	r.entry = entry{
		word: makeWord(stateWriting, kind, p.words[d.slot].generation()+1, p.ow.fence()),
		off:  d.off, size: d.size, key: key, digest: d.digest,
		entries: meta.Entries, data: meta.DataBytes, created: time.Now().UnixNano(), seq: p.seq + 1,
		copies: d.copies,
	}
	r.spans = d.seg.spans(d.off, d.size)
	if err := p.store(r); err != nil {
		return err
	}
	delete(p.inflight, d.off)
	p.enter(r)
	p.pending[r] = struct{}{}
	return nil
}

// store writes a record and makes it LIVE. After an error it is not LIVE, or
// the pool has failed.
func (p *Pool) store(r *record) error {
	step(stepSegmentWritten)
	if err := p.swapWord(r, r.word); err != nil { // from FREE
		return err
	}
	step(stepRecordTaken)
	tried := false
	_, err := p.w.WriteAt(r.encode()[8:], slotOffset(r.slot)+8)
	if err == nil {
		step(stepPayloadWritten)
		err = p.ix.insert(p.ow.copy(), r.slot, r.word.kind(), r.key)
	}
	if err == nil {
		step(stepRecordIndexed)
		tried = true
		err = p.writeWord(r, stateLive)
	}
	switch {
	case err == nil:
		step(stepRecordLive)
		return nil
	case isNoSpace(err):
		err = p.full("catalog record", recordSize, err)
	default:
		err = fmt.Errorf("write catalog record %d: %w", r.slot, err)
	}
	if errors.Is(p.mayWrite(), ErrFenced) {
		return err // what is there belongs to another owner
	}
	// The slot is cleared as well as it can be. WRITING names nothing.
	cerr := errors.Join(p.ix.remove(p.ow.copy(), r.slot, r.word.kind(), r.key), p.clearSlot(r))
	if cerr != nil && tried {
		// It may be LIVE on the medium for all we know: what it names must not
		// be reused before the pool has been loaded anew. Extents stay in
		// limbo, which a failed pool never empties.
		p.fail(cerr)
		p.lost = append(p.lost, r.spans...)
		delete(p.inflight, r.off)
		for _, e := range r.exts {
			e.published = true
		}
	}
	return err
}

// PublishLayer puts the layer index into the catalog under key, and its extents
// with it: those in the segment's extent table, all of which the import must
// hold; the others are given up. The segment lies below its extents. When a
// layer with that key is there already, that one is returned and everything is
// given up. Success ends the import. After an error the import still holds what
// it held.
//
// Preconditions: no Put of this import is running.
func (imp *Import) PublishLayer(ctx context.Context, key [32]byte, size int64, build BuildFunc, meta RecordMeta) (*Record, error) {
	p := imp.p
	if err := p.beginWrite(); err != nil {
		return nil, err
	}
	defer p.end()
	rec, err := imp.publish(ctx, key, size, build, meta)
	if err != nil {
		return nil, fmt.Errorf("publish %s: %w", recordName(KindLayer, key), err)
	}
	return rec, p.published(ctx, rec)
}

func (imp *Import) publish(ctx context.Context, key [32]byte, size int64, build BuildFunc, meta RecordMeta) (*Record, error) {
	p := imp.p
	p.mu.Lock()
	if imp.done {
		p.mu.Unlock()
		return nil, ErrClosed
	}
	there := p.live[recordKey{KindLayer, key}]
	limit := p.size
	for _, e := range imp.held {
		limit = min(limit, e.off)
	}
	p.mu.Unlock()

	var d *draft
	var err error
	if there == nil {
		if d, err = p.prepare(ctx, KindLayer, size, limit, build); err != nil {
			return nil, err
		}
	}
	p.mu.Lock()
	rec, fresh, err := imp.publishLocked(d, key, meta)
	p.mu.Unlock()
	if d != nil && (err != nil || rec.Offset != d.off) {
		p.discard(ctx, d)
	}
	p.release(ctx, fresh)
	return rec, err
}

func (imp *Import) publishLocked(d *draft, key [32]byte, meta RecordMeta) (*Record, []span, error) {
	p := imp.p
	if imp.done {
		return nil, nil, ErrClosed
	}
	if there := p.live[recordKey{KindLayer, key}]; there != nil {
		rec := there.public()
		return rec, imp.finish(nil), nil
	}
	if d == nil { // it was there a moment ago
		return nil, nil, fmt.Errorf("removed meanwhile: %w", ErrNotFound)
	}
	rec := &record{}
	used := make(map[[32]byte]bool, len(d.seg.rows))
	for _, w := range d.seg.rows {
		e := imp.held[w.digest]
		if e == nil || e.row != w {
			return nil, nil, invalidf("extent %x at [%d,+%d) is not one of the import's", w.digest[:8], w.off, w.size)
		}
		used[w.digest] = true
		rec.exts = append(rec.exts, e)
	}
	if err := p.commit(d, rec, KindLayer, key, meta); err != nil {
		return nil, nil, err
	}
	return rec.public(), imp.finish(used), nil
}

// PublishImage puts a flattened image into the catalog under key. layers are
// the keys of the layers it draws extents from; they stay as long as it does.
// The segment lies below all their extents, and its superblock's layer list is
// layers. An image with that key that is there already is returned instead.
func (p *Pool) PublishImage(ctx context.Context, key [32]byte, layers [][32]byte, size int64, build BuildFunc, meta RecordMeta) (*Record, error) {
	if err := p.beginWrite(); err != nil {
		return nil, err
	}
	defer p.end()
	rec, err := p.publishImage(ctx, key, layers, size, build, meta)
	if err != nil {
		return nil, fmt.Errorf("publish %s: %w", recordName(KindImage, key), err)
	}
	return rec, p.published(ctx, rec)
}

func (p *Pool) publishImage(ctx context.Context, key [32]byte, layers [][32]byte, size int64, build BuildFunc, meta RecordMeta) (*Record, error) {
	if len(layers) == 0 {
		return nil, invalidf("image without layers")
	}
	there, used, limit, err := p.useLayers(key, layers)
	if there != nil || err != nil {
		return there, err
	}
	d, err := p.prepare(ctx, KindImage, size, limit, build)
	p.mu.Lock()
	rec := &record{layers: used}
	var out *Record
	switch now := p.live[recordKey{KindImage, key}]; {
	case err != nil:
	case now != nil:
		out = now.public()
	case !slices.Equal(d.seg.layers, layers):
		err = invalidf("the segment lists other layers than the %d of the image", len(layers))
	default:
		if err = p.commit(d, rec, KindImage, key, meta); err == nil {
			out = rec.public()
			p.mu.Unlock()
			return out, nil
		}
	}
	for _, l := range used {
		l.users--
	}
	p.mu.Unlock()
	if d != nil {
		p.discard(ctx, d)
	}
	return out, err
}

// useLayers keeps the layers from being removed while an image is built on
// them, and says below what its segment must lie.
func (p *Pool) useLayers(key [32]byte, layers [][32]byte) (there *Record, used []*record, limit int64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r := p.live[recordKey{KindImage, key}]; r != nil {
		return r.public(), nil, 0, nil
	}
	limit = p.size
	for _, k := range layers {
		l := p.live[recordKey{KindLayer, k}]
		if l == nil {
			return nil, nil, 0, fmt.Errorf("%s: %w", recordName(KindLayer, k), ErrNotFound)
		}
		for _, e := range l.exts {
			limit = min(limit, e.off)
		}
		used = append(used, l)
	}
	for _, l := range used {
		l.users++
	}
	return nil, used, limit, nil
}

// published ends a publication: durable now, or soon in the background. When
// the sync fails the record is in the catalog all the same.
func (p *Pool) published(ctx context.Context, rec *Record) error {
	if p.opts.SyncOnPublish {
		if err := p.flush(ctx); err != nil {
			return err
		}
		rec.Durable = true
		return nil
	}
	p.wake()
	return nil
}

// Lend puts b into free space and returns its place, where it stays until
// giveBack is called: for trying what a kernel does with this region. Nothing
// in the catalog names it. Close waits for giveBack.
func (p *Pool) Lend(ctx context.Context, b []byte) (off int64, giveBack func(), err error) {
	if err := p.beginWrite(); err != nil {
		return 0, nil, err
	}
	n := int64(len(b))
	off, err = p.allocate(ctx, "loan", n, func() (int64, bool) {
		if off, ok := p.allocExtent(n); ok {
			return off, true
		}
		return p.alloc.AllocLow(disk.AlignUp(n, blockSize), blockSize) // what is kept for segments
	})
	if err == nil {
		if err = writeSparse(p.region, b, off); err != nil {
			p.giveBack(ctx, off)
			err = p.writeFailed("loan", n, err)
		}
	}
	if err != nil {
		p.end()
		return 0, nil, err
	}
	return off, sync.OnceFunc(func() {
		p.giveBack(context.WithoutCancel(ctx), off)
		p.end()
	}), nil
}
