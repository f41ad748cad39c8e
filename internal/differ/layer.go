package differ

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/klauspost/readahead"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// aheadBuffers times aheadSize bytes of a layer are decompressed before they are
// needed.
const (
	aheadBuffers = 4
	aheadSize    = 1 << 20
)

// Layer opens a blob as the plain archive that is in it. It is decompressed as
// containerd does it, by its stream processors, with igzip or unpigz where they
// are installed; a goroutine of the layer's own does that ahead of the reader,
// until Close. What goes wrong in another program is an error of Close.
//
// payloads are those of a diff.ApplyConfig. NotImplemented: there is no processor
// for the media type. NotFound: the namespace of ctx does not have the blob.
func (b *Blobs) Layer(ctx context.Context, desc ocispec.Descriptor, payloads map[string]typeurl.Any) (io.ReadCloser, error) {
	blob, err := b.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	plain, err := decompress(ctx, desc.MediaType, content.NewReader(blob), payloads)
	if err != nil {
		return nil, errors.Join(err, blob.Close())
	}
	ahead, err := readahead.NewReaderSize(plain, aheadBuffers, aheadSize)
	if err != nil {
		return nil, errors.Join(err, plain.Close(), blob.Close())
	}
	return &layer{ahead, plain, blob}, nil
}

type layer struct {
	io.ReadCloser           // what was read ahead of plain
	plain         io.Closer // all that is between it and blob
	blob          io.Closer
}

func (l *layer) Close() error {
	return errors.Join(l.ReadCloser.Close(), l.plain.Close(), l.blob.Close())
}

// decompress runs a blob through containerd's stream processors, as many as it
// takes to make a plain layer of it.
func decompress(ctx context.Context, mediaType string, r io.Reader, payloads map[string]typeurl.Any) (io.ReadCloser, error) {
	// containerd's processor for compressed layers would take it for a plain one.
	if strings.HasSuffix(mediaType, "+encrypted") {
		return nil, fmt.Errorf("layer of media type %q is encrypted, and here are no keys: %w", mediaType, errdefs.ErrNotImplemented)
	}
	p := diff.NewProcessorChain(mediaType, r)
	all := processors{p}
	for {
		next, err := diff.GetProcessor(ctx, p, payloads)
		if errors.Is(err, diff.ErrNoProcessor) {
			err = fmt.Errorf("layer of media type %q: %w: %w", p.MediaType(), err, errdefs.ErrNotImplemented)
		}
		if err != nil {
			return nil, errors.Join(err, all.Close())
		}
		p, all = next, append(all, next)
		if p.MediaType() == ocispec.MediaTypeImageLayer {
			return all, nil
		}
	}
}

// processors are a chain, the last of which is read from.
type processors []diff.StreamProcessor

func (ps processors) Read(b []byte) (int, error) { return ps[len(ps)-1].Read(b) }

// Close ends the chain, and returns what went wrong in programs that are part of
// it.
func (ps processors) Close() error {
	var errs []error
	for i := len(ps) - 1; i >= 0; i-- {
		if p, ok := ps[i].(interface{ Err() error }); ok {
			errs = append(errs, p.Err())
		}
		errs = append(errs, ps[i].Close())
	}
	return errors.Join(errs...)
}
