package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/daxfs/containerd-daxfs/convert"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// ErrImageUnfit is wrapped by errors about DAXFS images that may be sound and are
// not for this daemon: of another version or page size, or not laid out for a
// registry. It is not NotImplemented, on which containerd would ask its next
// differ, which knows nothing of such images.
var ErrImageUnfit = fmt.Errorf("DAXFS image is not for this daemon: %w", errdefs.ErrFailedPrecondition)

// ApplyImage is Apply for a layer that is a DAXFS image (convert.FromImage). The
// image is proven before anything of it is stored, and must be the lowest layer:
// it has no whiteouts, so that what is below would show through. It returns the
// image's digest and length. If the snapshot's labels say which diffID it is to
// be, that is compared before anything is published.
//
// InvalidArgument: no image, a cut one, one with something behind it, or on top of
// another layer. DataLoss: it is not sound, or has another digest.
// ErrImageUnfit. OutOfRange: it is larger than the pool. ResourceExhausted: that is
// full.
func (u *Unpack) ApplyImage(ctx context.Context, image io.Reader) (diffID digest.Digest, size int64, err error) {
	diff := newMeasured()
	err = u.apply(ctx, func(store convert.Store) (*mkdaxfs.Tree, error) {
		if u.below != "" {
			return nil, fmt.Errorf("a DAXFS image on top of layer %q, want it to be the lowest layer of an image: %w", u.below, errdefs.ErrInvalidArgument)
		}
		// An image that does not fit is not even begun.
		tree, err := convert.FromImage(ctx, image, diff, store, convert.ImageOptions{MaxSize: u.s.pool.Size(), Workers: runtime.GOMAXPROCS(0)})
		if err == nil && u.diffID != "" && diff.digest().String() != u.diffID {
			err = fmt.Errorf("image has digest %s, want %s: %w", diff.digest(), u.diffID, errdefs.ErrDataLoss)
		}
		return tree, err
	})
	if errors.Is(err, disk.ErrUnsupported) {
		err = fmt.Errorf("%v: %w", err, ErrImageUnfit) //nolint:errorlint // without its class
	}
	if err != nil {
		return "", 0, fmt.Errorf("unpack DAXFS image into %s: %w", u.into, err)
	}
	return diff.digest(), diff.size, nil
}
