package zframes

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
)

// ErrBad is wrapped by errors about streams that are not sound, ErrTruncated among
// them.
var (
	ErrBad       = fmt.Errorf("bad zstd stream: %w", errdefs.ErrInvalidArgument)
	ErrTruncated = fmt.Errorf("unexpected end: %w", ErrBad)
)

// maxWindow is how far back a frame of another compressor may look: what the
// zstd program takes without being asked for more.
const maxWindow = 128 << 20

// NewReader decompresses r: frames of Writer on up to concurrency processors (0
// means one), any other Zstandard stream on one or two. It reads ahead, up to
// 2·FrameSize bytes for each processor. Close ends that, but waits for a Read of
// r that is under way.
func NewReader(r io.Reader, concurrency int) (io.ReadCloser, error) {
	concurrency = max(1, concurrency)
	head := bufio.NewReaderSize(r, 1<<20)
	if b, _ := head.Peek(skipHeader); !isHeader(b) {
		dec, err := zstd.NewReader(head, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, fmt.Errorf("make decompressor: %w", err)
		}
		return &plain{dec}, nil
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(concurrency), zstd.WithDecoderMaxMemory(FrameSize))
	if err != nil {
		return nil, fmt.Errorf("make decompressor: %w", err)
	}
	f := &frames{dec: dec, queue: make(chan chan frame, concurrency), stop: make(chan struct{}), done: make(chan struct{}), spare: make(chan []byte, concurrency+2)}
	go f.read(head)
	return f, nil
}

func isHeader(b []byte) bool {
	return len(b) == skipHeader && binary.LittleEndian.Uint32(b) == skipMagic && binary.LittleEndian.Uint32(b[4:]) == 4
}

// plain is a stream of another compressor.
type plain struct{ dec *zstd.Decoder }

func (p *plain) Read(b []byte) (int, error) {
	n, err := p.dec.Read(b)
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = ErrTruncated
	case isZstd(err):
		err = fmt.Errorf("%w: %w", ErrBad, err)
	}
	return n, err
}

// isZstd tells errors of the decompressor from those of its source.
func isZstd(err error) bool {
	for _, e := range []error{
		zstd.ErrMagicMismatch, zstd.ErrReservedBlockType, zstd.ErrCompressedSizeTooBig, zstd.ErrBlockTooSmall, zstd.ErrUnexpectedBlockSize,
		zstd.ErrWindowSizeExceeded, zstd.ErrWindowSizeTooSmall, zstd.ErrDecoderSizeExceeded, zstd.ErrUnknownDictionary,
		zstd.ErrFrameSizeExceeded, zstd.ErrFrameSizeMismatch, zstd.ErrCRCMismatch,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (p *plain) Close() error {
	p.dec.Close()
	return nil
}

// frames is a stream of Writer's.
type frames struct {
	dec   *zstd.Decoder
	queue chan chan frame // in order of the stream
	stop  chan struct{}
	done  chan struct{} // the reading goroutine has ended
	spare chan []byte
	cur   []byte // not read yet
	whole []byte // of which cur is the rest
	err   error
}

type frame struct {
	b   []byte
	err error
}

// read finds the frames and has them decompressed.
func (f *frames) read(r io.Reader) {
	defer close(f.done)
	defer close(f.queue)
	for at := int64(0); ; {
		ready := make(chan frame, 1)
		b, err := readFrame(r)
		if b == nil && err == nil {
			return
		}
		select {
		case f.queue <- ready:
		case <-f.stop:
			return
		}
		if err != nil {
			ready <- frame{err: fmt.Errorf("zstd frame at byte %d: %w", at, err)}
			return
		}
		go func(at int64) {
			var out []byte
			select {
			case out = <-f.spare:
			default:
			}
			// A frame that says, or has, more than FrameSize is refused.
			out, err := f.dec.DecodeAll(b, out[:0])
			if err != nil {
				// What was decompressed may be wrong.
				out, err = nil, fmt.Errorf("zstd frame at byte %d: %w: %w", at, ErrBad, err)
			}
			ready <- frame{out, err}
		}(at)
		at += skipHeader + int64(len(b))
	}
}

// readFrame returns the next frame without its header, or nil: there is none.
func readFrame(r io.Reader) ([]byte, error) {
	var h [skipHeader]byte
	if n, err := io.ReadFull(r, h[:]); err != nil {
		if n == 0 && errors.Is(err, io.EOF) {
			return nil, nil
		}
		return nil, readError(err)
	}
	if !isHeader(h[:]) {
		return nil, fmt.Errorf("header % x, want one of %d bytes with the size of a frame: %w", h, skipHeader, ErrBad)
	}
	n := binary.LittleEndian.Uint32(h[8:])
	// Zstandard stores what cannot be compressed, with 3 bytes for each 128 KiB.
	if n == 0 || n > FrameSize+FrameSize/1024 {
		return nil, fmt.Errorf("frame of %d bytes, want 1 to %d: %w", n, FrameSize+FrameSize/1024, ErrBad)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, readError(err)
	}
	return b, nil
}

func readError(err error) error {
	// Only the reader's own end, not one that it wraps.
	if err == io.EOF || err == io.ErrUnexpectedEOF { //nolint:errorlint // as the comment says
		return ErrTruncated
	}
	return err
}

func (f *frames) Read(p []byte) (int, error) {
	for len(f.cur) == 0 {
		if f.err != nil {
			return 0, f.err
		}
		if f.whole != nil {
			select {
			case f.spare <- f.whole:
			default:
			}
			f.whole = nil
		}
		ready, ok := <-f.queue
		if !ok {
			f.err = io.EOF
			continue
		}
		next := <-ready
		f.cur, f.whole, f.err = next.b, next.b, next.err
	}
	n := copy(p, f.cur)
	f.cur = f.cur[n:]
	return n, nil
}

func (f *frames) Close() error {
	select {
	case <-f.stop:
		return nil
	default:
	}
	close(f.stop)
	for ready := range f.queue { // until read has ended
		<-ready
	}
	<-f.done
	f.dec.Close()
	f.cur, f.err = nil, io.ErrClosedPipe
	return nil
}
