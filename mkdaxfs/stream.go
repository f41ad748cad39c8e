package mkdaxfs

import (
	"context"
	"fmt"
	"io"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// NewStreamBuilder starts an image that Stream writes. Until then file contents
// are in a temporary file in dir, without a name; "" is os.TempDir. opts.Size
// must be 0.
func NewStreamBuilder(dir string, opts BuildOptions) (*Builder, error) {
	if opts.Size != 0 {
		return nil, fmt.Errorf("size %d for an image that is a stream, want 0: %w", opts.Size, ErrInvalidTree)
	}
	opts.Spool = true
	return newBuilder(nil, dir, opts)
}

// Stream writes the image of t, whose extents come from Put, to w: superblock,
// metadata, and behind them the file data in order of addresses, without gaps
// for large files (docs/image-spec.md, "Layout"). So it can be checked and taken
// apart in one pass. It is called instead of Finish.
func (b *Builder) Stream(ctx context.Context, t *Tree, w io.Writer) (*BuildStats, error) {
	if err := b.w.flush(); err != nil {
		return nil, err
	}
	l, err := NewLayout(t, Options{V8: b.opts.V8, NoErofs: b.opts.NoErofs})
	if err != nil {
		return nil, err
	}
	start := disk.BlockSize + l.MetaSize()
	at := start
	var files []span
	moved := make(map[int64]int64)
	done := make(map[*Node]struct{})
	add := func(n *Node) {
		if _, ok := done[n]; ok || !n.IsRegular() || n.Size == 0 {
			return
		}
		done[n] = struct{}{}
		from := n.Extent.Offset
		to, ok := moved[from]
		if !ok {
			files = append(files, span{from, n.Size})
			to, moved[from] = at, at
			at += disk.AlignUp(n.Size, disk.BlockSize)
		}
		n.Extent.Offset = to
	}
	var prefetch *PrefetchStats
	if len(b.opts.Prefetch) > 0 {
		var hot []*Node
		hot, prefetch = t.Prefetch(b.opts.Prefetch)
		for _, n := range hot {
			add(n)
		}
		prefetch.Offset, prefetch.End = start, at
	}
	for _, n := range l.nodes {
		add(n)
	}
	place := Place{Super: 0, Meta: disk.BlockSize, End: at}
	super, meta, err := l.Emit(place)
	if err != nil {
		return nil, err
	}
	// There is no reading back of what was written to a stream.
	if err := l.Verify(super, meta, place); err != nil {
		return nil, err
	}
	for _, p := range [][]byte{super, meta} {
		if _, err := w.Write(p); err != nil {
			return nil, fmt.Errorf("write image: %w", err)
		}
	}
	buf := make([]byte, writeBuffer)
	for _, f := range files {
		if err := b.copyOut(ctx, w, f, buf); err != nil {
			return nil, fmt.Errorf("write image: %w", err)
		}
	}
	return &BuildStats{Inodes: l.Inodes(), Names: l.Entries(), MetaBytes: l.MetaSize(), DataBytes: at - disk.BlockSize - l.MetaSize(), Size: at, Prefetch: prefetch}, nil
}

// span is the place of a file's content in the spool.
type span struct{ off, size int64 }

// copyOut writes one file of the spool, filled up to a block.
func (b *Builder) copyOut(ctx context.Context, w io.Writer, f span, buf []byte) error {
	for f.size > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(f.size, int64(len(buf)))
		if err := readFull(b.spool, buf[:n], f.off); err != nil {
			return err
		}
		f.off, f.size = f.off+n, f.size-n
		full := disk.AlignUp(n, disk.BlockSize)
		clear(buf[n:full])
		if _, err := w.Write(buf[:full]); err != nil {
			return err
		}
	}
	return nil
}
