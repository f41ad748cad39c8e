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
// inputs stay sparse. One buffer is written while the next is filled.
type dataWriter struct {
	f    *os.File
	end  int64 // first byte behind all extents, a multiple of the block size
	top  int64 // first byte behind all that was ever written or reserved
	gaps []gap // free space below end, from aligning large files
	buf  []byte
	at   int64 // file offset of buf[0]
	zero bool  // the space being written is known to read as zeros

	dense bool // align nothing to more than a block

	spare []byte     // the other buffer, nil while it is being written
	wrote chan wrote // result of that write
	err   error      // of an earlier write, kept
}

type wrote struct {
	buf []byte
	err error
}

type gap struct {
	off, end int64
	dirty    bool // may hold old bytes
}

func newDataWriter(f *os.File, start int64) *dataWriter {
	return &dataWriter{
		f: f, end: start, top: start, at: start, wrote: make(chan wrote, 1),
		buf: make([]byte, 0, writeBuffer), spare: make([]byte, 0, writeBuffer),
	}
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
		if huge := disk.AlignUp(off, int64(disk.HugeSize)); !w.dense && n >= disk.HugeSize && huge-off <= n/hugeWaste {
			if huge > off {
				w.gaps = append(w.gaps, gap{off: off, end: huge})
			}
			off = huge
		}
		w.end = off + n
		w.zero = off >= w.top
		w.top = max(w.top, w.end)
	}
	if w.at+int64(len(w.buf)) != off {
		_ = w.submit() // kept in w.err
		w.at = off
	}
	return off
}

// discard returns the space of an extent that begin gave and copy filled.
// Writes keep their order, so what comes there later wins.
func (w *dataWriter) discard(off, size int64) {
	end := off + disk.AlignUp(size, int64(disk.BlockSize))
	if end == w.end {
		w.end = off
		return
	}
	w.gaps = append(w.gaps, gap{off: off, end: end, dirty: true})
}

// submit starts writing what is buffered, after the write before it. Its error
// comes from a later submit or from flush.
func (w *dataWriter) submit() error {
	if len(w.buf) == 0 {
		return w.err
	}
	w.wait()
	buf, at := w.buf, w.at
	w.at += int64(len(buf))
	w.buf, w.spare = w.spare, nil
	if w.err != nil {
		w.spare = buf[:0]
		return w.err
	}
	go func() {
		_, err := w.f.WriteAt(buf, at)
		w.wrote <- wrote{buf, err}
	}()
	return nil
}

// wait ends the write under way.
func (w *dataWriter) wait() {
	if w.spare != nil {
		return
	}
	r := <-w.wrote
	w.spare = r.buf[:0]
	if r.err != nil && w.err == nil {
		w.err = fmt.Errorf("write file data to %s: %w", w.f.Name(), r.err)
	}
}

// flush writes what is buffered and waits for it.
func (w *dataWriter) flush() error {
	_ = w.submit() // the error stays in w.err
	w.wait()
	return w.err
}

// minHole is from which size on zeros are left out: a seek costs a write more.
const minHole = 64 << 10

// copyFile is copy for a file from an offset on, without reading its holes.
func (w *dataWriter) copyFile(ctx context.Context, f *os.File, from, size int64) error {
	pos, end := from, from+size
	for pos < end {
		data, next := pos, end
		if w.zero && end-pos >= minHole {
			if d, err := f.Seek(pos, unix.SEEK_DATA); err == nil {
				data = min(d, end)
			} else if errors.Is(err, unix.ENXIO) {
				data = end // nothing but a hole
			}
			if h, err := f.Seek(data, unix.SEEK_HOLE); err == nil && data < end {
				next = min(h, end)
			}
		}
		if skip := data - pos; skip >= minHole {
			if data < end {
				skip &^= disk.BlockSize - 1
			}
			if err := w.submit(); err != nil {
				return err
			}
			w.at += disk.AlignUp(skip, disk.BlockSize)
			pos += skip
		}
		// A piece ends at a block, so that only the file's end is padded.
		n := min(disk.AlignUp(next-pos, disk.BlockSize), end-pos)
		if err := w.copy(ctx, io.NewSectionReader(f, pos, n), n, nil); err != nil {
			return err
		}
		pos += n
	}
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
			if err := w.submit(); err != nil {
				return err
			}
		}
		have := len(w.buf)
		n := int(min(left, int64(cap(w.buf)-have)))
		b := w.buf[have : have+n]
		if got, err := io.ReadFull(r, b); err != nil {
			return readError(err, size-left+int64(got), size)
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

// readError is for a source that ended or failed after got of size bytes.
func readError(err error, got, size int64) error {
	// Only the reader's own end, not one that it wraps.
	if err == io.EOF || err == io.ErrUnexpectedEOF { //nolint:errorlint // as the comment says
		return fmt.Errorf("read file data: %d bytes, want %d: %w", got, size, io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("read file data: %w", err)
}

// dropZeros skips buf[from:] if it is all zeros in fresh space and large enough
// to be worth a seek.
func (w *dataWriter) dropZeros(from int) error {
	b := w.buf[from:]
	if !w.zero || len(b) < minHole {
		return nil
	}
	for i := 0; i < len(b); i += disk.BlockSize {
		if !bytes.Equal(b[i:i+disk.BlockSize], zeroBlock[:]) {
			return nil
		}
	}
	skip := int64(len(b))
	w.buf = w.buf[:from]
	if err := w.submit(); err != nil {
		return err
	}
	w.at += skip
	return nil
}

func dirOf(name string) string { return filepath.Dir(name) }
