package snapshotter

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/klauspost/readahead"
	"github.com/opencontainers/go-digest"

	"github.com/daxfs/containerd-daxfs/convert"
	"github.com/daxfs/containerd-daxfs/daxmem"
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
// stream's digest and length. If the snapshot's labels say which diffID it is to
// be, that is compared before anything is published.
//
// InvalidArgument: no image, a cut one, one with something behind it, or on top of
// another layer. DataLoss: it is not sound, or has another digest.
// ErrImageUnfit. OutOfRange: it is larger than the pool. ResourceExhausted: that is
// full.
func (u *Unpack) ApplyImage(ctx context.Context, r io.Reader) (diffID digest.Digest, size int64, err error) {
	// Its size is known and compared before it is read.
	image := &measured{r: r, hash: sha256.New(), limit: math.MaxInt64}
	err = u.applyImage(ctx, image)
	if errors.Is(err, disk.ErrUnsupported) {
		err = fmt.Errorf("%v: %w", err, ErrImageUnfit) //nolint:errorlint // without its class
	}
	if err != nil {
		return "", image.size, fmt.Errorf("unpack DAXFS image into %s: %w", u.into, err)
	}
	return digest.NewDigest(digest.SHA256, image.hash), image.size, nil
}

func (u *Unpack) applyImage(ctx context.Context, image *measured) error {
	s, start := u.s, time.Now()
	if u.below != "" {
		return fmt.Errorf("a DAXFS image on top of layer %q, want it to be the lowest layer of an image: %w", u.below, errdefs.ErrInvalidArgument)
	}
	s.collecting.RLock()
	defer s.released(ctx)
	imp, err := s.pool.NewImport(ctx)
	if err != nil {
		return err
	}
	defer imp.Abort() // nothing is left to abort after a publication
	// Hashing takes as long as all the rest.
	ahead, err := readahead.NewReaderSize(image, imageBuffers, imageBuffer)
	if err != nil {
		return err
	}
	defer func() { _ = ahead.Close() }() // of what is read to its end, or failed
	store := &imageStore{imp: imp}
	// An image that does not fit is not even begun.
	tree, err := convert.FromImage(ctx, ahead, store, convert.ImageOptions{MaxSize: s.pool.Size(), Workers: runtime.GOMAXPROCS(0)})
	if err != nil {
		return err
	}
	// All of it has been read, so that nobody writes to the hash any more.
	if got := digest.NewDigest(digest.SHA256, image.hash); u.diffID != "" && got.String() != u.diffID {
		return fmt.Errorf("image has digest %s, want %s: %w", got, u.diffID, errdefs.ErrDataLoss)
	}
	rec, err := publishLayer(ctx, s.pool, imp, tree, store.bytes.Load(), u.want)
	if err != nil {
		return err
	}
	return u.finish(ctx, rec, start)
}

// imageBuffers times imageBuffer bytes of an image are read and hashed before they
// are needed.
const (
	imageBuffers = 4
	imageBuffer  = 1 << 20
)

// imageStore is a convert.Store over an import of the pool, for several
// goroutines.
type imageStore struct {
	imp   *daxmem.Import
	bytes atomic.Int64
}

func (i *imageStore) Put(ctx context.Context, r io.Reader, size int64) (mkdaxfs.Extent, error) {
	e, err := i.imp.Put(ctx, r, size)
	if err != nil {
		return mkdaxfs.Extent{}, err
	}
	i.bytes.Add(size)
	return mkdaxfs.Extent{Offset: e.Offset, Digest: e.Digest}, nil
}
