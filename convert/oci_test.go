package convert

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// testLayout writes an OCI layout.
type testLayout struct {
	t     *testing.T
	dir   string
	index ocispec.Index
}

func newLayout(t *testing.T) *testLayout {
	l := &testLayout{t: t, dir: t.TempDir()}
	must(t, os.WriteFile(filepath.Join(l.dir, ocispec.ImageLayoutFile), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
	l.save()
	return l
}

func (l *testLayout) save() {
	b, err := json.Marshal(l.index)
	must(l.t, err)
	must(l.t, os.WriteFile(filepath.Join(l.dir, ocispec.ImageIndexFile), b, 0o644))
}

func (l *testLayout) add(d ocispec.Descriptor, name string) {
	if name != "" {
		d.Annotations = map[string]string{ocispec.AnnotationRefName: name}
	}
	l.index.Manifests = append(l.index.Manifests, d)
	l.save()
}

func (l *testLayout) path(d digest.Digest) string {
	return filepath.Join(l.dir, "blobs", d.Algorithm().String(), d.Encoded())
}

func (l *testLayout) blob(mediaType string, b []byte) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	must(l.t, os.MkdirAll(filepath.Dir(l.path(d.Digest)), 0o755))
	must(l.t, os.WriteFile(l.path(d.Digest), b, 0o644))
	return d
}

func (l *testLayout) json(mediaType string, v any) ocispec.Descriptor {
	b, err := json.Marshal(v)
	must(l.t, err)
	return l.blob(mediaType, b)
}

func gz(t testing.TB, b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, err := w.Write(b)
	must(t, err)
	must(t, w.Close())
	return buf.Bytes()
}

var amd64 = ocispec.Platform{OS: "linux", Architecture: "amd64"}

// image adds manifest, config and layers; change may break them first.
func (l *testLayout) image(p ocispec.Platform, change func(m *ocispec.Manifest, c *ocispec.Image), layers ...[]byte) ocispec.Descriptor {
	c := ocispec.Image{Platform: p}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	for _, b := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromBytes(b))
		m.Layers = append(m.Layers, l.blob(ocispec.MediaTypeImageLayerGzip, gz(l.t, b)))
	}
	if change != nil {
		change(&m, &c)
	}
	if m.Config.MediaType == "" {
		m.Config = l.json(ocispec.MediaTypeImageConfig, c)
	}
	return l.json(ocispec.MediaTypeImageManifest, m)
}

func (l *testLayout) open(ref string) (*OCIImage, error) {
	return OpenOCI(l.dir, OCIOptions{Ref: ref, Platform: platforms.Only(amd64)})
}

func (l *testLayout) tree(ref string) (string, error) {
	img, err := l.open(ref)
	if err != nil {
		return "", err
	}
	s := new(memStore)
	tree, _, err := img.Tree(context.Background(), s, TarOptions{}, nil)
	if err != nil {
		return "", err
	}
	return show(l.t, s, tree), nil
}

func TestOCIChoice(t *testing.T) {
	one := archive(t, mkd("./"), reg("one", ""))
	two := archive(t, mkd("./"), reg("two", ""))
	arm := archive(t, mkd("./"), reg("arm", ""))
	l := newLayout(t)
	dOne, dTwo := l.image(amd64, nil, one), l.image(amd64, nil, two)
	dArm := l.image(ocispec.Platform{OS: "linux", Architecture: "arm64"}, nil, arm)

	want := func(ref, name string) {
		t.Helper()
		got, err := l.tree(ref)
		if err != nil || !strings.Contains(got, name+` ""`) {
			t.Errorf("ref %q: %q, %v, want the image with %q", ref, got, err, name)
		}
	}
	l.add(dOne, "one")
	want("", "one")
	want("one", "one")
	want(dOne.Digest.String(), "one")

	l.add(dTwo, "registry.example:5000/two:latest")
	want("registry.example:5000/two:latest", "two")
	want(dTwo.Digest.String(), "two")

	// An index with platforms, one of whose blobs are not there, an
	// attestation, and an index in the index.
	away := dTwo
	away.Digest = digest.FromString("not here")
	away.Platform = &ocispec.Platform{OS: "linux", Architecture: "s390x"}
	dArm.Platform = &ocispec.Platform{OS: "linux", Architecture: "arm64"}
	attest := l.image(ocispec.Platform{}, func(m *ocispec.Manifest, _ *ocispec.Image) { m.Config.MediaType = "application/vnd.in-toto+json" })
	attest.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	inner := l.json(ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: []ocispec.Descriptor{attest, dOne}})
	multi := l.json(ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: []ocispec.Descriptor{away, dArm, attest, inner}})
	l.add(multi, "multi")
	want("multi", "one")
	want(multi.Digest.String(), "one")
	want(dArm.Digest.String(), "arm")
}

func TestOCIDocker(t *testing.T) {
	l := newLayout(t)
	b := archive(t, mkd("./"), reg("docker", ""))
	m := l.image(amd64, func(m *ocispec.Manifest, c *ocispec.Image) {
		m.MediaType = images.MediaTypeDockerSchema2Manifest
		m.Layers[0].MediaType = images.MediaTypeDockerSchema2LayerGzip
		m.Config = l.json(images.MediaTypeDockerSchema2Config, c)
	}, b)
	m.MediaType = images.MediaTypeDockerSchema2Manifest
	list := l.json(images.MediaTypeDockerSchema2ManifestList, ocispec.Index{MediaType: images.MediaTypeDockerSchema2ManifestList, Manifests: []ocispec.Descriptor{m}})
	// containerd's exports have the full name in an annotation of their own.
	list.Annotations = map[string]string{ocispec.AnnotationRefName: "latest", containerdName: "docker.io/library/d:latest"}
	l.add(list, "")
	for _, ref := range []string{"", "latest", "docker.io/library/d:latest"} {
		if got, err := l.tree(ref); err != nil || !strings.Contains(got, "docker") {
			t.Errorf("ref %q: %q, %v", ref, got, err)
		}
	}
}

// TestOCIStreams: layers in every form that containerd unpacks.
func TestOCIStreams(t *testing.T) {
	whole := archive(t, mkd("./"), reg("f", "x"))
	for _, tt := range []struct {
		name  string
		plain []byte
		blob  []byte
		want  string
	}{
		{"no end of archive", whole[:len(whole)-1024], nil, "f \"x\""},
		{"empty", []byte{}, nil, "./"},
		{"bytes behind the archive", append(append([]byte(nil), whole...), bytes.Repeat([]byte("junk"), 10000)...), nil, "f \"x\""},
		{"two gzip members", whole, append(gz(t, whole[:700]), gz(t, whole[700:])...), "f \"x\""},
		{"plain under gzip's media type", whole, whole, "f \"x\""},
		{"zstd under gzip's media type", whole, func() []byte {
			var buf bytes.Buffer
			w, err := compression.CompressStream(&buf, compression.Zstd)
			must(t, err)
			_, err = w.Write(whole)
			must(t, err)
			must(t, w.Close())
			return buf.Bytes()
		}(), "f \"x\""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLayout(t)
			l.add(l.image(amd64, func(m *ocispec.Manifest, _ *ocispec.Image) {
				if tt.blob != nil {
					m.Layers[0] = l.blob(ocispec.MediaTypeImageLayerGzip, tt.blob)
				}
			}, tt.plain), "")
			if got, err := l.tree(""); err != nil || !strings.Contains(got, tt.want) {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// TestOCIBad: what is wrong is named, with the blob or layer, and has a class.
func TestOCIBad(t *testing.T) {
	whole := archive(t, mkd("./"), reg("f", strings.Repeat("content", 1000)))
	second := archive(t, reg("g", ""))
	layer := func(t *testing.T, mediaType string, blob []byte) func(l *testLayout) {
		return func(l *testLayout) {
			l.add(l.image(amd64, func(m *ocispec.Manifest, _ *ocispec.Image) { m.Layers[1] = l.blob(mediaType, blob) }, whole, second), "")
		}
	}
	good := func(l *testLayout) ocispec.Descriptor { return l.image(amd64, nil, whole, second) }
	for _, tt := range []struct {
		name  string
		make  func(l *testLayout)
		ref   string
		want  []string
		class func(error) bool
	}{
		{"not a layout", func(l *testLayout) { must(t, os.Remove(l.dir+"/oci-layout")) }, "", []string{"is not an OCI image layout"}, errdefs.IsNotFound},
		{"layout of the future", func(l *testLayout) {
			must(t, os.WriteFile(l.dir+"/oci-layout", []byte(`{"imageLayoutVersion":"2.0.0"}`), 0o644))
		}, "", []string{`layout version "2.0.0", want "1.0.0"`}, errdefs.IsNotImplemented},
		{"index is not JSON", func(l *testLayout) { must(t, os.WriteFile(l.dir+"/index.json", []byte(`{`), 0o644)) }, "", []string{"index.json", "unexpected end of JSON"}, errdefs.IsInvalidArgument},
		{"no images", func(l *testLayout) {}, "", []string{`no image ""; it has none`}, errdefs.IsNotFound},
		{"no such name", func(l *testLayout) { l.add(good(l), "a") }, "b", []string{`no image "b"; it has "a"`}, errdefs.IsNotFound},
		{"no such digest", func(l *testLayout) { l.add(good(l), "a") }, digest.FromString("x").String(), []string{"no image sha256:"}, errdefs.IsNotFound},
		{"several", func(l *testLayout) {
			l.add(good(l), "a")
			l.add(l.image(amd64, nil, second), "b")
		}, "", []string{`has 2 images, choose one by name or digest: "a", "b"`}, errdefs.IsInvalidArgument},
		{"several without names", func(l *testLayout) {
			l.add(good(l), "")
			l.add(l.image(amd64, nil, second), "")
		}, "", []string{`has 2 images`}, errdefs.IsInvalidArgument},
		{"other platform", func(l *testLayout) {
			l.add(l.image(ocispec.Platform{OS: "linux", Architecture: "riscv64"}, nil, whole), "")
		}, "", []string{"no image for this platform; it has linux/riscv64"}, errdefs.IsNotFound},
		{"an artifact", func(l *testLayout) {
			l.add(l.image(amd64, func(m *ocispec.Manifest, _ *ocispec.Image) {
				m.Config = l.json("application/vnd.example+json", 1)
			}, whole), "")
		}, "", []string{"no image for this platform; it has none"}, errdefs.IsNotFound},
		{"missing blob", func(l *testLayout) {
			d := good(l)
			must(t, os.Remove(l.path(digest.FromBytes(gz(t, second)))))
			l.add(d, "")
		}, "", []string{"layer 2 of 2 (sha256:", "blob is missing"}, errdefs.IsNotFound},
		{"missing manifest", func(l *testLayout) {
			d := good(l)
			must(t, os.Remove(l.path(d.Digest)))
			l.add(d, "")
		}, "", []string{"manifest sha256:", "blob is missing"}, errdefs.IsNotFound},
		{"changed manifest", func(l *testLayout) {
			d := good(l)
			b, err := os.ReadFile(l.path(d.Digest))
			must(t, err)
			must(t, os.WriteFile(l.path(d.Digest), bytes.Replace(b, []byte("sha256:"), []byte("sha512:"), 1), 0o644))
			l.add(d, "")
		}, "", []string{"manifest sha256:", "blob has digest sha256:", "digest mismatch"}, errdefs.IsDataLoss},
		{"wrong size in the index", func(l *testLayout) {
			d := good(l)
			d.Size++
			l.add(d, "")
		}, "", []string{"manifest sha256:", "bytes, want"}, errdefs.IsDataLoss},
		{"huge manifest", func(l *testLayout) {
			d := good(l)
			d.Size = 1 << 40
			l.add(d, "")
		}, "", []string{"manifest sha256:", "1099511627776 bytes, want at most 8388608"}, errdefs.IsInvalidArgument},
		{"digest that leads out of the layout", func(l *testLayout) {
			d := good(l)
			d.Digest = "sha256:../../../../etc/passwd"
			l.add(d, "")
		}, "", []string{"invalid checksum digest"}, errdefs.IsInvalidArgument},
		{"manifest is an index too", func(l *testLayout) {
			l.add(l.blob(ocispec.MediaTypeImageManifest, []byte(`{"manifests":[],"layers":[]}`)), "")
		}, "", []string{"manifest sha256:", "is something else"}, errdefs.IsInvalidArgument},
		{"index is a manifest too", func(l *testLayout) {
			l.add(l.blob(ocispec.MediaTypeImageIndex, []byte(`{"manifests":[],"layers":[]}`)), "")
		}, "", []string{"index sha256:", "is something else"}, errdefs.IsInvalidArgument},
		{"manifest is not JSON", func(l *testLayout) { l.add(l.blob(ocispec.MediaTypeImageManifest, []byte(`]`)), "") }, "", []string{"manifest sha256:", "invalid character"}, errdefs.IsInvalidArgument},
		{"diffIDs missing", func(l *testLayout) {
			l.add(l.image(amd64, func(_ *ocispec.Manifest, c *ocispec.Image) { c.RootFS.DiffIDs = c.RootFS.DiffIDs[:1] }, whole, second), "")
		}, "", []string{"has 2 layers, its config sha256:", "1 diffIDs"}, errdefs.IsInvalidArgument},
		{"diffID is no digest", func(l *testLayout) {
			l.add(l.image(amd64, func(_ *ocispec.Manifest, c *ocispec.Image) { c.RootFS.DiffIDs[1] = "md5:1" }, whole, second), "")
		}, "", []string{"diffID 2: "}, errdefs.IsInvalidArgument},
		{"diffID of another layer", func(l *testLayout) {
			l.add(l.image(amd64, func(_ *ocispec.Manifest, c *ocispec.Image) { c.RootFS.DiffIDs[1] = c.RootFS.DiffIDs[0] }, whole, second), "")
		}, "", []string{"layer 2 of 2 (sha256:", "uncompressed digest (diffID) is sha256:", "the config says sha256:"}, errdefs.IsDataLoss},
		{"encrypted layer", layer(t, images.MediaTypeImageLayerGzipEncrypted, gz(t, second)), "", []string{"layer 2 of 2 (sha256:", "encrypted"}, errdefs.IsNotImplemented},
		{"layer of an unknown type", layer(t, "application/vnd.erofs.layer.v9", second), "", []string{"layer 2 of 2 (sha256:", "vnd.erofs.layer"}, errdefs.IsNotImplemented},
		{"layer with xz", layer(t, ocispec.MediaTypeImageLayer, []byte("\xfd7zXZ\x00....")), "", []string{"layer 2 of 2 (sha256:", "compressed with xz"}, errdefs.IsNotImplemented},
		{"gzip cut short, digest right", layer(t, ocispec.MediaTypeImageLayerGzip, gz(t, whole)[:60]), "", []string{"layer 2 of 2 (sha256:", "decompress: "}, errdefs.IsInvalidArgument},
		{"junk in gzip", layer(t, ocispec.MediaTypeImageLayerGzip, gz(t, bytes.Repeat([]byte("junk"), 1000))), "", []string{"layer 2 of 2 (sha256:", "invalid tar header"}, errdefs.IsInvalidArgument},
		{"bad tar in the blob's place", func(l *testLayout) {
			d := good(l)
			p := l.path(digest.FromBytes(gz(t, second)))
			b := gz(t, bytes.Repeat([]byte("junk"), 1000))
			fi, err := os.Stat(p)
			must(t, err)
			b = append(b, make([]byte, max(0, int(fi.Size())-len(b)))...)[:fi.Size()]
			must(t, os.WriteFile(p, b, 0o644))
			l.add(d, "")
		}, "", []string{"layer 2 of 2 (sha256:", "digest mismatch"}, errdefs.IsDataLoss},
		{"path escape in a layer", layer(t, ocispec.MediaTypeImageLayerGzip, gz(t, archive(t, reg("../x", "")))), "", []string{"layer 2 of 2 (sha256:", `tar entry "../x": path contains ".."`}, errdefs.IsInvalidArgument},
		{"hard link to nothing", func(l *testLayout) { l.add(l.image(amd64, nil, whole, archive(t, lnk("h", "no"))), "") }, "", []string{`hard link "h": target "no" is in no layer`}, errdefs.IsInvalidArgument},
		{"endless indexes", func(l *testLayout) {
			d := good(l)
			for range 12 {
				d = l.json(ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: []ocispec.Descriptor{d}})
			}
			l.add(d, "")
		}, "", []string{"more than 8 indexes inside each other"}, errdefs.IsInvalidArgument},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLayout(t)
			tt.make(l)
			_, err := l.tree(tt.ref)
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q, want %q in it", err, w)
				}
			}
			if !tt.class(err) {
				t.Errorf("error %q has the wrong class", err)
			}
		})
	}
}

// TestStreamLooksCompressed: an archive that begins like a compressed one is read.
func TestStreamLooksCompressed(t *testing.T) {
	for _, name := range []string{"BZh91AY&SY", "LZIP"} {
		tree, _, err := FromStream(context.Background(), bytes.NewReader(archive(t, reg(name, "x"))), nil, new(memStore), TarOptions{})
		if err != nil || tree.Find(name) == nil {
			t.Errorf("file %s: %v", name, err)
		}
	}
}

// TestStreamTooLong: what is behind the archive counts.
func TestStreamTooLong(t *testing.T) {
	b := archive(t, reg("f", "x"))
	for _, blob := range [][]byte{b, gz(t, b)} {
		for _, max := range []int64{0, int64(len(b))} {
			if _, _, err := FromStream(context.Background(), bytes.NewReader(blob), nil, new(memStore), TarOptions{MaxSize: max}); err != nil {
				t.Errorf("at most %d of %d bytes: %v", max, len(b), err)
			}
		}
		for _, max := range []int64{1, 600, int64(len(b)) - 1} {
			if _, _, err := FromStream(context.Background(), bytes.NewReader(blob), nil, new(memStore), TarOptions{MaxSize: max}); !errors.Is(err, ErrTooLarge) {
				t.Errorf("at most %d of %d bytes: %v", max, len(b), err)
			}
		}
	}
}

// TestStreamCancelled: an import that fails leaves no reader behind that its
// source would have to outlive.
func TestStreamCancelled(t *testing.T) {
	b := gz(t, archive(t, reg("f", strings.Repeat("x", 1<<20)), reg("../bad", ""), reg("g", strings.Repeat("y", 1<<22))))
	for range 20 {
		if _, _, err := FromStream(context.Background(), bytes.NewReader(b), digest.Canonical.Hash(), new(memStore), TarOptions{}); !errors.Is(err, ErrBadLayer) {
			t.Fatalf("error %v, want ErrBadLayer", err)
		}
	}
}
