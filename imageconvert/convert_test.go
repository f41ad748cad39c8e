package imageconvert_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/daxfs/containerd-daxfs/imageconvert"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

func amd64() platforms.MatchComparer {
	return platforms.OnlyStrict(platforms.MustParse("linux/amd64"))
}

// mustConvert converts to DAXFS.
func mustConvert(t testing.TB, s *store, o imageconvert.Options, d ocispec.Descriptor) ocispec.Descriptor {
	t.Helper()
	o.SpoolDir = t.TempDir()
	if o.Platform == nil {
		o.Platform = amd64()
	}
	out, err := imageconvert.ToDaxfs(o)(ctx, s, d)
	if err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, o.SpoolDir)
	if out == nil {
		t.Fatalf("%s was not converted", d.Digest)
	}
	return *out
}

// raw is the uncompressed image of a layer.
func raw(t testing.TB, s *store, l ocispec.Descriptor) []byte {
	t.Helper()
	b := s.bytes(l)
	if l.MediaType != imageconvert.MediaTypeLayerZstd {
		return b
	}
	z, err := zstd.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	if b, err = io.ReadAll(z); err != nil {
		t.Fatal(err)
	}
	return b
}

// A converted image has one layer, which is a sound DAXFS image of all files, and
// says the same of everything else; what containerd asks of an image is right.
func TestConvert(t *testing.T) {
	for compression, mediaType := range map[imageconvert.Compression]string{
		"": imageconvert.MediaTypeLayer, imageconvert.None: imageconvert.MediaTypeLayer, imageconvert.Zstd: imageconvert.MediaTypeLayerZstd,
	} {
		s := newStore(t)
		src := s.sample("amd64")
		d := mustConvert(t, s, imageconvert.Options{Compression: compression}, src)
		var m ocispec.Manifest
		s.read(d, &m)
		if m.MediaType != ocispec.MediaTypeImageManifest || d.MediaType != m.MediaType || len(m.Layers) != 1 || m.Annotations["a"] != "kept" {
			t.Fatalf("manifest %+v", m)
		}
		l := m.Layers[0]
		image := raw(t, s, l)
		img, err := mkdaxfs.Open(bytes.NewReader(image), int64(len(image)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := mkdaxfs.Check(img, 0); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(must(t, img, "etc/os")); err != nil || string(b) != "two" {
			t.Errorf("etc/os is %q: %v", b, err)
		}
		if _, err := img.FS().Lstat("gone"); err == nil {
			t.Error("a removed file is there")
		}
		var before, after map[string]json.RawMessage
		s.read(m.Config, &after)
		var old ocispec.Manifest
		s.read(src, &old)
		s.read(old.Config, &before)
		for k := range before {
			if k != "rootfs" && k != "history" && string(before[k]) != string(after[k]) {
				t.Errorf("configuration: %s is %s, was %s", k, after[k], before[k])
			}
		}
		var c ocispec.Image
		s.read(m.Config, &c)
		want := digest.FromBytes(image)
		if !slices.Equal(c.RootFS.DiffIDs, []digest.Digest{want}) || c.RootFS.Type != "layers" {
			t.Errorf("rootfs %+v, want diffID %s", c.RootFS, want)
		}
		full := 0
		for _, h := range c.History {
			if !h.EmptyLayer {
				full++
			}
		}
		if full != 1 || len(c.History) != 5 || !strings.Contains(string(after["history"]), `"n":1`) {
			t.Errorf("history %s", after["history"])
		}
		// What containerd computes itself.
		if got, err := images.GetDiffID(ctx, s, l); err != nil || got != want {
			t.Errorf("containerd takes the diffID for %s: %v", got, err)
		}
		info, err := s.Info(ctx, l.Digest)
		if err != nil || info.Labels[labels.LabelUncompressed] != want.String() || l.MediaType != mediaType || !images.IsLayerType(l.MediaType) {
			t.Errorf("layer %s of type %s has labels %v: %v", l.Digest, l.MediaType, info.Labels, err)
		}
		refs := map[string]string{"containerd.io/gc.ref.content.config": m.Config.Digest.String(), "containerd.io/gc.ref.content.l.0": l.Digest.String()}
		if info, err := s.Info(ctx, d.Digest); err != nil || !reflect.DeepEqual(info.Labels, refs) {
			t.Errorf("manifest has labels %v, want %v: %v", info.Labels, refs, err)
		}
		annotations := map[string]string{
			imageconvert.AnnotationVersion: "0x00010000", imageconvert.AnnotationBlockSize: "4096",
			imageconvert.AnnotationSize: fmt.Sprint(len(image)), imageconvert.AnnotationMetaDigest: fmt.Sprintf("blake3:%x", img.Superblock().MetaDigest),
		}
		if !reflect.DeepEqual(l.Annotations, annotations) {
			t.Errorf("annotations %v, want %v", l.Annotations, annotations)
		}
	}
}

func must(t testing.TB, img *mkdaxfs.Image, name string) io.Reader {
	t.Helper()
	f, err := img.FS().Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return f.(io.Reader)
}

// The same layers make the same bytes, however they were compressed, wherever, on
// however many processors; and Docker's types the same as OCI's.
func TestReproducible(t *testing.T) {
	var want ocispec.Descriptor
	for i, mediaType := range []string{ocispec.MediaTypeImageLayerGzip, images.MediaTypeDockerSchema2LayerGzip, images.MediaTypeDockerSchema2Layer} {
		s := newStore(t)
		if i > 0 {
			s.sample("arm64") // something else is there too
		}
		src := s.image("amd64", s.tarLayer(mediaType, file("a", "1"), file("b", strings.Repeat("2", 100_000))))
		got := mustConvert(t, s, imageconvert.Options{Compression: imageconvert.Zstd, Concurrency: i + 1}, src)
		if i == 0 {
			want = got
		} else if got.Digest != want.Digest {
			t.Errorf("%s: %s, want %s", mediaType, got.Digest, want.Digest)
		}
	}
}

// Files of a prefetch list lie first, in its order; the tree is the same.
func TestPrefetch(t *testing.T) {
	s := newStore(t)
	src := s.sample("amd64")
	var m ocispec.Manifest
	s.read(mustConvert(t, s, imageconvert.Options{Prefetch: []string{"same", "sym", "absent"}}, src), &m)
	image := raw(t, s, m.Layers[0])
	img, err := mkdaxfs.Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mkdaxfs.Check(img, 0); err != nil {
		t.Fatal(err)
	}
	at := disk.BlockSize + int(img.Superblock().MetaSize)
	for _, want := range []string{"program", "two"} { // sym leads to etc/os
		if !bytes.HasPrefix(image[at:], append([]byte(want), 0)) {
			t.Errorf("at %d is %q, want %q", at, image[at:at+10], want)
		}
		at += disk.BlockSize
	}
}

// An image that is one DAXFS image already stays, or is compressed anew.
func TestConvertAgain(t *testing.T) {
	s := newStore(t)
	src := s.sample("amd64")
	plain := mustConvert(t, s, imageconvert.Options{}, src)
	if out, err := imageconvert.ToDaxfs(imageconvert.Options{})(ctx, s, plain); out != nil || err != nil {
		t.Errorf("a second conversion: %v, %v", out, err)
	}
	direct := mustConvert(t, s, imageconvert.Options{Compression: imageconvert.Zstd}, src)
	if again := mustConvert(t, s, imageconvert.Options{Compression: imageconvert.Zstd}, plain); again.Digest != direct.Digest {
		t.Errorf("compressed later: %s, at once: %s", again.Digest, direct.Digest)
	}
	// A container's changes on top of it, as commits have it.
	var m ocispec.Manifest
	var c ocispec.Image
	s.read(direct, &m)
	s.read(m.Config, &c)
	top := s.tarLayer(ocispec.MediaTypeImageLayerGzip, file("etc/os", "three"), file(".wh.same", ""))
	mixed := s.image("amd64", layer{m.Layers[0], c.RootFS.DiffIDs[0]}, top)
	s.read(mustConvert(t, s, imageconvert.Options{}, mixed), &m)
	image := raw(t, s, m.Layers[0])
	img, err := mkdaxfs.Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(must(t, img, "etc/os")); err != nil || string(b) != "three" {
		t.Errorf("etc/os is %q: %v", b, err)
	}
	if _, err := img.FS().Lstat("same"); err == nil {
		t.Error("a removed file is there")
	}
}

// index writes an index of images for two platforms, and an attestation.
func (s *store) index() ocispec.Descriptor {
	a, b := s.sample("amd64"), s.sample("arm64")
	a.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
	b.Platform = &ocispec.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	att := s.json(ocispec.MediaTypeImageManifest, ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest})
	att.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	return s.json(ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{a, b, att},
		Annotations: map[string]string{"i": "kept"},
	})
}

// Of an index those images are converted that are for the platform.
func TestPlatforms(t *testing.T) {
	s := newStore(t)
	src := s.index()
	for want, m := range map[string]platforms.MatchComparer{
		"linux/amd64": amd64(), "linux/arm64": platforms.OnlyStrict(platforms.MustParse("linux/arm64")), "linux/amd64 linux/arm64": platforms.All,
	} {
		d := mustConvert(t, s, imageconvert.Options{Platform: m}, src)
		var index ocispec.Index
		s.read(d, &index)
		var have []string
		for _, m := range index.Manifests {
			have = append(have, platforms.FormatAll(platforms.Normalize(*m.Platform)))
			var manifest ocispec.Manifest
			s.read(m, &manifest)
			if len(manifest.Layers) != 1 || !imageconvert.IsLayer(manifest.Layers[0].MediaType) {
				t.Errorf("%+v", manifest)
			}
		}
		if got := strings.Join(have, " "); got != want || index.Annotations["i"] != "kept" {
			t.Errorf("index of %q, want %q", got, want)
		}
	}
	_, err := imageconvert.ToDaxfs(imageconvert.Options{Platform: platforms.OnlyStrict(platforms.MustParse("linux/s390x"))})(ctx, s, src)
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "linux/arm64") {
		t.Errorf("no such platform: %v", err)
	}
	// What other platforms have need not be there.
	var index ocispec.Index
	s.read(src, &index)
	if err := s.Delete(ctx, index.Manifests[1].Digest); err != nil {
		t.Fatal(err)
	}
	mustConvert(t, s, imageconvert.Options{}, src)
	if _, err := imageconvert.ToDaxfs(imageconvert.Options{Platform: platforms.All})(ctx, s, src); !errdefs.IsNotFound(err) {
		t.Errorf("all platforms, one of which is not there: %v", err)
	}
}

// An index has both images, and containerd's own choice is the ordinary one for
// who knows nothing of ours, and ours for who asks for it.
func TestIndex(t *testing.T) {
	s := newStore(t)
	for name, src := range map[string]ocispec.Descriptor{"manifest": s.sample("amd64"), "index": s.index()} {
		d := mustConvert(t, s, imageconvert.Options{Index: true}, src)
		if again := mustConvert(t, s, imageconvert.Options{Index: true}, d); again.Digest != d.Digest {
			t.Errorf("%s: converted again: %s, want %s", name, again.Digest, d.Digest)
		}
		for platform, ours := range map[string]bool{"linux/amd64": false, "linux(+daxfs)/amd64": true, "linux(+erofs)/amd64": false} {
			m, err := images.Manifest(ctx, s, d, platforms.Only(platforms.MustParse(platform)))
			if err != nil {
				t.Fatal(err)
			}
			if got := imageconvert.IsLayer(m.Layers[0].MediaType); got != ours {
				t.Errorf("%s: for %s containerd takes %s", name, platform, m.Layers[0].MediaType)
			}
			// The unpacker asks the configuration.
			p, err := images.ConfigPlatform(ctx, s, m.Config)
			if err != nil || ours != slices.Equal(p.OSFeatures, []string{imageconvert.OSFeature}) {
				t.Errorf("%s: %s: configuration has %v: %v", name, platform, p.OSFeatures, err)
			}
		}
		var index ocispec.Index
		s.read(d, &index)
		if p := index.Manifests[0].Platform; len(index.Manifests) != 2 || len(p.OSFeatures) > 0 {
			t.Errorf("%s: the ordinary image is not the first: %+v", name, index.Manifests)
		}
	}
}

// What cannot be converted is an error of the class that says why, and leaves
// nothing.
func TestConvertBad(t *testing.T) {
	s := newStore(t)
	good := s.tarLayer(ocispec.MediaTypeImageLayerGzip, file("a", "1"), file("b", strings.Repeat("2", 1_000_000)))
	typed := func(mediaType string) layer { l := good; l.MediaType = mediaType; return l }
	wrong, absent := good, good
	wrong.diffID = digest.FromString("another")
	absent.Digest = digest.FromString("absent")
	cut := layer{s.blob(ocispec.MediaTypeImageLayerGzip, s.bytes(good.Descriptor)[:500]), good.diffID}
	bad := layer{s.blob(imageconvert.MediaTypeLayer, bytes.Repeat([]byte("no image "), 1000)), good.diffID}
	big := bad
	big.Annotations = map[string]string{imageconvert.AnnotationBlockSize: "65536"}
	odd := bad
	odd.Annotations = map[string]string{imageconvert.AnnotationSize: "-4096"}
	for name, c := range map[string]struct {
		src   ocispec.Descriptor
		class func(error) bool
		says  string
	}{
		"encrypted":        {s.image("amd64", good, typed(ocispec.MediaTypeImageLayerGzip+"+encrypted")), errdefs.IsNotImplemented, "layer 2 of 2"},
		"encrypted, plain": {s.image("amd64", typed(ocispec.MediaTypeImageLayer+"+encrypted")), errdefs.IsNotImplemented, "encrypted"},
		"foreign":          {s.image("amd64", typed(images.MediaTypeDockerSchema2LayerForeignGzip)), errdefs.IsNotImplemented, "foreign"},
		"unknown type":     {s.image("amd64", typed("application/x")), errdefs.IsNotImplemented, "application/x"},
		"mixed":            {s.image("amd64", good, typed(imageconvert.MediaTypeLayer)), errdefs.IsInvalidArgument, "must be the lowest"},
		"wrong diffID":     {s.image("amd64", wrong), errdefs.IsDataLoss, wrong.diffID.String()},
		"absent":           {s.image("amd64", good, absent), errdefs.IsNotFound, "content fetch"},
		"cut":              {s.image("amd64", cut), errdefs.IsInvalidArgument, "layer 1 of 1"},
		"no image":         {s.image("amd64", bad), errdefs.IsInvalidArgument, "magic"},
		"other page size":  {s.image("amd64", big), func(err error) bool { return errors.Is(err, disk.ErrUnsupported) }, "65536"},
		"odd annotation":   {s.image("amd64", odd), errdefs.IsInvalidArgument, imageconvert.AnnotationSize},
		"no layers":        {s.image("amd64"), errdefs.IsInvalidArgument, "no layers"},
		"not an image":     {s.blob("application/x", []byte("x")), errdefs.IsInvalidArgument, "want an image"},
	} {
		t.Run(name, func(t *testing.T) {
			before := s.count()
			dir := t.TempDir()
			_, err := imageconvert.ToDaxfs(imageconvert.Options{SpoolDir: dir, Compression: imageconvert.Zstd})(ctx, s, c.src)
			if err == nil || !c.class(err) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want an error that says %q", err, c.says)
			}
			if after := s.count(); after != before {
				t.Errorf("%d blobs, %d before", after, before)
			}
			nothingLeft(t, dir)
		})
	}
	for _, o := range []imageconvert.Options{{Compression: "gzip"}, {Compression: "xz"}, {ZstdLevel: 23}} {
		if _, err := imageconvert.ToDaxfs(o)(ctx, s, s.image("amd64", good)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// cancelling is a content store that is asked to stop while it is written to.
type cancelling struct {
	*store
	cancel context.CancelFunc
}

func (c *cancelling) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := c.store.Writer(ctx, opts...)
	return &cancellingWriter{w, c.cancel}, err
}

type cancellingWriter struct {
	content.Writer
	cancel context.CancelFunc
}

func (w *cancellingWriter) Write(p []byte) (int, error) {
	w.cancel()
	return w.Writer.Write(p)
}

// A conversion that is cancelled half way leaves nothing, and can be done again.
func TestCancel(t *testing.T) {
	s := newStore(t)
	noise := make([]byte, 4<<20)
	rand.NewChaCha8([32]byte{}).Read(noise)
	src := s.image("amd64", s.tarLayer(ocispec.MediaTypeImageLayerGzip, file("a", string(noise)), file("b", string(noise[1:]))))
	before := s.count()
	for _, compression := range []imageconvert.Compression{imageconvert.None, imageconvert.Zstd} {
		dir := t.TempDir()
		ctx, cancel := context.WithCancel(ctx)
		cs := &cancelling{s, cancel}
		if compression == imageconvert.Zstd {
			cancel() // its first frame is longer than the image
		}
		if _, err := imageconvert.ToDaxfs(imageconvert.Options{Compression: compression, SpoolDir: dir})(ctx, cs, src); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", compression, err)
		}
		if after := s.count(); after != before {
			t.Errorf("%s: %d blobs, %d before", compression, after, before)
		}
		nothingLeft(t, dir)
	}
	mustConvert(t, s, imageconvert.Options{}, src)
}

// Annotations that say something else than the image are an error before it is
// read.
func TestAnnotations(t *testing.T) {
	s := newStore(t)
	var m ocispec.Manifest
	s.read(mustConvert(t, s, imageconvert.Options{Compression: imageconvert.Zstd}, s.sample("amd64")), &m)
	open := func(name, value string) error {
		l := m.Layers[0]
		l.Annotations = map[string]string{name: value}
		r, err := imageconvert.Open(ctx, s, l)
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.Copy(io.Discard, r)
		return err
	}
	size := m.Layers[0].Annotations[imageconvert.AnnotationSize]
	for _, c := range []struct {
		name, value string
		class       func(error) bool
	}{
		{"other", "anything", func(err error) bool { return err == nil }},
		{imageconvert.AnnotationSize, size, func(err error) bool { return err == nil }},
		{imageconvert.AnnotationSize, "4096", errdefs.IsDataLoss},
		{imageconvert.AnnotationSize, "4097", errdefs.IsInvalidArgument},
		{imageconvert.AnnotationVersion, "0x20000", func(err error) bool { return errors.Is(err, disk.ErrUnsupported) }},
		{imageconvert.AnnotationVersion, "x", errdefs.IsInvalidArgument},
		{imageconvert.AnnotationMetaDigest, "blake3:00", errdefs.IsDataLoss},
	} {
		if err := open(c.name, c.value); !c.class(err) {
			t.Errorf("%s=%s: %v", c.name, c.value, err)
		}
	}
}

// Back in an archive everything is what it was; converting that again makes the
// same image.
func TestRoundTrip(t *testing.T) {
	s := newStore(t)
	for _, compression := range []imageconvert.Compression{imageconvert.None, imageconvert.Zstd} {
		there := mustConvert(t, s, imageconvert.Options{Compression: compression}, s.sample("amd64"))
		for _, back := range []imageconvert.Compression{imageconvert.None, imageconvert.Gzip, imageconvert.Zstd} {
			dir := t.TempDir()
			plain, err := imageconvert.ToTar(imageconvert.Options{Compression: back, SpoolDir: dir})(ctx, s, there)
			if err != nil {
				t.Fatal(err)
			}
			nothingLeft(t, dir)
			var m ocispec.Manifest
			var c ocispec.Image
			s.read(*plain, &m)
			s.read(m.Config, &c)
			if got, err := images.GetDiffID(ctx, s, m.Layers[0]); err != nil || !slices.Equal(c.RootFS.DiffIDs, []digest.Digest{got}) {
				t.Errorf("%s: diffIDs %v, containerd computes %s: %v", back, c.RootFS.DiffIDs, got, err)
			}
			if comp, err := images.DiffCompression(ctx, m.Layers[0].MediaType); err != nil || back != imageconvert.None && comp != string(back) {
				t.Errorf("%s: media type %s: %v", back, m.Layers[0].MediaType, err)
			}
			if again := mustConvert(t, s, imageconvert.Options{Compression: compression}, *plain); again.Digest != there.Digest {
				var a, b ocispec.Manifest
				s.read(there, &a)
				s.read(again, &b)
				t.Errorf("%s, back by %s: %+v, was %+v\n%s\n%s", compression, back, b, a, s.bytes(a.Config), s.bytes(b.Config))
			}
		}
	}
	if out, err := imageconvert.ToTar(imageconvert.Options{})(ctx, s, s.sample("amd64")); out != nil || err != nil {
		t.Errorf("an ordinary image: %v, %v", out, err)
	}
}

// Files that an archive cannot say are an error, not left out.
func TestToTarBad(t *testing.T) {
	for name, n := range map[string]*mkdaxfs.Node{
		"socket":    {Mode: disk.TypeSocket | 0o600},
		".wh.x":     {Mode: disk.TypeRegular | 0o600},
		"attribute": {Mode: disk.TypeRegular | 0o600, Xattrs: []disk.Xattr{{Name: "user.a=b", Value: "x"}}},
	} {
		s := newStore(t)
		b, err := mkdaxfs.NewStreamBuilder("", mkdaxfs.BuildOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		var image bytes.Buffer
		root := &mkdaxfs.Node{Mode: disk.TypeDir | 0o755, Children: []mkdaxfs.Child{{Name: name, Node: n}}}
		if _, err := b.Stream(ctx, &mkdaxfs.Tree{Root: root}, &image); err != nil {
			t.Fatal(err)
		}
		src := s.image("amd64", layer{s.blob(imageconvert.MediaTypeLayer, image.Bytes()), digest.FromBytes(image.Bytes())})
		before := s.count()
		if _, err := imageconvert.ToTar(imageconvert.Options{})(ctx, s, src); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		if after := s.count(); after != before {
			t.Errorf("%s: %d blobs, %d before", name, after, before)
		}
	}
}
