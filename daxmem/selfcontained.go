package daxmem

import (
	"context"
	"fmt"

	"github.com/zeebo/blake3"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// Copy is one file that a self-contained image takes from a layer.
type Copy struct {
	From int64 // offset in the region of the extent
	To   int64 // offset from the image's superblock, a multiple of the block size
	Size int64 // bytes
}

// PublishSelfContained puts an image into the catalog that shares no bytes with
// any other: its segment of size bytes is followed by copies of its files, and
// it takes space bytes in all, a multiple of the block size, which is the total
// size in its superblock. It has no layer list. An image with that key that is
// there already is returned instead.
//
// Preconditions: the pool is SelfContained; copies are ordered by To, do not
// overlap, and lie behind the segment; the layers that they are taken from are
// pinned.
func (p *Pool) PublishSelfContained(ctx context.Context, key [32]byte, size, space int64, copies []Copy, build BuildFunc, meta RecordMeta) (*Record, error) {
	if err := p.beginWrite(); err != nil {
		return nil, err
	}
	defer p.end()
	rec, err := p.publishSelfContained(ctx, key, size, space, copies, build, meta)
	if err != nil {
		return nil, fmt.Errorf("publish %s: %w", recordName(KindImage, key), err)
	}
	return rec, p.published(ctx, rec)
}

func (p *Pool) publishSelfContained(ctx context.Context, key [32]byte, size, space int64, copies []Copy, build BuildFunc, meta RecordMeta) (*Record, error) {
	if !p.SelfContained() {
		return nil, invalidf("self-contained image in a pool of shared extents")
	}
	if err := checkCopies(size, space, copies, p.size); err != nil {
		return nil, err
	}
	if there, err := p.find(KindImage, key); err == nil {
		return there, nil
	}
	// Among the extents: all that it points at is its own, so it need not lie
	// below them.
	d, err := p.draft(ctx, KindImage, size, space, func() (int64, bool) { return p.allocExtent(space) }, build)
	if err != nil {
		return nil, err
	}
	if len(d.seg.layers) > 0 || disk.AlignUp(size, blockSize)+d.seg.copies != space {
		err = invalidf("the segment has %d layers and %d bytes of files behind %d, want none and %d in all", len(d.seg.layers), d.seg.copies, size, space)
	} else {
		d.copies, err = p.fillCopies(ctx, d, space, copies)
	}
	if err != nil {
		p.discard(ctx, d)
		return nil, err
	}
	p.mu.Lock()
	if now := p.live[recordKey{KindImage, key}]; now != nil {
		rec := now.public()
		p.mu.Unlock()
		p.discard(ctx, d)
		return rec, nil
	}
	rec := &record{}
	err = p.commit(d, rec, KindImage, key, meta)
	p.mu.Unlock()
	if err != nil {
		p.discard(ctx, d)
		return nil, err
	}
	return rec.public(), nil
}

func checkCopies(size, space int64, copies []Copy, regionSize int64) error {
	at := disk.AlignUp(size, blockSize)
	if size <= 0 || space%blockSize != 0 || space < at {
		return invalidf("image of %d bytes with a segment of %d", space, size)
	}
	for _, c := range copies {
		if c.Size <= 0 || c.To%blockSize != 0 || c.To < at || c.To > space-c.Size || c.From < 0 || c.From > regionSize-c.Size {
			return invalidf("copy of [%d,+%d) to %d, want a block in [%d,%d)", c.From, c.Size, c.To, at, space)
		}
		at = c.To + disk.AlignUp(c.Size, blockSize)
	}
	return nil
}

// fillCopies writes an image's files behind its segment and returns the digest
// of all of it, gaps included.
func (p *Pool) fillCopies(ctx context.Context, d *draft, space int64, copies []Copy) (digest [32]byte, err error) {
	h := blake3.New()
	buf := chunks.Get().(*[]byte)
	defer chunks.Put(buf)
	at := disk.AlignUp(d.size, blockSize)
	zeros := func(to int64) {
		for at < to {
			n := min(to-at, int64(len(zeroChunk)))
			_, _ = h.Write(zeroChunk[:n]) // hashes do not fail
			at += n
		}
	}
	for _, c := range copies {
		zeros(c.To)
		for done := int64(0); done < c.Size; {
			if err := ctx.Err(); err != nil {
				return digest, err
			}
			b := (*buf)[:min(c.Size-done, chunkSize)]
			if _, err := p.region.ReadAt(b, c.From+done); err != nil {
				return digest, fmt.Errorf("copy [%d,+%d): %w", c.From, c.Size, err)
			}
			_, _ = h.Write(b)
			if err := writeSparse(p.region, b, d.off+at); err != nil {
				return digest, p.writeFailed("copy of a file", c.Size, err)
			}
			done += int64(len(b))
			at += int64(len(b))
		}
	}
	zeros(space)
	h.Sum(digest[:0])
	return digest, nil
}
