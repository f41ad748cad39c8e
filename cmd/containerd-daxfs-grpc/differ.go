package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/klauspost/readahead"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/daxfs/containerd-daxfs/imageconvert"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// differ unpacks layers from containerd's content store into the pool, without
// a mount and without files: containerd's proxy plugin of type "diff".
type differ struct {
	sn *snapshotter.Snapshotter
	cl *client.Client // of the containerd that asks
}

// aheadBuffers times aheadSize bytes of a layer are decompressed before they are
// needed.
const (
	aheadBuffers = 4
	aheadSize    = 1 << 20
)

var _ diff.Applier = (*differ)(nil)

// Apply implements diff.Applier for the mounts of our unpack snapshots. All others
// are NotImplemented, so that containerd's next differ takes them.
func (d *differ) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (_ ocispec.Descriptor, err error) {
	var config diff.ApplyConfig
	for _, o := range opts {
		if err := o(ctx, desc, &config); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	ctx = namespaces.WithNamespace(ctx, ns)
	u, err := d.sn.Unpack(ctx, mounts)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("apply %s: %w", desc.Digest, err)
	}
	if imageconvert.IsLayer(desc.MediaType) {
		applied, err := d.applyImage(ctx, desc, u)
		if err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("apply %s: %w", desc.Digest, err)
		}
		return applied, nil
	}
	ra, err := d.cl.ContentStore().ReaderAt(ctx, desc)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("apply %s: %w", desc.Digest, err)
	}
	defer ra.Close()
	stream, err := decompress(ctx, desc.MediaType, content.NewReader(ra), config)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("apply %s: %w", desc.Digest, err)
	}
	// Decompressing and hashing go ahead of what is done with the files. The
	// digest is complete when the end has been read, which Apply does.
	digester := digest.Canonical.Digester()
	ahead, err := readahead.NewReaderSize(io.TeeReader(stream, digester.Hash()), aheadBuffers, aheadSize)
	if err != nil {
		return ocispec.Descriptor{}, errors.Join(err, stream.Close())
	}
	counted := &counter{r: ahead}
	err = u.Apply(ctx, counted)
	if err := errors.Join(err, ahead.Close(), stream.Close()); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("apply %s: %w", desc.Digest, err)
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Size: counted.n, Digest: digester.Digest()}, nil
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// decompress runs a blob through containerd's stream processors, as many as it
// takes to make a plain layer of it.
func decompress(ctx context.Context, mediaType string, r io.Reader, config diff.ApplyConfig) (io.ReadCloser, error) {
	p := diff.NewProcessorChain(mediaType, r)
	all := processors{p}
	for {
		next, err := diff.GetProcessor(ctx, p, config.ProcessorPayloads)
		if errors.Is(err, diff.ErrNoProcessor) {
			err = fmt.Errorf("%s: %w: %w", mediaType, err, errdefs.ErrNotImplemented)
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
