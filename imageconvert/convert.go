package imageconvert

import (
	"context"
	"fmt"
	"runtime"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/converter"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Compression of a layer.
type Compression string

// Gzip is for ToTar only.
const (
	None Compression = "none"
	Gzip Compression = "gzip"
	Zstd Compression = "zstd"
)

// Options say what images are converted to.
type Options struct {
	// Compression of the new layer; "" is None.
	Compression Compression
	// ZstdLevel is the level of the zstd program that is meant; 0 is its default,
	// 3. There are four levels in fact (klauspost/compress/zstd).
	ZstdLevel int
	// Concurrency is how many processors compress; 0 is all. It has no influence
	// on the result.
	Concurrency int
	// Index makes an index of the ordinary manifests and, behind them, the DAXFS
	// ones, whose platform has OSFeature. ToDaxfs only.
	Index bool
	// Platform says which images of an index are converted; the others are left
	// out. nil is the host's.
	Platform platforms.MatchComparer
	// Prefetch lists hot files (mkdaxfs.ReadPrefetch), which lie first and together.
	// ToDaxfs only, and not for images that are DAXFS images already.
	Prefetch []string
	// SpoolDir is where a temporary file without a name is, as large as the
	// unpacked image; "" is os.TempDir.
	SpoolDir string
}

func (o *Options) fill(allowed ...Compression) error {
	if o.Compression == "" {
		o.Compression = None
	}
	if !slices.Contains(allowed, o.Compression) {
		return fmt.Errorf("compression %q, want one of %q: %w", o.Compression, allowed, errdefs.ErrInvalidArgument)
	}
	if o.ZstdLevel < 0 || o.ZstdLevel > 22 {
		return fmt.Errorf("zstd level %d, want 1 to 22: %w", o.ZstdLevel, errdefs.ErrInvalidArgument)
	}
	if o.Concurrency <= 0 {
		o.Concurrency = runtime.GOMAXPROCS(0)
	}
	if o.Platform == nil {
		o.Platform = platforms.DefaultStrict()
	}
	return nil
}

func (o *Options) level() zstd.EncoderLevel {
	if o.ZstdLevel == 0 {
		return zstd.SpeedDefault
	}
	return zstd.EncoderLevelFromZstd(o.ZstdLevel)
}

// ToDaxfs returns a function for converter.WithIndexConvertFunc that makes one
// DAXFS image of the layers of an image. The same input makes the same bytes.
// Manifest, configuration and index become OCI's, whatever they were; the
// configuration keeps what it says but for layers and history. Images that are
// such already are left as they are (the function returns nil), or compressed
// anew.
//
// The function wraps errdefs.ErrNotFound for a layer that the content store does
// not have, ErrNotImplemented for encrypted and foreign layers, ErrDataLoss for
// one that is not what the configuration says, and the errors of package convert.
// What it has written by then is for containerd's garbage collection, and small.
func ToDaxfs(o Options) converter.ConvertFunc {
	return func(ctx context.Context, cs content.Store, desc ocispec.Descriptor) (*ocispec.Descriptor, error) {
		if err := o.fill(None, Zstd); err != nil {
			return nil, fmt.Errorf("convert to DAXFS: %w", err)
		}
		c := &conversion{Options: o, cs: cs, manifest: func(ctx context.Context, cs content.Store, m *image) (*ocispec.Descriptor, error) {
			return m.toDaxfs(ctx, cs, o)
		}}
		out, err := c.convert(ctx, desc)
		if err != nil {
			return nil, fmt.Errorf("convert to DAXFS: %w", err)
		}
		return out, nil
	}
}

// conversion is one of an image or of an index of images.
type conversion struct {
	Options
	cs content.Store
	// manifest converts one image; nil: it is as wanted already.
	manifest func(context.Context, content.Store, *image) (*ocispec.Descriptor, error)
}

func (c *conversion) convert(ctx context.Context, desc ocispec.Descriptor) (*ocispec.Descriptor, error) {
	switch {
	case images.IsIndexType(desc.MediaType):
		return c.index(ctx, desc)
	case images.IsManifestType(desc.MediaType):
		m, err := readImage(ctx, c.cs, desc)
		if err != nil {
			return nil, err
		}
		made, err := c.manifest(ctx, c.cs, m)
		if err != nil || !c.Index {
			return made, err
		}
		if made == nil {
			return nil, fmt.Errorf("image %s is a DAXFS image, and there is no ordinary one to put beside it: %w", desc.Digest, errdefs.ErrInvalidArgument)
		}
		p := platforms.Normalize(m.config.Platform)
		desc.Platform = &p
		return c.writeIndex(ctx, desc, &ocispec.Index{}, []ocispec.Descriptor{desc}, []ocispec.Descriptor{*made})
	}
	return nil, fmt.Errorf("%s has media type %q, want an image or an index of images: %w", desc.Digest, desc.MediaType, errdefs.ErrInvalidArgument)
}

// index converts the images of an index that are for the platform.
func (c *conversion) index(ctx context.Context, desc ocispec.Descriptor) (*ocispec.Descriptor, error) {
	var in ocispec.Index
	if _, err := converter.ReadJSON(ctx, c.cs, &in, desc); err != nil {
		return nil, fmt.Errorf("read index %s: %w", desc.Digest, err)
	}
	var before, made []ocispec.Descriptor
	var have []string
	changed := images.IsDockerType(desc.MediaType)
	for _, d := range in.Manifests {
		m, err := c.candidate(ctx, d)
		if err != nil {
			return nil, err
		}
		if m == nil {
			changed = true
			continue
		}
		have = append(have, platforms.FormatAll(m.platform()))
		if !c.Platform.Match(m.platform()) {
			changed = true
			continue
		}
		out, err := c.manifest(ctx, c.cs, m)
		switch {
		case err != nil:
			return nil, err
		case out != nil:
			before, made, changed = append(before, d), append(made, *out), true
		case !c.Index: // kept
			made = append(made, d)
		}
	}
	if len(made) == 0 {
		return nil, fmt.Errorf("index %s has no image for the platform; it has %q: %w", desc.Digest, have, errdefs.ErrNotFound)
	}
	if !changed {
		return nil, nil
	}
	if !c.Index {
		before = nil
	}
	return c.writeIndex(ctx, desc, &in, before, made)
}

// candidate reads an image of an index; nil: it is none, or not for the platform
// and not here.
func (c *conversion) candidate(ctx context.Context, d ocispec.Descriptor) (*image, error) {
	if !images.IsManifestType(d.MediaType) || d.Platform != nil && d.Platform.OS == "unknown" { // attestations
		return nil, nil
	}
	if d.Platform != nil && !c.Platform.Match(*d.Platform) {
		return &image{desc: d}, nil
	}
	m, err := readImage(ctx, c.cs, d)
	if err == nil && !images.IsConfigType(m.manifest.Config.MediaType) {
		return nil, nil // an artifact
	}
	return m, err
}

// writeIndex writes an index of manifests, the ordinary ones first: clients that
// know nothing of os.features take the first that fits.
func (c *conversion) writeIndex(ctx context.Context, desc ocispec.Descriptor, in *ocispec.Index, ordinary, made []ocispec.Descriptor) (*ocispec.Descriptor, error) {
	out := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		ArtifactType: in.ArtifactType, Subject: in.Subject, Annotations: in.Annotations,
		Manifests: append(ordinary, made...),
	}
	labels := make(map[string]string)
	for i, d := range out.Manifests {
		labels[fmt.Sprintf("containerd.io/gc.ref.content.m.%d", i)] = d.Digest.String()
	}
	return writeJSON(ctx, c.cs, &out, ocispec.Descriptor{MediaType: out.MediaType, Annotations: desc.Annotations}, labels)
}

func writeJSON(ctx context.Context, cs content.Store, v any, like ocispec.Descriptor, labels map[string]string) (*ocispec.Descriptor, error) {
	d, err := converter.WriteJSON(ctx, cs, v, like, labels)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", like.MediaType, err)
	}
	return d, nil
}
