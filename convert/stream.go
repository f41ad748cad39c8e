package convert

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/klauspost/readahead"

	"github.com/daxfs/containerd-daxfs/internal/gunzip"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// CheckLayerType returns an error that wraps errdefs.ErrNotImplemented for media
// types of layers that FromStream does not read.
func CheckLayerType(mediaType string) error {
	// containerd takes some of them for plain or compressed layers.
	if strings.HasSuffix(mediaType, "+encrypted") {
		return fmt.Errorf("media type %q: encrypted, and here are no keys: %w", mediaType, errdefs.ErrNotImplemented)
	}
	_, err := images.DiffCompression(context.Background(), mediaType)
	return err
}

// FromStream reads a tar stream that may be compressed (gzip, with igzip or
// unpigz where containerd finds them, or zstd; told apart by their first
// bytes). diff, if not nil, is given the uncompressed bytes: their SHA-256 is a
// layer's diffID. blob is read to its end; after an error, and only then, a read
// of it may be under way still.
//
// Decompression runs beside the import. Its errors wrap ErrTruncated or
// ErrBadLayer, those of blob are returned as they are, and the others are
// FromTar's.
func FromStream(ctx context.Context, blob io.Reader, diff io.Writer, store Store, opts TarOptions) (*mkdaxfs.Tree, []Warning, error) {
	source := &sourceReader{r: blob}
	head := bufio.NewReader(source)
	magic, _ := head.Peek(magicSize) // of a shorter stream FromTar says what is wrong
	magic = bytes.Clone(magic)
	d, err := decompress(head, magic)
	if err != nil {
		return nil, nil, decompressError(source, err)
	}
	ahead := readahead.NewReadCloser(&decompressed{d, source})
	var r io.Reader = ahead
	if diff != nil {
		r = io.TeeReader(ahead, diff)
	}
	tree, warnings, err := FromTar(ctx, r, store, opts)
	if err != nil {
		// It is not waited for a read that is under way, which may be one of a
		// terminal or a pipe.
		go func() { _ = ahead.Close() }()
		if name := otherCompression(magic); name != "" && (errors.Is(err, ErrBadLayer) || errors.Is(err, ErrTruncated)) {
			err = fmt.Errorf("archive is compressed with %s, want gzip, zstd or none: %w", name, errdefs.ErrNotImplemented)
		}
		return nil, nil, err
	}
	if err := ahead.Close(); err != nil {
		return nil, nil, fmt.Errorf("end decompression: %w", err)
	}
	// The decompressor may stop before bytes that follow the compressed data;
	// they belong to the blob and its digest.
	if _, err := io.Copy(io.Discard, head); err != nil {
		return nil, nil, fmt.Errorf("read behind the compressed data: %w", err)
	}
	return tree, warnings, nil
}

// decompress does it as containerd does.
func decompress(r io.Reader, magic []byte) (io.ReadCloser, error) {
	if program := gunzip.Program(); program != "" && compression.DetectCompression(magic) == compression.Gzip {
		return gunzip.NewReader(program, r)
	}
	return compression.DecompressStream(r)
}

// magicSize bytes are enough to tell compressions apart.
const magicSize = 8

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

// sourceReader remembers the error of a source that others read: programs that
// decompress report it as text, or not at all.
type sourceReader struct {
	r   io.Reader
	err atomic.Pointer[error]
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err.Store(&err)
	}
	return n, err
}

// decompressed tells errors of the decompressor from those of the blob, and of the
// archive in it.
type decompressed struct {
	io.ReadCloser
	source *sourceReader
}

func (d *decompressed) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // one that it wraps is an early end
		err = decompressError(d.source, err)
	}
	return n, err
}

// decompressError gives an error its class.
func decompressError(source *sourceReader, err error) error {
	if e := source.err.Load(); e != nil {
		return *e
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return fmt.Errorf("decompress: %w: %w", err, ErrTruncated)
	}
	// igzip and unpigz report a cut stream as text only.
	return fmt.Errorf("decompress: %w: %w", err, ErrBadLayer)
}
