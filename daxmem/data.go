package daxmem

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/zeebo/blake3"
)

const chunkSize = 1 << 20

// chunks and hashers are pooled: an import touches tens of thousands of files.
var (
	chunks  = sync.Pool{New: func() any { b := make([]byte, chunkSize); return &b }}
	hashers = sync.Pool{New: func() any { return blake3.New() }}
)

func hashBytes(b []byte) (d [32]byte) {
	h := hashers.Get().(*blake3.Hasher)
	defer hashers.Put(h)
	h.Reset()
	h.Write(b)
	h.Sum(d[:0])
	return d
}

// hashRegion returns the digest of [off, off+n).
func hashRegion(ctx context.Context, r io.ReaderAt, off, n int64) (d [32]byte, err error) {
	h := hashers.Get().(*blake3.Hasher)
	defer hashers.Put(h)
	h.Reset()
	buf := chunks.Get().(*[]byte)
	defer chunks.Put(buf)
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return d, err
		}
		c := (*buf)[:min(n, chunkSize)]
		if _, err := r.ReadAt(c, off); err != nil {
			return d, fmt.Errorf("read [%d,+%d): %w", off, len(c), err)
		}
		h.Write(c)
		off, n = off+int64(len(c)), n-int64(len(c))
	}
	h.Sum(d[:0])
	return d, nil
}

var zeroBlock [blockSize]byte

func isZero(b []byte) bool {
	for len(b) > blockSize {
		if !bytes.Equal(b[:blockSize], zeroBlock[:]) {
			return false
		}
		b = b[blockSize:]
	}
	return bytes.Equal(b, zeroBlock[:len(b)])
}

// writeSparse stores b at off, a multiple of the block size, and leaves out
// blocks of zeros. The space must read as zeros: so it does when it comes fresh
// from the allocator (invariant Z), and only there. That is why this is not the
// region's business.
func writeSparse(r Region, b []byte, off int64) error {
	start := 0 // of the run that is not written yet
	for at := 0; at < len(b); at += blockSize {
		end := min(at+blockSize, len(b))
		if !bytes.Equal(b[at:end], zeroBlock[:end-at]) {
			continue
		}
		if at > start {
			if _, err := r.WriteAt(b[start:at], off+int64(start)); err != nil {
				return err
			}
		}
		start = end
	}
	if start < len(b) {
		if _, err := r.WriteAt(b[start:], off+int64(start)); err != nil {
			return err
		}
	}
	return nil
}
