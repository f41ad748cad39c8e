package daxmem

import (
	"context"
	"fmt"
	"io"
)

// loader rebuilds the books from the region. It writes nothing.
type loader struct {
	*books
	region Region

	// lossy: writes since the last sync may be missing, in any combination
	// (power was lost, or a sync failed). Records that are not durable are
	// proved by hashing; what only a lost write explains is dropped, not
	// quarantined.
	lossy bool

	drops []*record // LIVE or not, to be freed on the medium
}

// load reads the catalog and every segment.
func load(ctx context.Context, r Region, w Window, sup *super, size int64, lossy bool) (*loader, error) {
	l := &loader{books: newBooks(sup, size), region: r, lossy: lossy}
	raw := make([]byte, sup.records*recordSize)
	if _, err := r.ReadAt(raw, catalogStart); err != nil {
		return nil, fmt.Errorf("read catalog: %w", err)
	}
	var layers, images, chains, leaving, bad []*found
	for slot := range sup.records {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		e, cond, why := decodeEntry(raw[slot*recordSize:][:recordSize])
		l.words[slot] = e.word
		rec := &record{entry: e, slot: slot}
		pinned := false
		if cond == condRetired {
			seats, err := pinnedBy(w, &sup.geometry, slot, -1)
			if err != nil {
				return nil, err
			}
			pinned = len(seats) > 0
		}
		switch {
		case cond == condFree:
			continue
		case cond == condGone, cond == condTorn && lossy, cond == condRetired && !pinned:
			l.drops = append(l.drops, rec)
			continue
		}
		if cond == condLive { // a damaged sequence must not use up the range
			l.seq = max(l.seq, e.seq)
		}
		f := l.inspect(rec, cond, why)
		switch {
		case f.rec.why != "":
			bad = append(bad, f)
		case cond == condRetired:
			leaving = append(leaving, f)
		case e.word.kind() == KindLayer:
			layers = append(layers, f)
		case e.word.kind() == KindChain:
			chains = append(chains, f)
		default:
			images = append(images, f)
		}
	}
	bad = append(bad, l.claimLayers(layers)...)
	if lossy {
		if err := l.prove(ctx); err != nil {
			return nil, err
		}
	}
	// Space of the bad is reserved before images are judged, and after all that
	// is sound has been claimed: a damaged record cannot push a sound one out.
	badImages, err := l.claimImages(ctx, images, l.badLayers(bad))
	if err != nil {
		return nil, err
	}
	bad = append(bad, badImages...)
	l.claimChains(chains)
	for _, f := range leaving {
		l.claimLeaving(f)
	}
	for _, f := range bad {
		l.claimRest(f)
	}
	for slot := sup.records - 1; slot >= 0; slot-- {
		if l.slots[slot] == nil {
			l.avail = append(l.avail, slot)
		}
	}
	return l, nil
}

// complete reports whether all bytes that are not free space were accounted
// for, now or when their record was quarantined.
func (l *loader) complete() bool {
	for r := range l.bad {
		if r.flags&flagQuarantined == 0 {
			return false
		}
	}
	return len(l.drops) == 0
}

// found is a record with what its segment says.
type found struct {
	rec  *record
	cond condition
	seg  *segment // nil: the segment is damaged, or the record does not say where it is
}

// inspect reads and judges the segment of one record; rec.why tells what is
// wrong with it.
func (l *loader) inspect(rec *record, cond condition, why string) *found {
	f := &found{rec: rec, cond: cond}
	if cond != condLive && cond != condRetired {
		rec.why = why
		return f
	}
	if rec.flags&flagQuarantined != 0 {
		rec.why = "found bad before"
	}
	if rec.word.kind() == KindChain {
		if rec.off != 0 || rec.size != 0 {
			rec.why = fmt.Sprintf("a chain with a segment, [%d,+%d)", rec.off, rec.size)
		}
		return f
	}
	b, err := readSegment(l.region, &rec.entry, l.sup.dataStart, l.size)
	if err == nil {
		f.seg, err = parseSegment(b, rec.off, l.size, rec.word.kind())
	}
	if err != nil {
		rec.why = err.Error()
	}
	return f
}

// readSegment returns the bytes of a record's segment once their digest has
// been verified.
func readSegment(r io.ReaderAt, e *entry, dataStart, regionSize int64) ([]byte, error) {
	if e.size <= 0 || e.off < dataStart || e.off%blockSize != 0 || e.off > regionSize || e.size > regionSize-e.off {
		return nil, corruptf("segment [%d,+%d) outside [%d,%d) or not block-aligned", e.off, e.size, dataStart, regionSize)
	}
	b := make([]byte, e.size)
	if _, err := r.ReadAt(b, e.off); err != nil {
		return nil, fmt.Errorf("read segment [%d,+%d): %w", e.off, e.size, err)
	}
	if d := hashBytes(b); d != e.digest {
		return nil, corruptf("segment [%d,+%d): digest %x, want %x", e.off, e.size, d[:8], e.digest[:8])
	}
	return b, nil
}
