package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/readahead"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/daxfs/containerd-daxfs/imageconvert"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// applyImage unpacks a layer that is a DAXFS image, without a temporary file:
// its metadata come first.
func (d *differ) applyImage(ctx context.Context, desc ocispec.Descriptor, u *snapshotter.Unpack) (_ ocispec.Descriptor, err error) {
	image, err := imageconvert.Open(ctx, d.cl.ContentStore(), desc)
	if errors.Is(err, disk.ErrUnsupported) {
		err = fmt.Errorf("%v: %w", err, snapshotter.ErrImageUnfit) // without its class
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	digester := digest.Canonical.Digester()
	ahead, err := readahead.NewReaderSize(io.TeeReader(image, digester.Hash()), aheadBuffers, aheadSize)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer func() { err = errors.Join(err, ahead.Close()) }()
	counted := &counter{r: ahead}
	if err := u.ApplyImage(ctx, counted, digester.Digest); err != nil {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{MediaType: imageconvert.MediaTypeLayer, Size: counted.n, Digest: digester.Digest()}, nil
}
