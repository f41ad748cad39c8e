package mkdaxfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

const (
	writeBuffer = 1 << 20
	// A file is aligned to 2 MiB where that costs at most this share of its
	// size: memory is what an image is about.
	hugeWaste = 16
)

var zeroBlock [disk.BlockSize]byte

// dataWriter places file contents one after the other in a file that reads as
// zeros where nothing was written. Blocks of zeros are not written, so sparse
// inputs stay sparse.
type dataWriter struct {
	f    *os.File
	end  int64 // first byte behind all extents, a multiple of the block size
	gaps []gap // free space below end, from aligning large files
	buf  []byte
	at   int64 // file offset of buf[0]
	zero bool  // the space being written is known to read as zeros
}

type gap struct {
	off, end int64
	dirty    bool // may hold old bytes
}

func newDataWriter(f *os.File, start int64) *dataWriter {
	return &dataWriter{f: f, end: start, buf: make([]byte, 0, writeBuffer)}
}

// begin reserves space for a file of size bytes and returns its offset; copy
// of the same size must follow.
func (w *dataWriter) begin(size int64) int64 {
	n := disk.AlignUp(size, int64(disk.BlockSize))
	w.zero = true
	off := int64(-1)
	if n < disk.HugeSize {
		for i := range w.gaps {
			if g := &w.gaps[i]; g.end-g.off >= n {
				off = g.off
				w.zero = !g.dirty
				g.off += n
				if g.off == g.end {
					w.gaps = append(w.gaps[:i], w.gaps[i+1:]...)
				}
				break
			}
		}
	}
	if off < 0 {
		off = w.end
		if huge := disk.AlignUp(off, int64(disk.HugeSize)); n >= disk.HugeSize && huge-off <= n/hugeWaste {
			if huge > off {
				w.gaps = append(w.gaps, gap{off: off, end: huge})
			}
			off = huge
		}
		w.end = off + n
	}
	if w.at+int64(len(w.buf)) != off {
		w.seek(off)
	}
	return off
}

// seek makes off the next position; what is buffered is written first. The
// error is kept for flush and copy.
func (w *dataWriter) seek(off int64) {
	if len(w.buf) > 0 {
		// Written by copy's next flush; the position must be kept till then.
		if err := w.flush(); err != nil {
			w.at = -1
			return
		}
	}
	w.at = off
}

// discard returns the space of an extent that begin gave and copy filled.
func (w *dataWriter) discard(off, size int64) error {
	if err := w.flush(); err != nil {
		return err
	}
	w.gaps = append(w.gaps, gap{off: off, end: off + disk.AlignUp(size, int64(disk.BlockSize)), dirty: true})
	return nil
}

func (w *dataWriter) flush() error {
	if w.at < 0 {
		return fmt.Errorf("write file data to %s: an earlier write failed: %w", w.f.Name(), unix.EIO)
	}
	if len(w.buf) == 0 {
		return nil
	}
	n, err := w.f.WriteAt(w.buf, w.at)
	if err != nil {
		w.at = -1
		return fmt.Errorf("write file data to %s: %w", w.f.Name(), err)
	}
	w.at += int64(n)
	w.buf = w.buf[:0]
	return nil
}

// copy writes exactly size bytes of r at the position of begin, padded with
// zeros to the block size; h, if not nil, gets them too.
func (w *dataWriter) copy(ctx context.Context, r io.Reader, size int64, h io.Writer) error {
	left := size
	for left > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		if len(w.buf) == cap(w.buf) {
			if err := w.flush(); err != nil {
				return err
			}
		}
		have := len(w.buf)
		n := int(min(left, int64(cap(w.buf)-have)))
		b := w.buf[have : have+n]
		if got, err := io.ReadFull(r, b); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return fmt.Errorf("read file data: %d bytes, want %d: %w", size-left+int64(got), size, io.ErrUnexpectedEOF)
			}
			return fmt.Errorf("read file data: %w", err)
		}
		if h != nil {
			_, _ = h.Write(b) // hashes do not fail
		}
		left -= int64(n)
		w.buf = w.buf[:have+n]
		if pad := disk.AlignUp(n, disk.BlockSize) - n; left == 0 && pad > 0 {
			// have and cap are multiples of the block size, so there is room.
			w.buf = append(w.buf, zeroBlock[:pad]...)
		}
		if err := w.dropZeros(have); err != nil {
			return err
		}
	}
	return nil
}

// dropZeros skips buf[from:] if it is all zeros in fresh space and large enough
// to be worth a seek.
func (w *dataWriter) dropZeros(from int) error {
	b := w.buf[from:]
	if !w.zero || len(b) < 64<<10 {
		return nil
	}
	for i := 0; i < len(b); i += disk.BlockSize {
		if !bytes.Equal(b[i:i+disk.BlockSize], zeroBlock[:]) {
			return nil
		}
	}
	skip := int64(len(b))
	w.buf = w.buf[:from]
	if err := w.flush(); err != nil {
		return err
	}
	w.at += skip
	return nil
}

func dirOf(name string) string { return filepath.Dir(name) }
