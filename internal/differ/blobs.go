package differ

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/introspection"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Blobs are those of a containerd on this machine. What a namespace has is asked
// of containerd; the bytes are read from its files, since in messages they would
// be copied three times more.
type Blobs struct {
	store  content.InfoReaderProvider
	plugin introspection.Service

	slow sync.Once // warned that bytes come in messages

	mu   sync.Mutex
	root string // of the content store's files, "" if not known yet
}

// NewBlobs returns the blobs of a containerd, by its services.
func NewBlobs(store content.InfoReaderProvider, plugin introspection.Service) *Blobs {
	return &Blobs{store: store, plugin: plugin}
}

// ReaderAt implements content.Provider. It does not check the digest of what is
// read. NotFound: the namespace of ctx does not have the blob.
func (b *Blobs) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("digest %q: %w: %w", desc.Digest, err, errdefs.ErrInvalidArgument)
	}
	info, err := b.store.Info(ctx, desc.Digest)
	if errdefs.IsUnavailable(err) {
		return nil, fmt.Errorf("ask the containerd of this daemon's configuration for the blob: %w", err)
	}
	if err != nil {
		return nil, err
	}
	root, err := b.findRoot(ctx)
	if err == nil {
		var f content.ReaderAt
		if f, err = local.OpenReader(filepath.Join(root, "blobs", desc.Digest.Algorithm().String(), desc.Digest.Encoded())); err == nil {
			if f.Size() == info.Size {
				return f, nil
			}
			err = fmt.Errorf("file of %d bytes, want %d: %w", f.Size(), info.Size, errdefs.ErrDataLoss)
			f.Close()
		}
	}
	// Another store than containerd's own, or one in another mount namespace.
	b.slow.Do(func() {
		log.G(ctx).WithError(err).Warn("blobs are read through containerd, which is slower than from its files")
	})
	return b.store.ReaderAt(ctx, desc)
}

// findRoot asks containerd where it keeps blobs.
func (b *Blobs) findRoot(ctx context.Context) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.root != "" {
		return b.root, nil
	}
	all, err := b.plugin.Plugins(ctx, "type=="+plugins.ContentPlugin.String())
	if err != nil {
		return "", fmt.Errorf("ask for content plugins: %w", err)
	}
	for _, p := range all.Plugins {
		if root := p.Exports["root"]; root != "" && p.InitErr == nil {
			if _, err := os.Stat(filepath.Join(root, "blobs")); err != nil {
				return "", err
			}
			b.root = root
			return root, nil
		}
	}
	return "", fmt.Errorf("directory of the content plugin: %w", errdefs.ErrNotFound)
}
