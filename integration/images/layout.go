package images

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Compression of a layer blob.
type Compression int

const (
	None Compression = iota
	Gzip
	Zstd
)

// Layer is a blob in a layout, with the digest of its uncompressed tar.
type Layer struct {
	ocispec.Descriptor
	DiffID digest.Digest
}

// Layout is an OCI image layout directory that holds one image, tagged "latest".
type Layout struct{ Dir string }

func newLayout(dir string) (*Layout, error) {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return nil, err
	}
	l := &Layout{dir}
	return l, l.writeJSON(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
}

// BlobPath returns where the blob of a digest lies.
func (l *Layout) BlobPath(d digest.Digest) string {
	return filepath.Join(l.Dir, "blobs", d.Algorithm().String(), d.Encoded())
}

// addLayer stores what write produces, compressed, as a layer blob.
func (l *Layout) addLayer(c Compression, write func(io.Writer) error) (Layer, error) {
	f, err := os.CreateTemp(filepath.Join(l.Dir, "blobs"), "new-")
	if err != nil {
		return Layer{}, err
	}
	defer os.Remove(f.Name()) // fails, rightly, once the blob has its name
	defer f.Close()

	blob := &hashWriter{w: f, h: sha256.New()}
	var (
		z     io.WriteCloser
		media string
	)
	switch c {
	case Gzip:
		z, media = gzip.NewWriter(blob), ocispec.MediaTypeImageLayerGzip
	case Zstd:
		// One encoder thread: the frame must not depend on the machine.
		if z, err = zstd.NewWriter(blob, zstd.WithEncoderConcurrency(1)); err != nil {
			return Layer{}, err
		}
		media = ocispec.MediaTypeImageLayerZstd
	default:
		z, media = nopCloser{blob}, ocispec.MediaTypeImageLayer
	}
	diff := &hashWriter{w: z, h: sha256.New()}
	if err := write(diff); err != nil {
		return Layer{}, err
	}
	if err := z.Close(); err != nil {
		return Layer{}, err
	}
	if err := f.Chmod(0o644); err != nil {
		return Layer{}, err
	}
	layer := Layer{
		Descriptor: ocispec.Descriptor{MediaType: media, Digest: blob.digest(), Size: blob.n},
		DiffID:     diff.digest(),
	}
	return layer, os.Rename(f.Name(), l.BlobPath(layer.Digest))
}

// share puts a blob of another layout into this one, as images that share a
// base share its layers in a registry.
func (l *Layout) share(from *Layout, layers []Layer) error {
	for _, layer := range layers {
		err := os.Link(from.BlobPath(layer.Digest), l.BlobPath(layer.Digest))
		if err != nil && !os.IsExist(err) {
			return err
		}
	}
	return nil
}

// finish is finishWith for an image that only says what it runs.
func (l *Layout) finish(layers []Layer, cmd []string, otherPlatform []Layer) error {
	return l.finishWith(layers, ocispec.ImageConfig{Cmd: cmd}, otherPlatform)
}

// finishWith writes config, manifest and index. With otherPlatform the tag points
// at an image index in which that manifest, of another architecture, comes first.
func (l *Layout) finishWith(layers []Layer, c ocispec.ImageConfig, otherPlatform []Layer) error {
	c.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	m, err := l.manifest(layers, c, runtime.GOARCH)
	if err != nil {
		return err
	}
	if otherPlatform != nil {
		arch := "arm64"
		if runtime.GOARCH == arch {
			arch = "amd64"
		}
		other, err := l.manifest(otherPlatform, c, arch)
		if err != nil {
			return err
		}
		index := ocispec.Index{
			Versioned: specs.Versioned{SchemaVersion: 2},
			MediaType: ocispec.MediaTypeImageIndex,
			Manifests: []ocispec.Descriptor{other, m},
		}
		if m, err = l.addJSON(ocispec.MediaTypeImageIndex, index); err != nil {
			return err
		}
	}
	m.Annotations = map[string]string{ocispec.AnnotationRefName: "latest"}
	return l.writeJSON(ocispec.ImageIndexFile, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{m},
	})
}

func (l *Layout) manifest(layers []Layer, c ocispec.ImageConfig, arch string) (ocispec.Descriptor, error) {
	created := time.Unix(1700000000, 0).UTC()
	config := ocispec.Image{
		Created:  &created,
		Platform: ocispec.Platform{OS: "linux", Architecture: arch},
		Config:   c,
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
	}
	for _, layer := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, layer.DiffID)
		m.Layers = append(m.Layers, layer.Descriptor)
	}
	var err error
	if m.Config, err = l.addJSON(ocispec.MediaTypeImageConfig, config); err != nil {
		return ocispec.Descriptor{}, err
	}
	d, err := l.addJSON(ocispec.MediaTypeImageManifest, m)
	d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
	return d, err
}

// Layers returns the layers of the image for this machine's architecture, lowest first.
func (l *Layout) Layers() ([]Layer, error) {
	var index ocispec.Index
	if err := readJSON(filepath.Join(l.Dir, ocispec.ImageIndexFile), &index); err != nil {
		return nil, err
	}
	if len(index.Manifests) != 1 {
		return nil, fmt.Errorf("%s: %d images, want 1", l.Dir, len(index.Manifests))
	}
	m := index.Manifests[0]
	for m.MediaType == ocispec.MediaTypeImageIndex {
		if err := readJSON(l.BlobPath(m.Digest), &index); err != nil {
			return nil, err
		}
		for _, m = range index.Manifests {
			if m.Platform != nil && m.Platform.Architecture == runtime.GOARCH {
				break
			}
		}
	}
	var (
		manifest ocispec.Manifest
		config   ocispec.Image
		layers   []Layer
	)
	if err := readJSON(l.BlobPath(m.Digest), &manifest); err != nil {
		return nil, err
	}
	if err := readJSON(l.BlobPath(manifest.Config.Digest), &config); err != nil {
		return nil, err
	}
	for i, d := range manifest.Layers {
		layers = append(layers, Layer{d, config.RootFS.DiffIDs[i]})
	}
	return layers, nil
}

// Open returns the uncompressed tar of a layer.
func (l *Layout) Open(layer Layer) (io.ReadCloser, error) {
	f, err := os.Open(l.BlobPath(layer.Digest))
	if err != nil {
		return nil, err
	}
	switch layer.MediaType {
	case ocispec.MediaTypeImageLayerGzip:
		z, err := gzip.NewReader(f)
		return readCloser{z, f}, err
	case ocispec.MediaTypeImageLayerZstd:
		z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return readCloser{z.IOReadCloser(), f}, nil
	}
	return f, nil
}

func (l *Layout) addJSON(media string, v any) (ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: media, Digest: digest.FromBytes(b), Size: int64(len(b))}
	return d, os.WriteFile(l.BlobPath(d.Digest), b, 0o644)
}

func (l *Layout) writeJSON(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.Dir, name), b, 0o644)
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.NewDecoder(bytes.NewReader(b)).Decode(v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

type hashWriter struct {
	w io.Writer
	h hash.Hash
	n int64
}

func (h *hashWriter) Write(p []byte) (int, error) {
	n, err := h.w.Write(p)
	h.h.Write(p[:n])
	h.n += int64(n)
	return n, err
}

func (h *hashWriter) digest() digest.Digest { return digest.NewDigest(digest.SHA256, h.h) }

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

type readCloser struct {
	io.Reader
	io.Closer
}
