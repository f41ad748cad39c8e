package main

import (
	"context"
	"errors"
	"fmt"

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
		err = fmt.Errorf("%v: %w", err, snapshotter.ErrImageUnfit) //nolint:errorlint // without its class
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	diffID, size, err := u.ApplyImage(ctx, image)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{MediaType: imageconvert.MediaTypeLayer, Size: size, Digest: diffID}, nil
}
