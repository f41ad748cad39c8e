package mkdaxfs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/zeebo/blake3"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// BuildOptions says how Builder writes a self-contained image.
type BuildOptions struct {
	V8      bool
	NoErofs bool
	// Share stores equal contents once. Such an image must not be mounted as
	// EROFS with DAX: the kernel allows one inode per page there.
	Share bool
	// Spool collects the data in a temporary file beside the output first and
	// writes what the tree uses at the end: for sources whose later entries
	// replace earlier ones. V8 implies it, since its readers expect metadata
	// before data.
	Spool bool
	// Size is the size of the image file in bytes; 0 means as large as needed.
	Size int64
	// Prefetch lists hot files (see ReadPrefetch). Their data is laid first, in
	// this order and without gaps, right behind the metadata, which then lies
	// before the data: one range from the image's first byte holds all of it.
	// None of these files is aligned to more than a block. Implies Spool.
	Prefetch []string
}

// BuildStats is what Finish wrote.
type BuildStats struct {
	Inodes    int    `json:"inodes"`
	Names     uint64 `json:"names"`
	MetaBytes int64  `json:"metadata_bytes"` // without the superblock's block
	DataBytes int64  `json:"data_bytes"`     // space taken by file data
	Size      int64  `json:"size"`           // of the image
	// Prefetch is what became of BuildOptions.Prefetch; nil without it.
	Prefetch *PrefetchStats `json:"prefetch,omitempty"`
}

// Builder writes one self-contained image into a file: `superblock, data,
// metadata` in the native dialect, so that a stream needs one pass, and
// `superblock, metadata, data` in v8 and with a list of hot files. Put the
// contents, build a tree of them, Finish. Not safe for concurrent use.
type Builder struct {
	opts  BuildOptions
	out   *os.File
	spool *os.File
	w     *dataWriter
	known map[[32]byte]int64 // Share: offsets by digest
	small []byte             // Share: one file
}

// maxImage bounds what a builder writes: 16 TiB, which is what 32-bit block
// addresses of the EROFS view reach, and ext4 files too. A sparse file in an
// archive may claim any size.
const maxImage = disk.ErofsMaxBlocks * disk.BlockSize

// NewBuilder starts an image in out, an empty file that stays the caller's.
func NewBuilder(out *os.File, opts BuildOptions) (*Builder, error) {
	return newBuilder(out, dirOf(out.Name()), opts)
}

func newBuilder(out *os.File, spoolDir string, opts BuildOptions) (*Builder, error) {
	b := &Builder{opts: opts, out: out, known: make(map[[32]byte]int64)}
	b.opts.Spool = opts.Spool || b.metaFirst()
	data := out
	if b.opts.Spool {
		f, err := os.CreateTemp(spoolDir, ".mkdaxfs-*")
		if err != nil {
			return nil, fmt.Errorf("create spool file: %w", err)
		}
		// Unlinked at once: nothing is left behind, whatever happens.
		if err := os.Remove(f.Name()); err != nil {
			f.Close()
			return nil, fmt.Errorf("unlink spool file: %w", err)
		}
		b.spool, data = f, f
	}
	b.w = newDataWriter(data, disk.BlockSize)
	return b, nil
}

// metaFirst reports whether the metadata lies before the data.
func (b *Builder) metaFirst() bool { return b.opts.V8 || len(b.opts.Prefetch) > 0 }

// Close releases what the builder holds; the output stays as it is.
func (b *Builder) Close() error {
	if b.spool == nil {
		return nil
	}
	f := b.spool
	b.spool = nil
	return f.Close()
}

// Put stores exactly size bytes of r as one file's content.
func (b *Builder) Put(ctx context.Context, r io.Reader, size int64) (Extent, error) {
	if size == 0 {
		return Extent{}, nil
	}
	if size < 0 || size > maxImage {
		return Extent{}, fmt.Errorf("file of %d bytes, want 0 to %d: %w", size, int64(maxImage), ErrInvalidTree)
	}
	if b.opts.Share {
		return b.putShared(ctx, r, size)
	}
	e := Extent{Offset: b.w.begin(size)}
	if f, ok := r.(*os.File); ok && size >= writeBuffer {
		if from, err := f.Seek(0, io.SeekCurrent); err == nil {
			return e, b.w.copyFile(ctx, f, from, size)
		}
	}
	return e, b.w.copy(ctx, r, size, nil)
}

// putShared is Put with a digest.
func (b *Builder) putShared(ctx context.Context, r io.Reader, size int64) (Extent, error) {
	var e Extent
	if size <= writeBuffer {
		// Known before it is written.
		if b.small == nil {
			b.small = make([]byte, writeBuffer)
		}
		data := b.small[:size]
		if n, err := io.ReadFull(r, data); err != nil {
			return e, readError(err, int64(n), size)
		}
		e.Digest = blake3.Sum256(data)
		if known, ok := b.known[e.Digest]; ok {
			e.Offset = known
			return e, nil
		}
		e.Offset = b.w.begin(size)
		b.known[e.Digest] = e.Offset
		return e, b.w.copy(ctx, bytes.NewReader(data), size, nil)
	}
	hash := blake3.New()
	e.Offset = b.w.begin(size)
	if err := b.w.copy(ctx, r, size, hash); err != nil {
		return Extent{}, err
	}
	copy(e.Digest[:], hash.Sum(nil))
	if known, ok := b.known[e.Digest]; ok {
		// Written, but not needed: later files take the space.
		b.w.discard(e.Offset, size)
		e.Offset = known
		return e, nil
	}
	b.known[e.Digest] = e.Offset
	return e, nil
}

// Finish writes the metadata of t, whose extents come from Put.
func (b *Builder) Finish(ctx context.Context, t *Tree) (*BuildStats, error) {
	if err := b.w.flush(); err != nil {
		return nil, err
	}
	opts := Options{V8: b.opts.V8, NoErofs: b.opts.NoErofs}
	l, err := NewLayout(t, opts)
	if err != nil {
		return nil, err
	}
	metaAt := b.w.end
	var prefetch *PrefetchStats
	if b.opts.Spool {
		start := int64(disk.BlockSize)
		if b.metaFirst() {
			metaAt = start
			start += l.MetaSize()
		}
		var hot []*Node
		if len(b.opts.Prefetch) > 0 {
			hot, prefetch = t.Prefetch(b.opts.Prefetch)
		}
		hotEnd, end, err := b.unspool(ctx, l, hot, start)
		if err != nil {
			return nil, err
		}
		if prefetch != nil {
			prefetch.Offset, prefetch.End = start, hotEnd
		}
		if !b.metaFirst() {
			metaAt = end
		}
		b.w.end = end
	}
	end := max(b.w.end, metaAt+l.MetaSize())
	if b.opts.Size > 0 {
		if end > b.opts.Size {
			return nil, fmt.Errorf("image needs %d bytes, size is set to %d: %w", end, b.opts.Size, ErrInvalidTree)
		}
		end = b.opts.Size &^ (disk.BlockSize - 1)
	}
	super, meta, err := l.Emit(Place{Super: 0, Meta: metaAt, End: end})
	if err != nil {
		return nil, err
	}
	// What lies behind the data now may be left from discarded files.
	if err := b.out.Truncate(b.w.end); err != nil {
		return nil, fmt.Errorf("set image size to %d: %w", b.w.end, err)
	}
	if err := b.out.Truncate(end); err != nil {
		return nil, fmt.Errorf("set image size to %d: %w", end, err)
	}
	if _, err := b.out.WriteAt(meta, metaAt); err != nil {
		return nil, fmt.Errorf("write metadata: %w", err)
	}
	if _, err := b.out.WriteAt(super, 0); err != nil {
		return nil, fmt.Errorf("write superblock: %w", err)
	}
	return &BuildStats{
		Inodes: l.Inodes(), Names: l.Entries(), MetaBytes: l.MetaSize(), DataBytes: end - disk.BlockSize - l.MetaSize(), Size: end,
		Prefetch: prefetch,
	}, nil
}

// unspool copies the contents that l's tree uses into the output from start
// on, those of hot first and the others in order of inodes, and returns the
// ends of the hot data and of all.
func (b *Builder) unspool(ctx context.Context, l *Layout, hot []*Node, start int64) (hotEnd, end int64, err error) {
	w := newDataWriter(b.out, start)
	moved := make(map[int64]int64)
	done := make(map[*Node]struct{}, len(hot))
	move := func(n *Node) error {
		from := n.Extent.Offset
		to, ok := moved[from]
		if !ok {
			to = w.begin(n.Size)
			if err := w.copyFile(ctx, b.spool, from, n.Size); err != nil {
				return err
			}
			moved[from] = to
		}
		n.Extent.Offset = to
		return nil
	}
	w.dense = true
	for _, n := range hot {
		done[n] = struct{}{}
		if err := move(n); err != nil {
			return 0, 0, err
		}
	}
	w.dense, hotEnd = false, w.end
	for _, n := range l.nodes {
		if _, ok := done[n]; ok || !n.IsRegular() || n.Size == 0 {
			continue
		}
		if err := move(n); err != nil {
			return 0, 0, err
		}
	}
	return hotEnd, w.end, w.flush()
}
