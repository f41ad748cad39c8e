package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

// A containerd that is not there, or was, cannot be asked now: no call hangs.
func TestContentStoreUnavailable(t *testing.T) {
	dir := t.TempDir()
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "stale"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	if err := stale.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"none", "stale"} {
		c := newContentStore(filepath.Join(dir, name))
		start := time.Now()
		err := c.Walk(t.Context(), digest.FromString("chain"), nil)
		if !errdefs.IsUnavailable(err) {
			t.Errorf("%s: %v, want %v", name, err, errdefs.ErrUnavailable)
		}
		if took := time.Since(start); took > dialWait+5*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
	}
}

// keptImages is a containerd's content store and images, without the daemon.
type keptImages struct {
	t       *testing.T
	store   content.Store
	images  images.Store
	spaces  []string
	applied []string                        // "namespace blob", in order
	unpacks map[digest.Digest]digest.Digest // blob to what it unpacks to
}

func newKeptImages(t *testing.T) (*keptImages, *contentStore) {
	t.Helper()
	files, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	b, err := bolt.Open(filepath.Join(t.TempDir(), "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	db := metadata.NewDB(b, files, nil)
	if err := db.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	k := &keptImages{t: t, store: db.ContentStore(), images: metadata.NewImageStore(db), unpacks: make(map[digest.Digest]digest.Digest)}
	c := &contentStore{address: "here", connect: func() (*client.Client, error) {
		return client.New("", client.WithServices(client.WithContentStore(k.store), client.WithImageStore(k.images),
			client.WithNamespaceService(namespaceList{k: k}), client.WithDiffService(fakeDiffer{k: k})))
	}}
	return k, c
}

type namespaceList struct {
	namespaces.Store
	k *keptImages
}

func (n namespaceList) List(context.Context) ([]string, error) { return n.k.spaces, nil }

type fakeDiffer struct {
	client.DiffService
	k *keptImages
}

func (d fakeDiffer) Apply(ctx context.Context, desc ocispec.Descriptor, _ []mount.Mount, _ ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	ns, _ := namespaces.Namespace(ctx)
	d.k.applied = append(d.k.applied, ns+" "+desc.Digest.String())
	return ocispec.Descriptor{Digest: d.k.unpacks[desc.Digest]}, nil
}

// blob puts bytes into a namespace's content store.
func (k *keptImages) blob(ns, mediaType string, b []byte) ocispec.Descriptor {
	k.t.Helper()
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	ctx := namespaces.WithNamespace(k.t.Context(), ns)
	if err := content.WriteBlob(ctx, k.store, desc.Digest.String(), bytes.NewReader(b), desc); err != nil {
		k.t.Fatal(err)
	}
	return desc
}

func (k *keptImages) json(ns, mediaType string, v any) ocispec.Descriptor {
	k.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		k.t.Fatal(err)
	}
	return k.blob(ns, mediaType, b)
}

// image makes an image of layers in a namespace, in an index with another
// platform's that nobody has pulled. It returns the blobs and the chainIDs.
func (k *keptImages) image(ns, name string, layers ...string) (blobs, chains []digest.Digest) {
	k.t.Helper()
	var descs []ocispec.Descriptor
	var diffIDs []digest.Digest
	for _, l := range layers {
		d := k.blob(ns, ocispec.MediaTypeImageLayerGzip, []byte("compressed "+l))
		descs, blobs, diffIDs = append(descs, d), append(blobs, d.Digest), append(diffIDs, digest.FromString(l))
		k.unpacks[d.Digest] = digest.FromString(l)
	}
	v := specs.Versioned{SchemaVersion: 2}
	config := k.json(ns, ocispec.MediaTypeImageConfig, ocispec.Image{RootFS: ocispec.RootFS{Type: "layers", DiffIDs: diffIDs}})
	manifest := k.json(ns, ocispec.MediaTypeImageManifest, ocispec.Manifest{Versioned: v, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: descs})
	absent := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("absent"), Size: 6}
	index := k.json(ns, ocispec.MediaTypeImageIndex, ocispec.Index{Versioned: v, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{absent, manifest}})
	k.name(ns, name, index)
	return blobs, identity.ChainIDs(slices.Clone(diffIDs))
}

func (k *keptImages) name(ns, name string, target ocispec.Descriptor) {
	k.t.Helper()
	if !slices.Contains(k.spaces, ns) {
		k.spaces = append(k.spaces, ns)
	}
	if _, err := k.images.Create(namespaces.WithNamespace(k.t.Context(), ns), images.Image{Name: name, Target: target}); err != nil {
		k.t.Fatal(err)
	}
}

func (k *keptImages) remove(ns string, blob digest.Digest) {
	k.t.Helper()
	if err := k.store.Delete(namespaces.WithNamespace(k.t.Context(), ns), blob); err != nil {
		k.t.Fatal(err)
	}
}

// The blob on top of a chain is found by any image in any namespace that has it,
// whatever else is there.
func TestContentStoreFinds(t *testing.T) {
	k, c := newKeptImages(t)
	k.name("one", "example.com/damaged:1", k.blob("one", ocispec.MediaTypeImageManifest, []byte("no JSON")))
	blobs, chains := k.image("one", "example.com/app:1", "base", "app")
	k.image("two", "example.com/app:2", "base", "app")
	want := []string{"one " + blobs[1].String()}
	if err := c.Walk(t.Context(), chains[1], nil); err != nil || !slices.Equal(k.applied, want) {
		t.Errorf("applied %q, want %q: %v", k.applied, want, err)
	}
	k.remove("one", blobs[1])
	want = append(want, "two "+blobs[1].String())
	if err := c.Walk(t.Context(), chains[1], nil); err != nil || !slices.Equal(k.applied, want) {
		t.Errorf("applied %q, want %q: %v", k.applied, want, err)
	}
}

// What is not there is NotFound and says what to do, and what unpacks to
// something else is refused.
func TestContentStoreRefuses(t *testing.T) {
	k, c := newKeptImages(t)
	blobs, chains := k.image("one", "example.com/app:1", "base", "app")
	err := c.Walk(t.Context(), digest.FromString("other"), nil)
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), fmt.Sprint("no image of containerd has the chain ", digest.FromString("other"))) {
		t.Errorf("unknown chain: %v", err)
	}
	k.unpacks[blobs[1]] = digest.FromString("something else")
	if err := c.Walk(t.Context(), chains[1], nil); !errdefs.IsDataLoss(err) || errdefs.IsNotFound(err) {
		t.Errorf("another diffID: %v, want %v", err, errdefs.ErrDataLoss)
	}
	k.remove("one", blobs[0])
	err = c.Walk(t.Context(), chains[0], nil)
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "ctr --namespace one content fetch example.com/app:1") {
		t.Errorf("blob that is not kept: %v", err)
	}
	if len(k.applied) != 1 {
		t.Errorf("applied %q, want one", k.applied)
	}
}
