// Package differ unpacks layers from containerd's content store straight into the
// pool, without a mount and without files: containerd's proxy plugin of type "diff".
package differ

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/daxfs/containerd-daxfs/convert"
	"github.com/daxfs/containerd-daxfs/imageconvert"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// Differ implements diff.Applier for the mounts of our snapshots that layers are
// unpacked into. It may be called by several goroutines.
type Differ struct {
	sn    *snapshotter.Snapshotter
	blobs *Blobs
}

var _ diff.Applier = (*Differ)(nil)

// New returns a differ that reads blobs and unpacks into the pool of sn.
func New(sn *snapshotter.Snapshotter, blobs *Blobs) *Differ { return &Differ{sn, blobs} }

// Apply implements diff.Applier. The descriptor that it returns is of the layer
// without compression: whoever asked compares its digest with the diffID. There
// are no options that concern us: payloads are for stream processors, which our
// daemon has none of.
//
// NotImplemented: the mounts are not of a snapshot of ours that takes a layer, or
// nobody here can decompress the media type; containerd's next differ, if it has
// one, takes the layer. NotFound: the namespace does not have the blob. After any
// error nothing of the layer is left.
func (d *Differ) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, _ ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	applied, err := d.apply(ctx, desc, mounts)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("apply %s: %w", desc.Digest, err)
	}
	return applied, nil
}

func (d *Differ) apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount) (ocispec.Descriptor, error) {
	// The call's namespace goes on to containerd.
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	ctx = namespaces.WithNamespace(ctx, ns)
	u, err := d.sn.Unpack(ctx, mounts)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return d.blobs.Unpack(ctx, desc, u)
}

// Unpack reads a layer into u, and returns the descriptor that Apply does.
func (b *Blobs) Unpack(ctx context.Context, desc ocispec.Descriptor, u *snapshotter.Unpack) (ocispec.Descriptor, error) {
	if imageconvert.IsLayer(desc.MediaType) {
		return b.unpackImage(ctx, desc, u)
	}
	if err := convert.CheckLayerType(desc.MediaType); err != nil {
		return ocispec.Descriptor{}, err
	}
	blob, err := b.ReaderAt(ctx, desc)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	diffID, size, err := u.Apply(ctx, content.NewReader(blob))
	if err := errors.Join(err, blob.Close()); err != nil {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Size: size, Digest: diffID}, nil
}
