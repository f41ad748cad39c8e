package imageconvert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/internal/zframes"
)

// Open returns the bytes of a layer's DAXFS image, decompressed on all processors
// if need be, after CheckAnnotations. What was annotated as its size is where it
// ends: one byte more is InvalidArgument. The bytes themselves are not checked.
func Open(ctx context.Context, store content.Provider, d ocispec.Descriptor) (io.ReadCloser, error) {
	if !IsLayer(d.MediaType) {
		return nil, fmt.Errorf("open DAXFS image: media type %q, want %q or %q: %w", d.MediaType, MediaTypeLayer, MediaTypeLayerZstd, errdefs.ErrInvalidArgument)
	}
	if err := CheckAnnotations(d); err != nil {
		return nil, fmt.Errorf("open DAXFS image %s: %w", d.Digest, err)
	}
	ra, err := store.ReaderAt(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("open DAXFS image %s: %w", d.Digest, err)
	}
	s := &source{Reader: content.NewReader(ra), closers: []io.Closer{ra}}
	if d.MediaType == MediaTypeLayerZstd {
		z, err := zframes.NewReader(s.Reader, runtime.GOMAXPROCS(0))
		if err != nil {
			ra.Close()
			return nil, fmt.Errorf("open DAXFS image %s: %w", d.Digest, err)
		}
		s.Reader, s.closers = z, []io.Closer{z, ra}
	}
	if n, _ := imageSize(d); n > 0 {
		s.Reader = &limited{s.Reader, n, n}
	}
	if err := s.compareHead(d); err != nil {
		return nil, errors.Join(fmt.Errorf("open DAXFS image %s: %w", d.Digest, err), s.Close())
	}
	return s, nil
}

// compareHead compares the annotations with the superblock, if there is a sound
// one; the others are the business of who reads the image.
func (s *source) compareHead(d ocispec.Descriptor) error {
	head := make([]byte, disk.BlockSize)
	n, err := io.ReadFull(s.Reader, head)
	if n < len(head) && err != io.EOF && err != io.ErrUnexpectedEOF { //nolint:errorlint // the reader's own
		return err
	}
	s.Reader = io.MultiReader(bytes.NewReader(head[:n]), s.Reader)
	sb, err := disk.DecodeSuperblock(head[:n])
	if err != nil {
		return nil
	}
	for name, is := range annotations(sb) {
		if says, ok := d.Annotations[name]; ok && says != is {
			return fmt.Errorf("annotation %s is %q, the image's superblock says %q: %w", name, says, is, errdefs.ErrDataLoss)
		}
	}
	return nil
}

type source struct {
	io.Reader
	closers []io.Closer
}

func (s *source) Close() (err error) {
	for _, c := range s.closers {
		err = errors.Join(err, c.Close())
	}
	return err
}

// limited is a reader whose source must not have more than size bytes.
type limited struct {
	r          io.Reader
	left, size int64
}

func (l *limited) Read(p []byte) (int, error) {
	if int64(len(p)) > l.left+1 {
		p = p[:l.left+1]
	}
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, fmt.Errorf("image is larger than the %d bytes of annotation %s: %w", l.size, AnnotationSize, errdefs.ErrInvalidArgument)
	}
	return n, err
}
