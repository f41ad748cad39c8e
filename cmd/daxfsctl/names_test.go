package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
)

// fakeContainerd serves images of one namespace.
type fakeContainerd struct {
	imagesapi.UnimplementedImagesServer
	namespace string
	images    []*imagesapi.Image
	store     content.Store
}

func (f *fakeContainerd) List(ctx context.Context, _ *imagesapi.ListImagesRequest) (*imagesapi.ListImagesResponse, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	if ns != f.namespace {
		return nil, errors.New("asked for namespace " + ns)
	}
	return &imagesapi.ListImagesResponse{Images: f.images}, nil
}

// blob stores v.
func (f *fakeContainerd) blob(t *testing.T, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if err := content.WriteBlob(t.Context(), f.store, d.Digest.String(), bytes.NewReader(b), d); err != nil {
		t.Fatal(err)
	}
	return d
}

// add makes an image of layers.
func (f *fakeContainerd) add(t *testing.T, name string, layers ...digest.Digest) {
	t.Helper()
	config := f.blob(t, ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: platforms.DefaultSpec(), RootFS: ocispec.RootFS{Type: "layers", DiffIDs: layers}, Author: name,
	})
	m := f.blob(t, ocispec.MediaTypeImageManifest, ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config})
	f.images = append(f.images, &imagesapi.Image{Name: name, Target: &types.Descriptor{MediaType: m.MediaType, Digest: m.Digest.String(), Size: m.Size}})
}

// serve listens on a socket.
func (f *fakeContainerd) serve(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	imagesapi.RegisterImagesServer(server, f)
	contentapi.RegisterContentServer(server, contentserver.New(f.store))
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
}

// Records are named by the images of containerd that have them.
func TestNames(t *testing.T) {
	s := newSite(t)
	one, two := digest.FromString("one"), digest.FromString("two")
	chains := identity.ChainIDs([]digest.Digest{one, two})
	low := s.layerAs(chains[0].String(), "", map[string]string{"low": "low"})
	s.layerAs(chains[1].String(), low, map[string]string{"high": "high"})
	s.run("c", "test/2/"+chains[1].String())
	s.serve()
	store, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeContainerd{namespace: "test", store: store}
	f.add(t, "example.com/base:1", one)
	f.add(t, "example.com/app:1", one, two)
	f.images = append(f.images, &imagesapi.Image{Name: "gone", Target: &types.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("gone").String(), Size: 4}})
	f.serve(t, filepath.Join(s.dir, "c.sock"))

	var ls poolLsJSON
	s.json(0, &ls, "pool", "ls", "--containerd", filepath.Join(s.dir, "c.sock"))
	got := make(map[string]string)
	for _, r := range ls.Records {
		got[r.Kind+" "+r.ChainID+r.shortChain()] = joinNames(r.Names)
	}
	short := func(d digest.Digest) string { return d.Encoded()[:12] }
	for what, want := range map[string]string{
		"image " + chains[1].String() + short(chains[1]): "example.com/app:1 (test)",
		"layer " + short(chains[1]):                      "example.com/app:1 (test)",
		"layer " + short(chains[0]):                      "example.com/app:1 (test), example.com/base:1 (test)",
	} {
		if got[what] != want {
			t.Errorf("%s is %q, want %q", what, got[what], want)
		}
	}
	wants(t, s.good("pool", "ls", "--containerd", filepath.Join(s.dir, "c.sock")), "example.com/app:1 (test): 1 container")

	// A record in quarantine tells whom it concerns.
	var off int64
	for _, r := range ls.Records {
		if r.shortChain() == short(chains[0]) && r.Kind == "layer" {
			off = r.Offset
		}
	}
	s.close()
	if err := flip(s.poolPath(), off+4096+10); err != nil {
		t.Fatal(err)
	}
	out, _, code := s.ctl("pool", "check", "--containerd", filepath.Join(s.dir, "c.sock"))
	if code != 1 {
		t.Errorf("status %d", code)
	}
	wants(t, out, "QUARANTINED  layer ", "needed by example.com/app:1 (test), example.com/base:1 (test)")

	// Without containerd there are no names, and a warning if it was named.
	out, errOut, code := s.ctl("pool", "ls", "--containerd", s.dir+"/none")
	if code != 0 {
		t.Errorf("status %d", code)
	}
	wants(t, out, "QUARANTINED")
	wants(t, errOut, "warning: no names of images: ")
}
