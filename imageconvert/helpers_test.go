package imageconvert_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"os"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var ctx = context.Background()

// store is a content store without a containerd.
type store struct {
	t testing.TB
	content.Store
}

func newStore(t testing.TB) *store {
	t.Helper()
	cs, err := local.NewLabeledStore(t.TempDir(), &labelStore{map[digest.Digest]map[string]string{}})
	if err != nil {
		t.Fatal(err)
	}
	return &store{t, cs}
}

// labelStore keeps labels in memory.
type labelStore struct {
	m map[digest.Digest]map[string]string
}

func (l *labelStore) Get(d digest.Digest) (map[string]string, error) { return l.m[d], nil }
func (l *labelStore) Set(d digest.Digest, v map[string]string) error { l.m[d] = v; return nil }
func (l *labelStore) Update(d digest.Digest, v map[string]string) (map[string]string, error) {
	if l.m[d] == nil {
		l.m[d] = map[string]string{}
	}
	for k, x := range v {
		l.m[d][k] = x
	}
	return l.m[d], nil
}

// blob writes a blob.
func (s *store) blob(mediaType string, b []byte) ocispec.Descriptor {
	s.t.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if err := content.WriteBlob(ctx, s.Store, d.Digest.String(), bytes.NewReader(b), d); err != nil {
		s.t.Fatal(err)
	}
	return d
}

func (s *store) json(mediaType string, v any) ocispec.Descriptor {
	s.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.blob(mediaType, b)
}

// read decodes a blob.
func (s *store) read(d ocispec.Descriptor, v any) {
	s.t.Helper()
	if err := json.Unmarshal(s.bytes(d), v); err != nil {
		s.t.Fatal(err)
	}
}

func (s *store) bytes(d ocispec.Descriptor) []byte {
	s.t.Helper()
	b, err := content.ReadBlob(ctx, s.Store, d)
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

// count is how many blobs there are, finished or not.
func (s *store) count() int {
	s.t.Helper()
	n := 0
	if err := s.Walk(ctx, func(content.Info) error { n++; return nil }); err != nil {
		s.t.Fatal(err)
	}
	open, err := s.ListStatuses(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	return n + len(open)
}

// layer is a layer of a test image.
type layer struct {
	ocispec.Descriptor
	diffID digest.Digest
}

// tarLayer writes a compressed layer.
func (s *store) tarLayer(mediaType string, entries ...tar.Header) layer {
	s.t.Helper()
	b := archive(s.t, entries...)
	l := layer{diffID: digest.FromBytes(b)}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(b)
	w.Close()
	l.Descriptor = s.blob(mediaType, z.Bytes())
	return l
}

// archive makes a layer; a file's content is its link name.
func archive(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.Format = tar.FormatPAX
		if e.ModTime.IsZero() {
			e.ModTime = time.Unix(1_700_000_000, 123456789)
		}
		data := ""
		if e.Typeflag == tar.TypeReg {
			data, e.Linkname = e.Linkname, ""
			e.Size = int64(len(data))
		}
		if err := w.WriteHeader(&e); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, data string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: data, Mode: 0o644}
}

// image writes a manifest with its configuration, for linux and arch.
func (s *store) image(arch string, layers ...layer) ocispec.Descriptor {
	s.t.Helper()
	var diffIDs []digest.Digest
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Annotations: map[string]string{"a": "kept"}}
	var history []map[string]any
	for i, l := range layers {
		diffIDs = append(diffIDs, l.diffID)
		m.Layers = append(m.Layers, l.Descriptor)
		history = append(history, map[string]any{"created_by": "step", "n": i}, map[string]any{"created_by": "ENV", "empty_layer": true})
	}
	m.Config = s.json(ocispec.MediaTypeImageConfig, map[string]any{
		"architecture": arch, "os": "linux", "created": "2020-01-02T03:04:05Z", "unknown": map[string]int{"x": 1},
		"config":  map[string]any{"Env": []string{"A=b"}, "Labels": map[string]string{"l": "v"}, "Unknown": true},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": diffIDs},
		"history": history,
	})
	return s.json(ocispec.MediaTypeImageManifest, m)
}

// sample is an image of two layers with what is easily lost.
func (s *store) sample(arch string) ocispec.Descriptor {
	return s.image(arch,
		s.tarLayer(ocispec.MediaTypeImageLayerGzip, tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o750}, file("etc/os", "one "+arch), file("gone", "x"), file("bin/prog", "program"),
			tar.Header{Typeflag: tar.TypeLink, Name: "bin/link", Linkname: "bin/prog", Mode: 0o4755, Uid: 7}),
		s.tarLayer(ocispec.MediaTypeImageLayerGzip, file("etc/os", "two"), file(".wh.gone", ""),
			tar.Header{Typeflag: tar.TypeReg, Name: "cap\xff", Linkname: "capable", Mode: 0o755, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00 \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "SCHILY.xattr.user.empty": "x"}},
			tar.Header{Typeflag: tar.TypeSymlink, Name: "sym", Linkname: "/etc/os", Mode: 0o777},
			tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600},
			tar.Header{Typeflag: tar.TypeChar, Name: "dev", Mode: 0o600, Devmajor: 1, Devminor: 3}, file("same", "program")))
}

// nothingLeft fails if a temporary file is left in dir.
func nothingLeft(t testing.TB, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("temporary files are left: %v %v", left, err)
	}
}
