package imageconvert

import (
	"context"
	_ "crypto/sha256" // digests of blobs
	_ "crypto/sha512"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/converter"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/daxfs/containerd-daxfs/convert"
)

// image is a manifest with its configuration.
type image struct {
	desc     ocispec.Descriptor
	manifest ocispec.Manifest
	config   ocispec.Image
	// raw is the configuration with what the specification does not know.
	raw converter.DualConfig
}

func readImage(ctx context.Context, cs content.Store, desc ocispec.Descriptor) (*image, error) {
	m := &image{desc: desc}
	if _, err := converter.ReadJSON(ctx, cs, &m.manifest, desc); err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", desc.Digest, err)
	}
	c := m.manifest.Config
	if !images.IsConfigType(c.MediaType) {
		return m, nil
	}
	for _, v := range []any{&m.config, &m.raw} {
		if _, err := converter.ReadJSON(ctx, cs, v, c); err != nil {
			return nil, fmt.Errorf("read configuration %s: %w", c.Digest, err)
		}
	}
	return m, nil
}

// platform is what the index says, else the configuration.
func (m *image) platform() ocispec.Platform {
	if m.desc.Platform != nil {
		return platforms.Normalize(*m.desc.Platform)
	}
	return platforms.Normalize(m.config.Platform)
}

// check reports whether the image has layers that can be read.
func (m *image) check() error {
	fail := func(err error) error { return fmt.Errorf("image %s: %w", m.desc.Digest, err) }
	if mt := m.manifest.Config.MediaType; !images.IsConfigType(mt) {
		return fail(fmt.Errorf("configuration of type %q, want that of a container: %w", mt, errdefs.ErrInvalidArgument))
	}
	layers, diffIDs := m.manifest.Layers, m.config.RootFS.DiffIDs
	if len(layers) != len(diffIDs) {
		return fail(fmt.Errorf("%d layers, and %d diffIDs in its configuration: %w", len(layers), len(diffIDs), errdefs.ErrInvalidArgument))
	}
	if len(layers) == 0 {
		return fail(fmt.Errorf("no layers: %w", errdefs.ErrInvalidArgument))
	}
	for i, l := range layers {
		if err := checkLayer(l.MediaType, i); err != nil {
			return fail(fmt.Errorf("layer %d of %d (%s): %w", i+1, len(layers), l.Digest, err))
		}
		if err := diffIDs[i].Validate(); err != nil {
			return fail(fmt.Errorf("diffID %d of %d: %w: %w", i+1, len(layers), err, errdefs.ErrInvalidArgument))
		}
	}
	return nil
}

// checkLayer reports whether a layer can be read at a place, 0 the lowest.
func checkLayer(mediaType string, place int) error {
	if IsLayer(mediaType) {
		if place > 0 {
			return fmt.Errorf("media type %q: a DAXFS image must be the lowest layer: %w", mediaType, errdefs.ErrInvalidArgument)
		}
		return nil
	}
	if images.IsNonDistributable(mediaType) {
		return fmt.Errorf("media type %q: a foreign layer, which must not be distributed: %w", mediaType, errdefs.ErrNotImplemented)
	}
	return convert.CheckLayerType(mediaType)
}

// isDaxfs reports whether the image is one DAXFS image.
func (m *image) isDaxfs() bool {
	return len(m.manifest.Layers) == 1 && IsLayer(m.manifest.Layers[0].MediaType)
}

// isTar reports whether the image has no DAXFS layer.
func (m *image) isTar() bool {
	return !slices.ContainsFunc(m.manifest.Layers, func(d ocispec.Descriptor) bool { return IsLayer(d.MediaType) })
}

// newLayer is a layer that takes the place of others.
type newLayer struct {
	ocispec.Descriptor
	diffID  digest.Digest
	history ocispec.History
}

// with writes the image with other layers: the new one, and those of the old
// ones above it, from index above on. features are the platform's os.features.
func (m *image) with(ctx context.Context, cs content.Store, l *newLayer, above int, features []string) (*ocispec.Descriptor, error) {
	layers := append([]ocispec.Descriptor{l.Descriptor}, m.manifest.Layers[above:]...)
	diffIDs := append([]digest.Digest{l.diffID}, m.config.RootFS.DiffIDs[above:]...)
	config, err := m.newConfig(l, diffIDs, above, features)
	if err != nil {
		return nil, err
	}
	cd, err := writeJSON(ctx, cs, config, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Annotations: m.manifest.Config.Annotations}, nil)
	if err != nil {
		return nil, err
	}
	out := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: m.manifest.ArtifactType, Config: *cd, Layers: layers,
		Subject: m.manifest.Subject, Annotations: m.manifest.Annotations,
	}
	labels := map[string]string{"containerd.io/gc.ref.content.config": cd.Digest.String()}
	for i, d := range layers {
		labels[fmt.Sprintf("containerd.io/gc.ref.content.l.%d", i)] = d.Digest.String()
	}
	like := ocispec.Descriptor{MediaType: out.MediaType, Annotations: m.desc.Annotations}
	if m.desc.Platform != nil || len(features) > 0 {
		p := m.platform()
		p.OSFeatures = features
		like.Platform = &p
	}
	return writeJSON(ctx, cs, &out, like, labels)
}

// newConfig is the configuration with other layers. History keeps what it says
// of the old ones, as steps without a layer.
func (m *image) newConfig(l *newLayer, diffIDs []digest.Digest, above int, features []string) (converter.DualConfig, error) {
	config := converter.DualConfig{}
	for k, v := range m.raw {
		config[k] = v
	}
	history, err := m.newHistory(l, above)
	if err != nil {
		return nil, err
	}
	set := map[string]any{
		"rootfs":  ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
		"history": history,
	}
	if len(features) > 0 {
		set["os.features"] = features
	} else {
		delete(config, "os.features")
	}
	for k, v := range set {
		b, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("write configuration: %w", err)
		}
		config[k] = (*json.RawMessage)(&b)
	}
	return config, nil
}

// step is an entry of the history with what the specification does not know.
type step map[string]*json.RawMessage

func (m *image) newHistory(l *newLayer, above int) ([]step, error) {
	var old []step
	if raw := m.raw["history"]; raw != nil {
		if err := json.Unmarshal(*raw, &old); err != nil {
			return nil, fmt.Errorf("read history of configuration %s: %w: %w", m.manifest.Config.Digest, err, errdefs.ErrInvalidArgument)
		}
	}
	b, err := json.Marshal(l.history)
	if err != nil {
		return nil, err
	}
	var added step
	if err := json.Unmarshal(b, &added); err != nil {
		return nil, err
	}
	yes := json.RawMessage("true")
	out, seen := []step(nil), 0
	for i, s := range old {
		if seen == above { // the rest is about layers that stay
			return append(append(out, added), old[i:]...), nil
		}
		if i >= len(m.config.History) || !m.config.History[i].EmptyLayer {
			seen++
		}
		var by string
		if raw := s["created_by"]; raw != nil {
			_ = json.Unmarshal(*raw, &by) // what is no text is not ours
		}
		if by == createdByConvert || by == createdByExport {
			continue // back and forth leaves no trace
		}
		s["empty_layer"] = &yes
		out = append(out, s)
	}
	return append(out, added), nil
}

// features are the platform's os.features with or without ours.
func (m *image) features(ours bool) []string {
	f := slices.DeleteFunc(slices.Clone(m.platform().OSFeatures), func(s string) bool { return s == OSFeature })
	if ours {
		f = append(f, OSFeature)
		slices.Sort(f)
	}
	return f
}
