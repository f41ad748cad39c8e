package convert

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// maxJSON bounds index, manifest and config. containerd takes 8 MiB.
	maxJSON = 8 << 20
	// maxIndexDepth bounds indexes inside indexes.
	maxIndexDepth = 8
	// containerdName is the annotation in which containerd's exports keep the
	// full name; ref.name has the tag only.
	containerdName = "io.containerd.image.name"
)

// ErrDigest is wrapped by errors about blobs whose bytes are not what their
// name, or the image's config, says.
var ErrDigest = fmt.Errorf("digest mismatch: %w", errdefs.ErrDataLoss)

// OCIOptions choose one image of a layout.
type OCIOptions struct {
	// Ref is a name (annotation org.opencontainers.image.ref.name, or
	// containerd's io.containerd.image.name) or a digest. It may be empty if
	// the layout has one image only.
	Ref string
	// Platform chooses among the manifests of a name. Nil is the host. A
	// manifest named by its digest need not match.
	Platform platforms.MatchComparer
}

// OCIImage is one image of an OCI image layout directory (OCI image-spec,
// image-layout.md). Manifest and config were verified; layers are as they are
// read.
type OCIImage struct {
	Manifest ocispec.Descriptor
	Platform ocispec.Platform
	Layers   []ocispec.Descriptor
	DiffIDs  []digest.Digest

	dir string
}

// OpenOCI chooses an image in the layout at dir.
func OpenOCI(dir string, opts OCIOptions) (*OCIImage, error) {
	l := layout{dir: dir, want: opts.Platform}
	if l.want == nil {
		l.want = platforms.Default()
	}
	var version ocispec.ImageLayout
	if err := l.file(ocispec.ImageLayoutFile, &version); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s is not an OCI image layout: %w: %w", dir, err, errdefs.ErrNotFound)
		}
		return nil, err
	}
	if version.Version != ocispec.ImageLayoutVersion {
		return nil, fmt.Errorf("%s: layout version %q, want %q: %w", dir, version.Version, ocispec.ImageLayoutVersion, errdefs.ErrNotImplemented)
	}
	var index ocispec.Index
	if err := l.file(ocispec.ImageIndexFile, &index); err != nil {
		return nil, err
	}
	start, err := l.named(index.Manifests, opts.Ref)
	if err != nil {
		return nil, err
	}
	for _, d := range start {
		if err := l.collect(d, 0); err != nil {
			return nil, err
		}
	}
	return l.choose()
}

// layout collects the manifests from which to choose.
type layout struct {
	dir   string
	want  platforms.MatchComparer
	exact digest.Digest // of the reference: taken whatever its platform
	found []candidate
	seen  map[digest.Digest]bool
}

type candidate struct {
	desc     ocispec.Descriptor
	platform ocispec.Platform
	manifest ocispec.Manifest
	config   ocispec.Image
}

// file decodes a JSON file of the layout that has no digest.
func (l *layout) file(name string, v any) error {
	f, err := os.Open(filepath.Join(l.dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxJSON+1))
	if err != nil {
		return fmt.Errorf("read %s: %w", f.Name(), err)
	}
	if len(b) > maxJSON {
		return fmt.Errorf("read %s: more than %d bytes: %w", f.Name(), maxJSON, errdefs.ErrInvalidArgument)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read %s: %w: %w", f.Name(), err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// named returns the descriptors of the top index that ref means.
func (l *layout) named(all []ocispec.Descriptor, ref string) ([]ocispec.Descriptor, error) {
	if dgst, err := digest.Parse(ref); err == nil {
		l.exact = dgst
		for _, d := range all {
			if d.Digest == dgst {
				return []ocispec.Descriptor{d}, nil
			}
		}
		// Of an image inside an index: read all, and keep that one.
		for _, d := range all {
			if err := l.collectDigest(d, dgst, 0); err != nil {
				return nil, err
			}
		}
		if len(l.found) == 0 {
			return nil, fmt.Errorf("%s: no image %s: %w", l.dir, ref, errdefs.ErrNotFound)
		}
		return nil, nil
	}
	var out []ocispec.Descriptor
	names := make(map[string]bool)
	for _, d := range all {
		name, full := d.Annotations[ocispec.AnnotationRefName], d.Annotations[containerdName]
		if ref == "" || ref == name || ref == full {
			out = append(out, d)
		}
		if full != "" {
			name = full
		}
		names[name] = true
	}
	var list []string
	for n := range names {
		list = append(list, fmt.Sprintf("%q", n))
	}
	sort.Strings(list)
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: no image %q; it has %s: %w", l.dir, ref, orNone(list), errdefs.ErrNotFound)
	}
	if ref == "" && !alternatives(out) {
		return nil, fmt.Errorf("%s: has %d images, choose one by name or digest: %s: %w", l.dir, len(out), strings.Join(list, ", "), errdefs.ErrInvalidArgument)
	}
	return out, nil
}

// alternatives reports whether the descriptors are one image, or one for
// several platforms.
func alternatives(ds []ocispec.Descriptor) bool {
	same, byPlatform := true, true
	for _, d := range ds {
		same = same && d.Digest == ds[0].Digest
		byPlatform = byPlatform && d.Platform != nil &&
			d.Annotations[ocispec.AnnotationRefName] == ds[0].Annotations[ocispec.AnnotationRefName]
	}
	return same || byPlatform
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

// collect reads a manifest, or the manifests of an index that may match.
func (l *layout) collect(d ocispec.Descriptor, depth int) error {
	if l.seen[d.Digest] {
		return nil
	}
	if l.seen == nil {
		l.seen = make(map[digest.Digest]bool)
	}
	l.seen[d.Digest] = true
	switch {
	case images.IsIndexType(d.MediaType):
		index, err := l.index(d, depth)
		if err != nil {
			return err
		}
		for _, sub := range index.Manifests {
			if err := l.collect(sub, depth+1); err != nil {
				return err
			}
		}
	case images.IsManifestType(d.MediaType):
		// A layout may hold other platforms' manifests by name only.
		if d.Platform != nil && d.Digest != l.exact && !l.want.Match(*d.Platform) {
			l.found = append(l.found, candidate{desc: d, platform: *d.Platform})
			return nil
		}
		return l.manifest(d)
	default:
		// Artifacts, signatures and the like.
	}
	return nil
}

func (l *layout) collectDigest(d ocispec.Descriptor, want digest.Digest, depth int) error {
	if d.Digest == want && images.IsManifestType(d.MediaType) {
		return l.manifest(d)
	}
	if !images.IsIndexType(d.MediaType) {
		return nil
	}
	index, err := l.index(d, depth)
	if err != nil {
		return err
	}
	for _, sub := range index.Manifests {
		if sub.Digest == want && images.IsIndexType(sub.MediaType) {
			return l.collect(sub, depth+1)
		}
		if err := l.collectDigest(sub, want, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (l *layout) index(d ocispec.Descriptor, depth int) (*ocispec.Index, error) {
	if depth > maxIndexDepth {
		return nil, fmt.Errorf("index %s: more than %d indexes inside each other: %w", d.Digest, maxIndexDepth, errdefs.ErrInvalidArgument)
	}
	var index ocispec.Index
	if err := l.json("index", d, &index); err != nil {
		return nil, err
	}
	return &index, nil
}

func (l *layout) manifest(d ocispec.Descriptor) error {
	c := candidate{desc: d}
	if err := l.json("manifest", d, &c.manifest); err != nil {
		return err
	}
	if !images.IsConfigType(c.manifest.Config.MediaType) {
		return nil // an artifact in the form of an image
	}
	if err := l.json("config", c.manifest.Config, &c.config); err != nil {
		return err
	}
	c.platform = platforms.Normalize(c.config.Platform)
	if d.Platform != nil {
		c.platform = *d.Platform
	}
	l.found = append(l.found, c)
	return nil
}

// choose takes the best candidate for the platform.
func (l *layout) choose() (*OCIImage, error) {
	var best *candidate
	var have []string
	for i := range l.found {
		c := &l.found[i]
		// A config that names no platform fits any.
		fits := c.desc.Digest == l.exact || c.platform.OS == "" && c.platform.Architecture == ""
		if c.platform.OS != "unknown" { // BuildKit's attestations
			have = append(have, platforms.Format(c.platform))
		}
		if !fits && !l.want.Match(c.platform) {
			continue
		}
		if best == nil || l.want.Less(c.platform, best.platform) {
			best = c
		}
	}
	if best == nil {
		return nil, fmt.Errorf("%s: no image for this platform; it has %s: %w", l.dir, orNone(have), errdefs.ErrNotFound)
	}
	img := &OCIImage{
		Manifest: best.desc, Platform: best.platform, dir: l.dir,
		Layers: best.manifest.Layers, DiffIDs: best.config.RootFS.DiffIDs,
	}
	if len(img.Layers) != len(img.DiffIDs) {
		return nil, fmt.Errorf("manifest %s has %d layers, its config %s %d diffIDs: %w",
			img.Manifest.Digest, len(img.Layers), best.manifest.Config.Digest, len(img.DiffIDs), errdefs.ErrInvalidArgument)
	}
	for i, d := range img.Layers {
		if err := CheckLayerType(d.MediaType); err != nil {
			return nil, fmt.Errorf("layer %d of %d (%s): %w", i+1, len(img.Layers), d.Digest, err)
		}
		if err := img.DiffIDs[i].Validate(); err != nil {
			return nil, fmt.Errorf("config %s: diffID %d: %w: %w", best.manifest.Config.Digest, i+1, err, errdefs.ErrInvalidArgument)
		}
	}
	return img, nil
}
