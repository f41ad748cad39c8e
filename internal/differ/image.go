package differ

import (
	"context"
	"errors"
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/daxfs/containerd-daxfs/imageconvert"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// unpackImage is Unpack for a layer that is a DAXFS image: in one pass, without a
// temporary file, since its metadata come first.
func (b *Blobs) unpackImage(ctx context.Context, desc ocispec.Descriptor, u *snapshotter.Unpack) (ocispec.Descriptor, error) {
	image, err := imageconvert.Open(ctx, b, desc)
	if errors.Is(err, disk.ErrUnsupported) {
		err = fmt.Errorf("%v: %w", err, snapshotter.ErrImageUnfit) //nolint:errorlint // without its class
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	diffID, size, err := u.ApplyImage(ctx, image)
	if err := errors.Join(err, image.Close()); err != nil {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{MediaType: imageconvert.MediaTypeLayer, Size: size, Digest: diffID}, nil
}
