package convert

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"

	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// FromStream reads a tar stream that may be compressed (gzip, with igzip or
// unpigz where containerd finds them, or zstd; told apart by their first
// bytes). diff, if not nil, is given the uncompressed bytes: their SHA-256 is a
// layer's diffID. blob is read to its end.
//
// Decompression and hashing run beside the import.
func FromStream(ctx context.Context, blob io.Reader, diff hash.Hash, store Store, opts TarOptions) (*mkdaxfs.Tree, []Warning, error) {
	head := bufio.NewReaderSize(blob, readBuffer)
	// Too short a stream is not compressed; FromTar has the error for it.
	magic, _ := head.Peek(10)
	if name := otherCompression(magic); name != "" {
		return nil, nil, fmt.Errorf("archive is compressed with %s, want gzip, zstd or none: %w", name, errdefs.ErrNotImplemented)
	}
	source := io.NopCloser(head)
	if compression.DetectCompression(magic) != compression.Uncompressed {
		d, err := compression.DecompressStream(head)
		if err != nil {
			return nil, nil, fmt.Errorf("decompress: %w: %w", err, ErrBadLayer)
		}
		source = &decompressed{d}
	} else if diff == nil {
		return FromTar(ctx, head, store, opts)
	}
	var r io.Reader = source
	if diff != nil {
		r = io.TeeReader(source, diff)
	}
	ahead := newReadAhead(r)
	defer ahead.close(source)
	tree, warnings, err := FromTar(ctx, ahead, store, opts)
	if err != nil {
		return nil, nil, err
	}
	// The decompressor may stop before bytes that follow the compressed data;
	// they belong to the blob and its digest.
	if _, err := io.Copy(io.Discard, head); err != nil {
		return nil, nil, fmt.Errorf("read behind the compressed data: %w", err)
	}
	return tree, warnings, nil
}

// otherCompression names a format that is common for tar files but not known to
// the OCI image specification: "bad tar header" would be true and no help.
func otherCompression(head []byte) string {
	for _, c := range []struct{ name, magic string }{
		{"xz", "\xfd7zXZ\x00"}, {"bzip2", "BZh"}, {"lz4", "\x04\x22\x4d\x18"}, {"lzip", "LZIP"},
	} {
		if bytes.HasPrefix(head, []byte(c.magic)) {
			return c.name
		}
	}
	return ""
}

// decompressed tells errors of the decompressor from those of the archive in
// it, and a cut stream from a wrong one.
type decompressed struct{ io.ReadCloser }

func (d *decompressed) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	if err == nil || err == io.EOF {
		return n, err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return n, fmt.Errorf("decompress: %w: %w", err, ErrTruncated)
	}
	// igzip and unpigz report a cut stream as text only.
	return n, fmt.Errorf("decompress: %w: %w", err, ErrBadLayer)
}

const (
	readBuffer   = 64 << 10
	aheadBuffers = 4
	aheadSize    = 512 << 10
)

// readAhead reads in a goroutine, so that the source and its consumer work at
// the same time.
type readAhead struct {
	full  chan filled
	empty chan []byte
	stop  chan struct{}
	done  chan struct{}
	cur   filled
	pos   int
}

type filled struct {
	b   []byte
	err error
}

func newReadAhead(r io.Reader) *readAhead {
	a := &readAhead{
		full:  make(chan filled, aheadBuffers),
		empty: make(chan []byte, aheadBuffers),
		stop:  make(chan struct{}),
		done:  make(chan struct{}),
	}
	for range aheadBuffers {
		a.empty <- make([]byte, aheadSize)
	}
	go a.run(r)
	return a
}

func (a *readAhead) run(r io.Reader) {
	defer close(a.done)
	for {
		var b []byte
		select {
		case b = <-a.empty:
		case <-a.stop:
			return
		}
		b = b[:cap(b)]
		n, err := io.ReadFull(r, b)
		if err == io.ErrUnexpectedEOF {
			// ReadFull's own word for an end inside the buffer; a source's is
			// wrapped (see decompressed) or means the same here.
			err = io.EOF
		}
		a.full <- filled{b[:n], err} // has room for every buffer
		if err != nil {
			return
		}
	}
}

// close stops the goroutine and closes its source. It does not wait for a Read
// that is under way, which may be one of a terminal or a pipe: then the source
// is closed when that returns.
func (a *readAhead) close(source io.Closer) {
	close(a.stop)
	select {
	case <-a.done:
		source.Close()
	default:
		go func() {
			<-a.done
			source.Close()
		}()
	}
}

func (a *readAhead) Read(p []byte) (int, error) {
	for a.pos == len(a.cur.b) {
		if a.cur.err != nil {
			return 0, a.cur.err
		}
		if a.cur.b != nil {
			a.empty <- a.cur.b // has room for every buffer
		}
		a.cur, a.pos = <-a.full, 0
	}
	n := copy(p, a.cur.b[a.pos:])
	a.pos += n
	return n, nil
}
