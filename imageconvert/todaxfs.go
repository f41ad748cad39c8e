package imageconvert

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/daxfs/containerd-daxfs/convert"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// What the history of a converted image says. A date would not be reproducible;
// the image's own stands.
const (
	createdByConvert = "ctr-daxfs image convert --daxfs"
	createdByExport  = "ctr-daxfs image export-oci"
)

// toDaxfs converts one image.
func (m *image) toDaxfs(ctx context.Context, cs content.Store, o Options) (*ocispec.Descriptor, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	features := m.features(o.Index)
	layers := m.manifest.Layers
	write := func(w io.Writer) error { return m.flatten(ctx, cs, o, w) }
	if m.isDaxfs() {
		if o.Index || layers[0].MediaType == layerType(o.Compression) {
			return nil, nil
		}
		write = func(w io.Writer) error { return m.copyImage(ctx, cs, w) }
	}
	b := &blob{ref: fmt.Sprintf("convert-daxfs-%s-%s", o.Compression, m.desc.Digest), mediaType: layerType(o.Compression), options: o}
	head := &header{}
	d, diffID, err := b.write(ctx, cs, func(w io.Writer) error { return write(io.MultiWriter(head, w)) })
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", m.desc.Digest, err)
	}
	sb, err := disk.DecodeSuperblock(head.b)
	if err != nil {
		return nil, err
	}
	d.Annotations = annotations(sb)
	l := &newLayer{Descriptor: d, diffID: diffID, history: ocispec.History{
		Created: m.config.Created, CreatedBy: createdByConvert,
		Comment: "all layers, flattened into one DAXFS image",
	}}
	return m.with(ctx, cs, l, len(layers), features)
}

func layerType(c Compression) string {
	if c == Zstd {
		return MediaTypeLayerZstd
	}
	return MediaTypeLayer
}

// header keeps the superblock of what is written to it.
type header struct{ b []byte }

func (h *header) Write(p []byte) (int, error) {
	h.b = append(h.b, p[:min(len(p), disk.SuperblockSize-len(h.b))]...)
	return len(p), nil
}

// flatten writes the image of all layers.
func (m *image) flatten(ctx context.Context, cs content.Store, o Options, w io.Writer) error {
	b, err := mkdaxfs.NewStreamBuilder(o.SpoolDir, mkdaxfs.BuildOptions{Share: true, Prefetch: o.Prefetch})
	if err != nil {
		return err
	}
	defer func() { _ = b.Close() }() // of a file without a name
	trees := make([]*mkdaxfs.Tree, len(m.manifest.Layers))
	for i := range trees {
		if trees[i], err = m.layerTree(ctx, cs, i, b); err != nil {
			return fmt.Errorf("layer %d of %d (%s): %w", i+1, len(trees), m.manifest.Layers[i].Digest, err)
		}
	}
	tree, err := convert.Merge(trees)
	if err != nil {
		return err
	}
	stats, err := b.Stream(ctx, tree, w)
	if err != nil {
		return err
	}
	if p := stats.Prefetch; p != nil && p.Missing > 0 {
		// A list outlives the image that it was recorded on.
		log.G(ctx).WithField("missing", p.Missing).WithField("listed", p.Listed).WithField("first", p.FirstMissing).Warn("files of the prefetch list are not in the image")
	}
	return nil
}

// layerTree reads layer i and compares its diffID.
func (m *image) layerTree(ctx context.Context, cs content.Store, i int, store convert.Store) (tree *mkdaxfs.Tree, err error) {
	d, want := m.manifest.Layers[i], m.config.RootFS.DiffIDs[i]
	sum := want.Algorithm().Digester()
	if IsLayer(d.MediaType) {
		r, err := Open(ctx, cs, d)
		if err != nil {
			return nil, missing(err)
		}
		defer r.Close()
		tree, err = convert.FromImage(ctx, r, sum.Hash(), store, convert.ImageOptions{})
		if err != nil {
			return nil, err
		}
		return tree, compareDiffID(sum.Digest(), want)
	}
	ra, err := cs.ReaderAt(ctx, d)
	if err != nil {
		return nil, missing(err)
	}
	defer ra.Close()
	tree, warnings, err := convert.FromStream(ctx, content.NewReader(ra), sum.Hash(), store, convert.TarOptions{Verified: true, Lenient: true})
	if err != nil {
		return nil, err
	}
	for _, w := range warnings {
		log.G(ctx).WithField("layer", d.Digest).WithField("path", w.Path).WithField("reason", w.Reason).Warn("left out of a layer")
	}
	return tree, compareDiffID(sum.Digest(), want)
}

func compareDiffID(got, want digest.Digest) error {
	if got != want {
		return fmt.Errorf("uncompressed digest (diffID) is %s, the configuration says %s: %w", got, want, convert.ErrDigest)
	}
	return nil
}

// missing says what to do about a blob that is not there.
func missing(err error) error {
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("the content store does not keep the layer, \"ctr content fetch\" of the image brings it: %w", err)
	}
	return err
}

// copyImage writes the one DAXFS image that the image is, for another
// compression, proven.
func (m *image) copyImage(ctx context.Context, cs content.Store, w io.Writer) error {
	r, err := Open(ctx, cs, m.manifest.Layers[0])
	if err != nil {
		return missing(err)
	}
	defer r.Close()
	sum := digest.Canonical.Digester()
	if _, err := convert.FromImage(ctx, io.TeeReader(r, w), sum.Hash(), discard{}, convert.ImageOptions{}); err != nil {
		return err
	}
	return compareDiffID(sum.Digest(), m.config.RootFS.DiffIDs[0])
}

// discard is a convert.Store that keeps nothing.
type discard struct{}

func (discard) Put(_ context.Context, r io.Reader, size int64) (mkdaxfs.Extent, error) {
	_, err := io.CopyN(io.Discard, r, size)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return mkdaxfs.Extent{}, err
}
