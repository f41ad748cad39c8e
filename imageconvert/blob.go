package imageconvert

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/daxfs/containerd-daxfs/internal/zframes"
)

// writeBuffer is how much goes to the content store at once; each time is a call.
const writeBuffer = 1 << 20

// blob is a layer that is written to the content store.
type blob struct {
	ref       string // of the ingest, one for each
	mediaType string
	options   Options
}

// write stores what fill writes, compressed, and returns its descriptor and
// diffID. After an error nothing is left.
func (b *blob) write(ctx context.Context, cs content.Store, fill func(io.Writer) error) (d ocispec.Descriptor, diffID digest.Digest, err error) {
	in := &ingest{ctx: ctx, cs: cs, ref: b.ref}
	defer func() { err = errors.Join(err, in.close(err != nil)) }()
	sum, plain := digest.Canonical.Digester(), digest.Canonical.Digester()
	count := &counter{w: io.MultiWriter(in, sum.Hash())}
	out := bufio.NewWriterSize(count, writeBuffer)
	z, err := b.compressor(out)
	if err != nil {
		return d, "", err
	}
	err = fill(io.MultiWriter(plain.Hash(), z))
	if err := errors.Join(err, z.Close()); err != nil {
		return d, "", err
	}
	if err := out.Flush(); err != nil {
		return d, "", err
	}
	d = ocispec.Descriptor{MediaType: b.mediaType, Digest: sum.Digest(), Size: count.n}
	label := content.WithLabels(map[string]string{labels.LabelUncompressed: plain.Digest().String()})
	if err := in.w.Commit(ctx, d.Size, d.Digest, label); err != nil && !errdefs.IsAlreadyExists(err) {
		return d, "", fmt.Errorf("write %s to the content store: %w", b.ref, err)
	}
	return d, plain.Digest(), nil
}

// ingest is a blob that is being written. It begins with the first byte: most of
// what can go wrong does so before that.
type ingest struct {
	ctx context.Context
	cs  content.Store
	ref string
	w   content.Writer
}

func (i *ingest) Write(p []byte) (n int, err error) {
	if i.w == nil {
		if i.w, err = content.OpenWriter(i.ctx, i.cs, content.WithRef(i.ref)); err != nil {
			return 0, fmt.Errorf("open %s in the content store: %w", i.ref, err)
		}
		// An earlier conversion may have ended with the program.
		if err := i.w.Truncate(0); err != nil {
			return 0, fmt.Errorf("write %s to the content store: %w", i.ref, err)
		}
	}
	if n, err = i.w.Write(p); err != nil {
		err = fmt.Errorf("write %s to the content store: %w", i.ref, err)
	}
	return n, err
}

func (i *ingest) close(failed bool) error {
	if i.w == nil {
		return nil
	}
	err := i.w.Close()
	if failed {
		ctx := context.WithoutCancel(i.ctx)
		if err := i.cs.Abort(ctx, i.ref); err != nil && !errdefs.IsNotFound(err) {
			// containerd's garbage collection removes it with the lease.
			log.G(ctx).WithError(err).WithField("ref", i.ref).Debug("remove unfinished blob")
		}
	}
	return err
}

func (b *blob) compressor(w io.Writer) (io.WriteCloser, error) {
	switch b.options.Compression {
	case Zstd:
		return zframes.NewWriter(w, b.options.level(), b.options.Concurrency)
	case Gzip:
		return gzip.NewWriterLevel(w, gzip.DefaultCompression) // without a time
	}
	return uncompressed{w}, nil
}

type uncompressed struct{ io.Writer }

func (uncompressed) Close() error { return nil }

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
