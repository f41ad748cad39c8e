package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/daxfs/containerd-daxfs/internal/differ"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// catalogAge is how long contentStore believes what it has read of containerd's
// images: long enough for the many layers of a reboot, short enough for somebody
// who has just fetched one.
const catalogAge = 2 * time.Second

// dialWait is how long a call waits for containerd's socket to appear.
const dialWait = 2 * time.Second

// contentStore unpacks layers from containerd's content store. It connects for each
// call: containerd may come and go, and a connection that has waited for it for long
// tries again late.
type contentStore struct {
	address string // containerd's socket
	connect func() (*client.Client, error)

	mu     sync.Mutex
	blobs  map[digest.Digest][]layerBlob // by chainID
	readAt time.Time
}

var _ snapshotter.Content = (*contentStore)(nil)

// layerBlob is the layer on top of a chain, as an image has it.
type layerBlob struct {
	ocispec.Descriptor
	diffID           digest.Digest
	namespace, image string
}

// newContentStore does not connect yet.
func newContentStore(address string) *contentStore {
	return &contentStore{address: address, connect: func() (*client.Client, error) {
		return client.New(address, client.WithTimeout(dialWait))
	}}
}

// Apply implements snapshotter.Content.
func (c *contentStore) Apply(ctx context.Context, chainID digest.Digest, u *snapshotter.Unpack) error {
	return c.unpack(ctx, chainID, func(ctx context.Context, cl *client.Client, layer ocispec.Descriptor) (ocispec.Descriptor, error) {
		return differ.NewBlobs(cl.ContentStore(), cl.IntrospectionService()).Unpack(ctx, layer, u)
	})
}

// Walk implements snapshotter.Content.
func (c *contentStore) Walk(ctx context.Context, chainID digest.Digest, mounts []mount.Mount) error {
	return c.unpack(ctx, chainID, func(ctx context.Context, cl *client.Client, layer ocispec.Descriptor) (ocispec.Descriptor, error) {
		return cl.DiffService().Apply(ctx, layer, mounts)
	})
}

// applyFunc unpacks a layer, and describes it without compression.
type applyFunc func(ctx context.Context, cl *client.Client, layer ocispec.Descriptor) (ocispec.Descriptor, error)

// unpack finds the blob of the layer on top of a chain, and compares what comes out
// with the layer's diffID.
func (c *contentStore) unpack(ctx context.Context, chainID digest.Digest, apply applyFunc) (err error) {
	cl, err := c.connect()
	if err != nil {
		return fmt.Errorf("connect to containerd: %w", err)
	}
	defer func() { err = errors.Join(err, cl.Close()) }()
	blobs, err := c.find(ctx, cl, chainID)
	if err != nil {
		return fmt.Errorf("look through containerd's images on %s: %w", c.address, err)
	}
	if len(blobs) == 0 {
		return fmt.Errorf("no image of containerd has the chain %s: %w", chainID, errdefs.ErrNotFound)
	}
	for _, b := range blobs {
		ctx := namespaces.WithNamespace(ctx, b.namespace)
		if _, err := cl.ContentStore().Info(ctx, b.Digest); errdefs.IsNotFound(err) {
			continue
		} else if err != nil {
			return fmt.Errorf("look for blob %s: %w", b.Digest, err)
		}
		applied, err := apply(ctx, cl, b.Descriptor)
		if err == nil && applied.Digest != b.diffID {
			err = fmt.Errorf("it unpacks to %s, want %s: %w", applied.Digest, b.diffID, errdefs.ErrDataLoss)
		}
		if err != nil {
			return fmt.Errorf("apply blob %s of image %s in namespace %s: %w", b.Digest, b.image, b.namespace, err)
		}
		log.G(ctx).WithField("blob", b.Digest).WithField("bytes", b.Size).WithField("image", b.image).WithField("namespace", b.namespace).
			Info("blob applied again")
		return nil
	}
	b := blobs[0]
	return fmt.Errorf("containerd does not keep blob %s of image %s in namespace %s, which \"ctr --namespace %s content fetch %s\" brings back: %w",
		b.Digest, b.image, b.namespace, b.namespace, b.image, errdefs.ErrNotFound)
}

// find returns the blobs of the layer on top of a chain; the same one may be
// known in several namespaces, compressed in several ways.
func (c *contentStore) find(ctx context.Context, cl *client.Client, chainID digest.Digest) ([]layerBlob, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.readAt) > catalogAge {
		blobs, err := readImages(ctx, cl)
		if err != nil {
			return nil, err
		}
		c.blobs, c.readAt = blobs, time.Now()
	}
	return c.blobs[chainID], nil
}

// readImages lists the layers of all images in all namespaces, by chainID.
func readImages(ctx context.Context, cl *client.Client) (map[digest.Digest][]layerBlob, error) {
	all, err := cl.NamespaceService().List(ctx)
	if err != nil {
		return nil, err
	}
	blobs := make(map[digest.Digest][]layerBlob)
	for _, ns := range all {
		ctx := namespaces.WithNamespace(ctx, ns)
		list, err := cl.ImageService().List(ctx)
		if err != nil {
			return nil, err
		}
		for _, img := range list {
			err := readImage(ctx, cl, img, func(chainID digest.Digest, b layerBlob) {
				b.namespace, b.image = ns, img.Name
				blobs[chainID] = append(blobs[chainID], b)
			})
			if errdefs.IsUnavailable(err) || ctx.Err() != nil {
				return nil, err
			}
			if err != nil {
				// The others are not concerned.
				log.G(ctx).WithError(err).WithField("image", img.Name).WithField("namespace", ns).Warn("read image of containerd")
			}
		}
	}
	return blobs, nil
}

// readImage calls found for each layer of each platform of an image, of which
// the manifest and the configuration are there.
func readImage(ctx context.Context, cl *client.Client, img images.Image, found func(chainID digest.Digest, b layerBlob)) error {
	store := cl.ContentStore()
	return images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		children, err := images.Children(ctx, store, desc)
		if errdefs.IsNotFound(err) {
			return nil, nil // of a platform that nobody has pulled
		}
		if err != nil || !images.IsManifestType(desc.MediaType) {
			return children, err
		}
		diffIDs, err := images.RootFS(ctx, store, children[0])
		if errdefs.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		layers := slices.DeleteFunc(children[1:], func(d ocispec.Descriptor) bool { return !images.IsLayerType(d.MediaType) })
		if len(layers) != len(diffIDs) {
			return nil, nil // no image of a file system
		}
		for i, chainID := range identity.ChainIDs(slices.Clone(diffIDs)) {
			found(chainID, layerBlob{Descriptor: layers[i], diffID: diffIDs[i]})
		}
		return nil, nil
	}), img.Target)
}
