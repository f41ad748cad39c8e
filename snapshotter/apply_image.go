package snapshotter

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
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
	image := &measured{r: r, hash: sha256.New()}
	err = u.applyImage(ctx, image)
	if errors.Is(err, disk.ErrUnsupported) {
		err = fmt.Errorf("%v: %w", err, ErrImageUnfit) //nolint:errorlint // without its class
	}
	if err != nil {
		return "", image.size, fmt.Errorf("unpack DAXFS image into snapshot %q: %w", u.key, err)
	}
	return digest.NewDigest(digest.SHA256, image.hash), image.size, nil
}

// measured hashes and counts what is read.
type measured struct {
	r    io.Reader
	hash hash.Hash
	size int64
}

func (m *measured) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.hash.Write(p[:n])
	m.size += int64(n)
	return n, err
}

func (u *Unpack) applyImage(ctx context.Context, image *measured) error {
	s, start := u.s, time.Now()
	info, err := u.info(ctx)
	if err != nil {
		return err
	}
	if below := cmp.Or(info.Parent, info.Labels[labelParent]); below != "" {
		return fmt.Errorf("a DAXFS image on top of layer %q, want it to be the lowest layer of an image: %w", below, errdefs.ErrInvalidArgument)
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
	defer ahead.Close()
	rec, err := importImage(ctx, s.pool, imp, ahead, func() error {
		want := info.Labels[snapshots.LabelSnapshotDiffID]
		// All of it has been read, so that nobody writes to the hash any more.
		if got := digest.NewDigest(digest.SHA256, image.hash); want != "" && got.String() != want {
			return fmt.Errorf("image has digest %s, want %s: %w", got, want, errdefs.ErrDataLoss)
		}
		return nil
	}, key{})
	if err != nil {
		return err
	}
	if err := u.applied(ctx, rec); err != nil {
		return err
	}
	log.G(ctx).WithField("key", u.key).WithField("layer", key(rec.Key)).WithField("entries", rec.Entries).
		WithField("bytes", rec.DataBytes).WithField("took", time.Since(start)).Info("DAXFS image unpacked into the pool")
	return nil
}

// imageBuffers times imageBuffer bytes of an image are read and hashed before they
// are needed.
const (
	imageBuffers = 4
	imageBuffer  = 1 << 20
)

// importImage publishes a DAXFS image as a layer. whole is called when all of it
// was read; its error ends the import. want is as for importDir.
func importImage(ctx context.Context, pool *daxmem.Pool, imp *daxmem.Import, r io.Reader, whole func() error, want key) (*daxmem.Record, error) {
	store := &imageStore{imp: imp}
	// An image that does not fit is not even begun.
	tree, err := convert.FromImage(ctx, r, store, convert.ImageOptions{MaxSize: pool.Size(), Workers: runtime.GOMAXPROCS(0)})
	if err != nil {
		return nil, err
	}
	if err := whole(); err != nil {
		return nil, err
	}
	return publishLayer(ctx, pool, imp, tree, store.bytes.Load(), want)
}

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
