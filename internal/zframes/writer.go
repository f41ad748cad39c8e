// Package zframes compresses a stream into independent Zstandard frames, which
// several processors make and take apart at once, and every decoder of Zstandard
// (RFC 8878) reads one after the other.
//
//	frame  skippable: magic 0x184D2A50, size 4, the size of the next frame in bytes
//	frame  Zstandard, of FrameSize bytes uncompressed; the last one of fewer
//	…
//
// This is the form of the pzstd program (facebook/zstd, contrib/pzstd), whose
// reader takes it too. The bytes depend on the input, the level and the version
// of the compressor alone, not on the number of processors.
package zframes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// FrameSize is how many bytes of the stream are in a frame. It is as far as the
// default level looks back anyway.
const FrameSize = 8 << 20

const (
	skipMagic  = 0x184D2A50
	skipHeader = 12
)

// Writer compresses what is written to it. It is not safe for concurrent use. It
// keeps up to 2·FrameSize bytes for each processor.
type Writer struct {
	w     io.Writer
	enc   *zstd.Encoder
	buf   []byte
	spare chan []byte
	queue chan chan result // in order of the stream
	done  chan struct{}    // the writing goroutine has ended
	err   error            // its error, after done
	fail  chan struct{}    // closed when it has failed
	ended bool
}

type result struct{ in, out []byte }

// NewWriter returns a Writer that uses up to concurrency processors; 0 means
// one. Close must follow; it does not close w.
func NewWriter(w io.Writer, level zstd.EncoderLevel, concurrency int) (*Writer, error) {
	concurrency = max(1, concurrency)
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(concurrency), zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, fmt.Errorf("make compressor: %w", err)
	}
	z := &Writer{
		w: w, enc: enc, spare: make(chan []byte, concurrency+1),
		queue: make(chan chan result, concurrency), done: make(chan struct{}), fail: make(chan struct{}),
	}
	for range concurrency + 1 {
		z.spare <- nil // allocated with its first use
	}
	go z.write()
	return z, nil
}

func (z *Writer) Write(p []byte) (int, error) {
	n := 0
	for len(p) > 0 {
		if z.buf == nil {
			if err := z.next(); err != nil {
				return n, err
			}
		}
		m := min(len(p), FrameSize-len(z.buf))
		z.buf = append(z.buf, p[:m]...)
		n, p = n+m, p[m:]
		if len(z.buf) == FrameSize {
			z.submit()
		}
	}
	return n, nil
}

// next waits for a buffer.
func (z *Writer) next() error {
	select {
	case z.buf = <-z.spare:
	case <-z.fail:
		<-z.done
		return z.err
	}
	if z.buf == nil {
		z.buf = make([]byte, 0, FrameSize)
	}
	z.buf = z.buf[:0]
	return nil
}

func (z *Writer) submit() {
	in := z.buf
	z.buf = nil
	ready := make(chan result, 1)
	select {
	case z.queue <- ready:
	case <-z.done:
		return // Close has the error
	}
	go func() { ready <- result{in, z.enc.EncodeAll(in, make([]byte, skipHeader, skipHeader+len(in)/2))} }()
}

func (z *Writer) write() {
	defer close(z.done)
	for ready := range z.queue {
		r := <-ready
		binary.LittleEndian.PutUint32(r.out[0:], skipMagic)
		binary.LittleEndian.PutUint32(r.out[4:], 4)
		binary.LittleEndian.PutUint32(r.out[8:], uint32(len(r.out)-skipHeader))
		if _, err := z.w.Write(r.out); err != nil {
			z.err = err
			close(z.fail)
			return
		}
		z.spare <- r.in
	}
}

// Close compresses the rest and waits for all to be written.
func (z *Writer) Close() error {
	if z.ended {
		return nil
	}
	z.ended = true
	if len(z.buf) > 0 {
		z.submit()
	}
	close(z.queue)
	<-z.done
	return errors.Join(z.err, z.enc.Close())
}
