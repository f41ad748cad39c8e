package imageconvert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images/converter"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// ToTar returns a function for converter.WithIndexConvertFunc that puts one tar
// layer in the place of a DAXFS image, with all that the image says of its files;
// layers on top of it stay. The same input makes the same bytes. Images without
// one are left as they are (the function returns nil).
//
// The function wraps errdefs.ErrNotFound for a layer that the content store does
// not have, disk.ErrCorrupt and disk.ErrUnsupported for one that is not sound or
// not for this program, and errdefs.ErrNotImplemented for files that a layer
// archive cannot say: sockets, names that begin with ".wh.", attributes whose name
// has a '='.
func ToTar(o Options) converter.ConvertFunc {
	return func(ctx context.Context, cs content.Store, desc ocispec.Descriptor) (*ocispec.Descriptor, error) {
		if err := o.fill(None, Gzip, Zstd); err != nil {
			return nil, fmt.Errorf("convert to tar: %w", err)
		}
		o.Index = false
		c := &conversion{Options: o, cs: cs, manifest: func(ctx context.Context, cs content.Store, m *image) (*ocispec.Descriptor, error) {
			return m.toTar(ctx, cs, o)
		}}
		out, err := c.convert(ctx, desc)
		if err != nil {
			return nil, fmt.Errorf("convert to tar: %w", err)
		}
		return out, nil
	}
}

// toTar converts one image.
func (m *image) toTar(ctx context.Context, cs content.Store, o Options) (*ocispec.Descriptor, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	if m.isTar() {
		return nil, nil
	}
	fail := func(err error) (*ocispec.Descriptor, error) {
		return nil, fmt.Errorf("image %s: layer 1 of %d (%s): %w", m.desc.Digest, len(m.manifest.Layers), m.manifest.Layers[0].Digest, err)
	}
	data, tree, closer, err := m.openImage(ctx, cs, o)
	if err != nil {
		return fail(err)
	}
	defer closer.Close()
	types := map[Compression]string{None: ocispec.MediaTypeImageLayer, Gzip: ocispec.MediaTypeImageLayerGzip, Zstd: ocispec.MediaTypeImageLayerZstd}
	b := &blob{ref: fmt.Sprintf("convert-tar-%s-%s", o.Compression, m.desc.Digest), mediaType: types[o.Compression], options: o}
	d, diffID, err := b.write(ctx, cs, func(w io.Writer) error { return writeTar(ctx, w, tree, data) })
	if err != nil {
		return fail(err)
	}
	l := &newLayer{Descriptor: d, diffID: diffID, history: ocispec.History{
		Created: m.config.Created, CreatedBy: createdByExport, Comment: "a DAXFS image as one layer",
	}}
	return m.with(ctx, cs, l, 1, m.features(false))
}

// openImage opens and proves the DAXFS image that is the lowest layer. A
// compressed one is put into a temporary file first, since an archive has its
// files in another order.
func (m *image) openImage(ctx context.Context, cs content.Store, o Options) (_ io.ReaderAt, _ *mkdaxfs.Tree, _ io.Closer, err error) {
	d := m.manifest.Layers[0]
	r, err := Open(ctx, cs, d)
	if err != nil {
		return nil, nil, nil, missing(err)
	}
	defer r.Close()
	sum := digest.Canonical.Digester()
	var at io.ReaderAt
	var closer io.Closer
	var size int64
	if d.MediaType == MediaTypeLayerZstd {
		f, e := os.CreateTemp(o.SpoolDir, ".daxfs-*")
		if e != nil {
			return nil, nil, nil, fmt.Errorf("create temporary file: %w", e)
		}
		// Unlinked at once: nothing is left behind, whatever happens.
		e = os.Remove(f.Name())
		if e == nil {
			size, e = io.Copy(f, io.TeeReader(r, sum.Hash()))
		}
		at, closer, err = f, f, e
	} else {
		ra, e := cs.ReaderAt(ctx, d)
		if e != nil {
			return nil, nil, nil, missing(e)
		}
		size, e = io.Copy(sum.Hash(), r)
		at, closer, err = ra, ra, e
	}
	var img *mkdaxfs.Image
	var tree *mkdaxfs.Tree
	if err == nil {
		err = compareDiffID(sum.Digest(), m.config.RootFS.DiffIDs[0])
	}
	if err == nil {
		img, err = mkdaxfs.Open(at, size)
	}
	if err == nil && (img.IsLayer() || img.Superblock().Compat&disk.CompatPool != 0) {
		err = fmt.Errorf("image is part of a pool and not complete: %w", disk.ErrUnsupported)
	}
	if err == nil {
		tree, _, err = mkdaxfs.CheckedTree(img, 0)
	}
	if err != nil {
		return nil, nil, nil, errors.Join(err, closer.Close())
	}
	return at, tree, closer, nil
}
