package convert

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/klauspost/readahead"
	"golang.org/x/sync/errgroup"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// MaxImageMetadata is how much metadata of an image FromImage takes, in bytes: it
// has to be in memory. Decoded it takes a few times as much.
const MaxImageMetadata = 512 << 20

// ImageOptions says how an image is read.
type ImageOptions struct {
	// MaxSize is the largest size of an image in bytes; 0 is no limit.
	MaxSize int64
	// Workers is how many files are put into the store at once; its Put must
	// allow it. 0 means one.
	Workers int
}

// imageChunk is the size up to which a file is read before it is put, so that
// several can be put at once.
const imageChunk = 1 << 20

var imageChunks = sync.Pool{New: func() any { b := make([]byte, imageChunk); return &b }}

// FromImage reads a DAXFS image as mkdaxfs.Builder.Stream writes it, superblock
// and metadata first, in one pass; file contents go to store, each once. The
// image is proven (mkdaxfs.Check) before the first of them is stored. The result
// is its tree, which is a layer tree without marks.
//
// r must end with the image. What lies between files is zero. diff, if not nil, is
// given all bytes of r. Both run beside the import, and have ended when FromImage
// returns.
//
// Errors about the image wrap disk.ErrCorrupt, disk.ErrNotDAXFS, disk.ErrUnsupported (another
// version, page size or kind of image), ErrTruncated, ErrBadLayer or
// ErrTooLarge; those of r and store are returned as they are.
func FromImage(ctx context.Context, r io.Reader, diff io.Writer, store Store, opts ImageOptions) (*mkdaxfs.Tree, error) {
	if diff != nil {
		r = io.TeeReader(r, diff)
	}
	ahead := readahead.NewReader(r)
	defer func() { _ = ahead.Close() }() // of what is read to its end, or failed
	return fromImage(ctx, ahead, store, opts)
}

func fromImage(ctx context.Context, r io.Reader, store Store, opts ImageOptions) (*mkdaxfs.Tree, error) {
	head := &imageHead{r: r, block: make([]byte, disk.BlockSize)}
	if _, err := io.ReadFull(r, head.block); err != nil {
		return nil, fmt.Errorf("read superblock: %w", truncated(err))
	}
	sb, err := disk.DecodeSuperblock(head.block)
	if err != nil {
		return nil, err
	}
	if err := checkImageHead(sb, opts); err != nil {
		return nil, err
	}
	head.pos = int64(sb.BaseOffset)
	img, err := mkdaxfs.Open(head, int64(sb.TotalSize))
	if err != nil {
		return nil, err
	}
	tree, _, err := mkdaxfs.CheckedTree(img, 0)
	if err != nil {
		return nil, err
	}
	in := &imageData{r: r, pos: head.pos, store: store, workers: max(1, opts.Workers)}
	if err := in.all(ctx, tree); err != nil {
		return nil, err
	}
	if err := in.zeros(int64(sb.TotalSize)); err != nil {
		return nil, err
	}
	switch n, err := io.ReadFull(r, head.block[:1]); {
	case n > 0:
		return nil, fmt.Errorf("bytes behind the end of an image of %d bytes: %w", sb.TotalSize, ErrBadLayer)
	case err != io.EOF:
		return nil, fmt.Errorf("read behind the image's end: %w", err)
	}
	return tree, nil
}

// checkImageHead says whether the rest of the image is to be read at all.
func checkImageHead(sb *disk.Superblock, opts ImageOptions) error {
	if err := sb.Check(sb.TotalSize, disk.BlockSize); err != nil {
		return err
	}
	switch {
	case !sb.Native():
		return fmt.Errorf("image in the dialect of version %d, want %#x: %w", sb.Version, disk.VersionNative, disk.ErrUnsupported)
	case sb.Incompat&disk.IncompatLayer != 0 || sb.Compat&disk.CompatPool != 0:
		return fmt.Errorf("image is part of a pool and not complete: %w", disk.ErrUnsupported)
	case sb.BaseOffset != disk.BlockSize || sb.MetaOffset != 0:
		return fmt.Errorf("metadata is at byte %d of the image, want %d, in front of all files: %w",
			sb.BaseOffset+sb.MetaOffset, disk.BlockSize, disk.ErrUnsupported)
	case opts.MaxSize > 0 && sb.TotalSize > uint64(opts.MaxSize):
		return fmt.Errorf("image of %d bytes, want at most %d: %w", sb.TotalSize, opts.MaxSize, ErrTooLarge)
	case sb.MetaSize > MaxImageMetadata:
		return fmt.Errorf("image with %d bytes of metadata, want at most %d: %w", sb.MetaSize, MaxImageMetadata, ErrTooLarge)
	}
	return nil
}

// truncated gives the end of a stream where there should be more its class.
func truncated(err error) error {
	// Only the reader's own end, not one that it wraps.
	if err == io.EOF || err == io.ErrUnexpectedEOF { //nolint:errorlint // as the comment says
		return fmt.Errorf("unexpected end: %w", ErrTruncated)
	}
	return err
}

// imageHead is the beginning of a stream, of which mkdaxfs.Open reads the
// superblock and then the metadata from its first byte to its last.
type imageHead struct {
	r     io.Reader
	block []byte
	pos   int64 // of r
}

func (h *imageHead) ReadAt(p []byte, off int64) (int, error) {
	if off == 0 && len(p) <= len(h.block) {
		return copy(p, h.block), nil
	}
	if off != h.pos {
		return 0, disk.Corruptf("read image at byte %d, want byte %d of a stream", off, h.pos)
	}
	n, err := io.ReadFull(h.r, p)
	h.pos += int64(n)
	if err != nil {
		err = truncated(err)
	}
	return n, err
}

// imageData stores the files of an image in order of their addresses.
type imageData struct {
	r       io.Reader
	pos     int64 // of r
	store   Store
	workers int
}

// content is what one or several files of an image consist of.
type content struct {
	off, size int64
	files     []*mkdaxfs.Node
}

func (c *content) set(e mkdaxfs.Extent) {
	for _, n := range c.files {
		n.Extent = e
	}
}

func contents(tree *mkdaxfs.Tree) []*content {
	byOff := make(map[int64]*content)
	seen := make(map[*mkdaxfs.Node]struct{})
	var all []*content
	_ = tree.Nodes(func(n *mkdaxfs.Node) error {
		if !n.IsRegular() || n.Size == 0 {
			return nil
		}
		if _, ok := seen[n]; ok {
			return nil // another name of it
		}
		seen[n] = struct{}{}
		c := byOff[n.Extent.Offset]
		if c == nil {
			c = &content{off: n.Extent.Offset, size: n.Size}
			byOff[c.off], all = c, append(all, c)
		}
		c.files = append(c.files, n)
		return nil
	})
	slices.SortFunc(all, func(a, b *content) int { return cmp.Compare(a.off, b.off) })
	return all
}

func (d *imageData) all(ctx context.Context, tree *mkdaxfs.Tree) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(d.workers)
	err := func() error {
		for _, c := range contents(tree) {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := d.zeros(c.off); err != nil {
				return err
			}
			d.pos += c.size
			if c.size > imageChunk || d.workers == 1 {
				e, err := d.store.Put(ctx, d.r, c.size)
				if err != nil {
					return fmt.Errorf("file data at byte %d: %w", c.off, short(storeError(err)))
				}
				c.set(e)
				continue
			}
			buf := imageChunks.Get().(*[]byte)
			b := (*buf)[:c.size]
			if _, err := io.ReadFull(d.r, b); err != nil {
				return fmt.Errorf("file data at byte %d: %w", c.off, truncated(err))
			}
			g.Go(func() error {
				defer imageChunks.Put(buf)
				e, err := d.store.Put(ctx, bytes.NewReader(b), c.size)
				if err != nil {
					return fmt.Errorf("file data at byte %d: %w", c.off, storeError(err))
				}
				c.set(e)
				return nil
			})
		}
		return nil
	}()
	// The first failure has ended the others, by ctx.
	if werr := g.Wait(); werr != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return werr
	}
	return err
}

// short is for an error of a store that was given too few bytes.
func short(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrBadLayer) {
		return fmt.Errorf("%v: %w", err, ErrTruncated) //nolint:errorlint // its class is all that counts
	}
	return err
}

// zeros reads up to an address, behind a file's end and between files.
func (d *imageData) zeros(to int64) error {
	var b [disk.BlockSize]byte
	for d.pos < to {
		p := b[:min(to-d.pos, int64(len(b)))]
		if _, err := io.ReadFull(d.r, p); err != nil {
			return fmt.Errorf("read image at byte %d: %w", d.pos, truncated(err))
		}
		for i, c := range p {
			if c != 0 {
				return disk.Corruptf("byte %d, which belongs to no file, is %#x, want 0", d.pos+int64(i), c)
			}
		}
		d.pos += int64(len(p))
	}
	return nil
}
