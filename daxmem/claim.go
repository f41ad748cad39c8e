package daxmem

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

func newestFirst(a, b *found) int { return cmp.Compare(b.rec.seq, a.rec.seq) }

// claimLayers enters sound layers, the newest of each key, and returns those
// whose space is claimed by another.
func (l *loader) claimLayers(layers []*found) (bad []*found) {
	slices.SortStableFunc(layers, newestFirst)
	for _, f := range layers {
		rec := f.rec
		if l.live[recordKey{KindLayer, rec.key}] != nil {
			bad = l.superseded(bad, f)
			continue
		}
		if why := l.claimLayer(f); why != "" {
			rec.why = why
			bad = append(bad, f)
			continue
		}
		l.enter(rec)
	}
	return bad
}

// superseded deals with the older of two records with one key. After lost
// writes it is one whose retirement was lost; its space was not reused
// (invariant R), and it can go.
func (l *loader) superseded(bad []*found, f *found) []*found {
	if l.lossy {
		l.drops = append(l.drops, f.rec)
		return bad
	}
	f.rec.why = "another record with the same key is newer"
	return append(bad, f)
}

// claimLayer reserves segment and extents, all or nothing.
func (l *loader) claimLayer(f *found) (why string) {
	rec := f.rec
	seg := span{rec.off, disk.AlignUp(rec.size, blockSize)}
	if err := l.alloc.Reserve(seg.off, seg.size); err != nil {
		return "segment: " + err.Error()
	}
	rec.spans = []span{seg}
	for _, w := range f.seg.rows {
		if e := l.byOff[w.off]; e != nil && e.row == w {
			e.refs++
			rec.exts = append(rec.exts, e)
			continue
		}
		if err := l.alloc.Reserve(w.off, w.space()); err != nil {
			for _, s := range l.drop(rec) {
				l.alloc.Free(s.off, s.size)
			}
			rec.spans, rec.exts = nil, nil
			return fmt.Sprintf("extent %x: %v", w.digest[:8], err)
		}
		rec.exts = append(rec.exts, l.addExtent(w, 1))
	}
	return ""
}

// prove hashes every extent of every layer that is not durable. An extent that
// fails takes all layers that use it with it, durable ones too.
func (l *loader) prove(ctx context.Context) error {
	failed := map[*extent]string{}
	proved := map[*extent]bool{}
	for _, rec := range l.slots {
		if rec == nil || rec.flags&flagDurable != 0 {
			continue
		}
		for _, e := range rec.exts {
			if proved[e] {
				continue
			}
			proved[e] = true
			d, err := hashRegion(ctx, l.region, e.off, e.size)
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case err != nil:
				failed[e] = err.Error()
			case d != e.digest:
				failed[e] = fmt.Sprintf("extent [%d,+%d): digest %x, want %x", e.off, e.size, d[:8], e.digest[:8])
			}
		}
	}
	if len(failed) == 0 {
		return nil
	}
	for _, rec := range l.slots {
		if rec == nil {
			continue
		}
		for _, e := range rec.exts {
			if why := failed[e]; why != "" {
				l.quarantine(rec, why, func(e *extent) bool { return failed[e] != "" })
				break
			}
		}
	}
	return nil
}

// claimImages enters sound images whose layers are there and were published
// before them, and those that need none.
func (l *loader) claimImages(ctx context.Context, images []*found, badLayers map[[32]byte]uint64) (bad []*found, err error) {
	slices.SortStableFunc(images, newestFirst)
	for _, f := range images {
		rec := f.rec
		if l.live[recordKey{KindImage, rec.key}] != nil {
			bad = l.superseded(bad, f)
			continue
		}
		missing := l.resolve(f)
		switch {
		case missing != "" && l.lossy && !damagedBelow(f, badLayers):
			// Its own retirement was lost, or its layer's publication.
			rec.layers = nil
			l.drops = append(l.drops, rec)
			continue
		case missing != "":
			rec.why = missing
		default:
			if rec.why, err = l.proveCopies(ctx, f); err != nil {
				return nil, err
			}
			if rec.why == "" {
				rec.why = l.claimImage(f)
			}
		}
		if rec.why != "" {
			bad = append(bad, f)
			continue
		}
		for _, layer := range rec.layers {
			layer.users++
		}
		l.enter(rec)
	}
	return bad, nil
}

// claimChains enters chains whose layer is there. Others have lost what they
// say, and nothing else: they are dropped.
func (l *loader) claimChains(chains []*found) {
	slices.SortStableFunc(chains, newestFirst)
	for _, f := range chains {
		rec := f.rec
		layer := l.live[recordKey{KindLayer, rec.digest}]
		if layer == nil || l.live[recordKey{KindChain, rec.key}] != nil {
			l.drops = append(l.drops, rec)
			continue
		}
		rec.layers = []*record{layer}
		layer.users++
		l.enter(rec)
	}
}

// claimLeaving keeps what a removed record uses as long as another kernel has
// it pinned. It is not found any more.
func (l *loader) claimLeaving(f *found) {
	rec := f.rec
	why := ""
	switch rec.word.kind() {
	case KindLayer:
		why = l.claimLayer(f)
	case KindImage:
		if why = l.resolve(f); why == "" {
			why = l.claimImage(f)
		}
	case KindChain:
		if layer := l.live[recordKey{KindLayer, rec.digest}]; layer != nil {
			rec.layers = []*record{layer}
		}
	}
	if why != "" {
		l.claimRest(f) // what is not somebody else's
		rec.why = ""
		delete(l.bad, rec)
	} else {
		for _, layer := range rec.layers {
			layer.users++
		}
	}
	for _, e := range rec.exts {
		e.published = true
	}
	l.slots[rec.slot] = rec
	l.leaving[rec] = struct{}{}
}

// claimImage reserves the segment of an image and its copies, all or nothing.
func (l *loader) claimImage(f *found) (why string) {
	all := f.seg.spans(f.rec.off, f.rec.size)
	for i, s := range all {
		if err := l.alloc.Reserve(s.off, s.size); err != nil {
			for _, s := range all[:i] {
				l.alloc.Free(s.off, s.size)
			}
			return "segment: " + err.Error()
		}
	}
	f.rec.spans = all
	return ""
}

// proveCopies judges whether an image without layers may be, and hashes its
// files if it is not durable and writes may be missing.
func (l *loader) proveCopies(ctx context.Context, f *found) (why string, err error) {
	switch {
	case len(f.seg.layers) > 0:
		return "", nil
	case l.sup.incompat&featSelfContained == 0:
		return "image without layers in a pool of shared extents", nil
	case !l.lossy || f.rec.flags&flagDurable != 0 || f.seg.copies == 0:
		return "", nil
	}
	s := f.seg.spans(f.rec.off, f.rec.size)[1]
	d, err := hashRegion(ctx, l.region, s.off, s.size)
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case err != nil:
		return err.Error(), nil
	case d != f.rec.copies:
		return fmt.Sprintf("files [%d,+%d): digest %x, want %x", s.off, s.size, d[:8], f.rec.copies[:8]), nil
	}
	return "", nil
}

// resolve finds the layers of an image. missing says which is not there.
func (l *loader) resolve(f *found) (missing string) {
	for _, key := range f.seg.layers {
		layer := l.live[recordKey{KindLayer, key}]
		switch {
		case layer == nil:
			missing = recordName(KindLayer, key) + ", which the image draws from, is not there"
		case layer.seq > f.rec.seq: // its extents need not be where the image points
			missing = recordName(KindLayer, key) + ", which the image draws from, is newer than the image"
		default:
			f.rec.layers = append(f.rec.layers, layer)
		}
	}
	return missing
}

// badLayers are the keys of layers that are there, but not sound, with the
// lowest sequence of each; 0 when it is not known.
func (l *loader) badLayers(bad []*found) map[[32]byte]uint64 {
	keys := map[[32]byte]uint64{}
	add := func(key [32]byte, seq uint64) {
		if old, ok := keys[key]; !ok || seq < old {
			keys[key] = seq
		}
	}
	for _, f := range bad {
		if f.cond != condLive {
			f.rec.seq = 0
		}
		add(f.rec.key, f.rec.seq)
	}
	for r := range l.bad {
		add(r.key, r.seq)
	}
	return keys
}

// damagedBelow reports whether the image lacks a layer because of damage. A
// damaged layer that is newer than the image is not the one it was built on.
func damagedBelow(f *found, badLayers map[[32]byte]uint64) bool {
	return slices.ContainsFunc(f.seg.layers, func(k [32]byte) bool {
		seq, ok := badLayers[k]
		return ok && seq < f.rec.seq
	})
}

// claimRest puts a bad record aside and reserves what it may use and nothing
// sound uses, so that it can be looked at, and a kernel that still maps it
// keeps seeing the same bytes.
func (l *loader) claimRest(f *found) {
	rec := f.rec
	size, rows := disk.AlignUp(rec.size, blockSize), []row(nil)
	if f.seg != nil {
		rows = f.seg.rows
		size += f.seg.copies
		if rec.layers == nil {
			l.resolve(f)
		}
	} else {
		var there int64
		_, there, rows = salvage(l.region, rec.off, l.sup.dataStart, l.size)
		if there == 0 && f.cond != condLive {
			if off, ok := l.findSegment(rec.digest); ok {
				rec.off = off
				_, there, rows = salvage(l.region, off, l.sup.dataStart, l.size)
			}
		}
		size = max(size, there)
		if f.cond != condLive { // the record's own size is a hint at best
			size = there
		}
	}
	if size > 0 && rec.off >= l.sup.dataStart && rec.off%blockSize == 0 && rec.off <= l.size && size <= l.size-rec.off {
		l.reserveFree(rec, rec.off, size)
	}
	for _, w := range rows {
		if e := l.byOff[w.off]; e != nil && e.row == w {
			e.refs++
			rec.exts = append(rec.exts, e)
			continue
		}
		if l.alloc.Reserve(w.off, w.space()) == nil {
			// An extent, so that another bad layer can hold it too; but not one
			// that imports find.
			e := &extent{row: w, refs: 1, published: true}
			l.byOff[w.off] = e
			rec.exts = append(rec.exts, e)
			continue
		}
		l.reserveFree(rec, w.off, w.space())
	}
	for _, layer := range rec.layers {
		layer.users++
	}
	l.slots[rec.slot] = rec
	l.quarantine(rec, rec.why, nil)
}

// findSegment looks through all free space for the segment of a record that
// does not say any more where it is: a kernel may still have it mounted. It
// reads the whole of it, so it is for damage only.
func (l *loader) findSegment(digest [32]byte) (off int64, ok bool) {
	const piece = 1 << 20
	buf := make([]byte, piece)
	for start, n := range l.alloc.All() {
		for at := start; at < start+n; at += piece {
			b := buf[:min(piece, start+n-at)]
			if _, err := l.region.ReadAt(b, at); err != nil {
				break
			}
			for i := 0; i < len(b); i += blockSize {
				if _, err := disk.DecodeSuperblock(b[i:]); err != nil {
					continue
				}
				size, _, _ := salvage(l.region, at+int64(i), l.sup.dataStart, l.size)
				if size == 0 {
					continue
				}
				if d, err := hashRegion(context.Background(), l.region, at+int64(i), size); err == nil && d == digest {
					return at + int64(i), true
				}
			}
		}
	}
	return 0, false
}

// reserveFree gives rec whatever of [off, off+n) nobody has.
func (l *loader) reserveFree(rec *record, off, n int64) {
	var parts []span
	for o, n := range l.alloc.FreeIn(off, n) {
		parts = append(parts, span{o, n})
	}
	for _, s := range parts {
		if err := l.alloc.Reserve(s.off, s.size); err != nil {
			panic(err) // it was free a moment ago, and the books are ours
		}
	}
	rec.spans = append(rec.spans, parts...)
}
