package daxmem

import (
	"context"
	"fmt"
	"io"

	"github.com/zeebo/blake3"
)

// Extent is where the bytes of a file are in the region. The zero Extent is
// that of an empty file.
type Extent struct {
	Digest [32]byte // BLAKE3-256
	Offset int64    // in the region, a multiple of the block size
	Size   int64    // bytes; the rest of the last block is zero
}

// Import collects the extents of one layer until it is published. Put may be
// called from several goroutines. Every import ends with PublishLayer or Abort.
type Import struct {
	p *Pool

	// Guarded by p.mu. An import holds one reference per extent, however often
	// its content was put.
	held map[[32]byte]*extent
	done bool
}

// NewImport begins a layer.
func (p *Pool) NewImport(ctx context.Context) (*Import, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if p.ro {
		return nil, ErrReadOnly
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing {
		return nil, ErrClosed
	}
	imp := &Import{p: p, held: map[[32]byte]*extent{}}
	p.imports[imp] = struct{}{}
	return imp, nil
}

// Put reads exactly size bytes from r and returns the extent that holds them:
// a known one, or a new one. It reads no further. Fewer bytes are
// io.ErrUnexpectedEOF; a full pool is ErrFull. After an error nothing of this
// file is left in the pool.
func (imp *Import) Put(ctx context.Context, r io.Reader, size int64) (Extent, error) {
	if size < 0 {
		return Extent{}, invalidf("put: size %d", size)
	}
	if err := imp.p.begin(); err != nil {
		return Extent{}, err
	}
	defer imp.p.end()
	var w row
	var err error
	switch {
	case size == 0:
		return Extent{}, nil
	case size <= chunkSize:
		w, err = imp.putSmall(ctx, r, size)
	default:
		w, err = imp.putLarge(ctx, r, size)
	}
	if err != nil {
		return Extent{}, fmt.Errorf("put %d bytes: %w", size, err)
	}
	return Extent{Digest: w.digest, Offset: w.off, Size: w.size}, nil
}

// putSmall hashes before it allocates: content that is known costs no space,
// not even for a moment.
func (imp *Import) putSmall(ctx context.Context, r io.Reader, size int64) (row, error) {
	buf := chunks.Get().(*[]byte)
	defer chunks.Put(buf)
	b := (*buf)[:size]
	if err := readFull(r, b); err != nil {
		return row{}, err
	}
	w := row{digest: hashBytes(b), size: size}
	if known, ok, err := imp.hold(w); ok || err != nil {
		return known, err
	}
	off, err := imp.p.allocate(ctx, "extent", size, func() (int64, bool) { return imp.p.allocExtent(size) })
	if err != nil {
		return row{}, err
	}
	w.off = off
	if err := writeSparse(imp.p.region, b, off); err != nil {
		imp.p.giveBack(ctx, off)
		return row{}, imp.p.writeFailed("extent", size, err)
	}
	return imp.enter(ctx, w)
}

// putLarge streams: the content is in the pool before its digest is known.
func (imp *Import) putLarge(ctx context.Context, r io.Reader, size int64) (row, error) {
	off, err := imp.p.allocate(ctx, "extent", size, func() (int64, bool) { return imp.p.allocExtent(size) })
	if err != nil {
		return row{}, err
	}
	w := row{off: off, size: size}
	if w.digest, err = imp.stream(ctx, r, w); err != nil {
		imp.p.giveBack(ctx, off)
		return row{}, err
	}
	return imp.enter(ctx, w)
}

func (imp *Import) stream(ctx context.Context, r io.Reader, w row) (d [32]byte, err error) {
	buf := chunks.Get().(*[]byte)
	defer chunks.Put(buf)
	h := hashers.Get().(*blake3.Hasher)
	defer hashers.Put(h)
	h.Reset()
	hashed := make(chan struct{}, 1)
	for at := int64(0); at < w.size; at += chunkSize {
		if err := ctx.Err(); err != nil {
			return d, err
		}
		b := (*buf)[:min(chunkSize, w.size-at)]
		if err := readFull(r, b); err != nil {
			return d, fmt.Errorf("at %d: %w", at, err)
		}
		if err := imp.p.mayWrite(); err != nil {
			return d, err
		}
		// Hashing and copying take about as long as each other.
		go func() {
			h.Write(b)
			hashed <- struct{}{}
		}()
		err := writeSparse(imp.p.region, b, w.off+at)
		<-hashed
		if err != nil {
			return d, imp.p.writeFailed("extent", w.size, err)
		}
	}
	h.Sum(d[:0])
	return d, nil
}

func readFull(r io.Reader, b []byte) error {
	n, err := io.ReadFull(r, b)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("read %d of %d bytes: %w", n, len(b), err)
	}
	return nil
}

// hold takes a reference to content that is known already.
func (imp *Import) hold(w row) (row, bool, error) {
	imp.p.mu.Lock()
	defer imp.p.mu.Unlock()
	return imp.holdLocked(w)
}

func (imp *Import) holdLocked(w row) (row, bool, error) {
	if imp.done {
		return row{}, false, ErrClosed
	}
	e := imp.held[w.digest]
	if e == nil {
		if e = imp.p.byDigest[w.digest]; e == nil {
			return row{}, false, nil
		}
		e.refs++
		imp.held[w.digest] = e
	}
	return e.row, true, nil
}

// enter puts a written extent into the books, unless another import was faster
// with the same content: then ours is given back.
func (imp *Import) enter(ctx context.Context, w row) (row, error) {
	step(stepExtentWritten)
	p := imp.p
	p.mu.Lock()
	known, ok, err := imp.holdLocked(w)
	if !ok && err == nil {
		imp.held[w.digest] = p.addExtent(w, 1)
		delete(p.inflight, w.off)
		known = w
	}
	p.mu.Unlock()
	if ok || err != nil {
		p.giveBack(ctx, w.off)
	}
	return known, err
}

// Abort gives up everything that the import holds. Calls after the first, or
// after PublishLayer, do nothing.
func (imp *Import) Abort() {
	if imp.p.begin() != nil {
		return // Close does, or did, the same
	}
	defer imp.p.end()
	imp.abort()
}

func (imp *Import) abort() {
	p := imp.p
	p.mu.Lock()
	if imp.done {
		p.mu.Unlock()
		return
	}
	fresh := imp.finish(nil)
	p.mu.Unlock()
	p.release(context.Background(), fresh)
}

// finish ends the import and drops its references, but for those that kept
// takes over. It returns the space that can be given back at once. Caller
// holds p.mu.
func (imp *Import) finish(kept map[[32]byte]bool) (fresh []span) {
	p := imp.p
	var old []span
	for d, e := range imp.held {
		if kept[d] || !p.unref(e) {
			continue
		}
		s := span{e.off, e.space()}
		if e.published {
			old = append(old, s)
			continue
		}
		p.inflight[s.off] = s.size
		fresh = append(fresh, s)
	}
	p.retire(nil, old)
	imp.done, imp.held = true, nil
	delete(p.imports, imp)
	return fresh
}
