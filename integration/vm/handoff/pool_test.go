package handoff

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/integration/images"
	"github.com/daxfs/containerd-daxfs/internal/engine"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

const poolSize = 512 << 20

// noEngine mounts nothing: it is other kernels that mount the image here.
type noEngine struct{}

func (noEngine) Name() string                                    { return "none" }
func (noEngine) Probe(context.Context, engine.Pool) engine.Probe { return engine.Probe{} }
func (noEngine) Mount(_ context.Context, _ engine.Source, target string) (*engine.Mount, error) {
	return &engine.Mount{Engine: "none", Method: "pretended", Target: target}, nil
}

// fillPool makes a pool in a file in memory and unpacks an image into it, as
// containerd does. A view keeps the image until the test ends, when the owner
// closes the pool. spec is the image's name for daxfsctl.
func fillPool(t *testing.T, l *images.Layout) (path, spec string) {
	t.Helper()
	ctx := t.Context()
	dir, err := os.MkdirTemp("/dev/shm", "handoff-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "pool.daxfs")
	pool, err := daxmem.OpenOrCreate(ctx, path, daxmem.Options{MaxSize: poolSize})
	if err != nil {
		t.Fatal(err)
	}
	sn, err := snapshotter.New(ctx, snapshotter.Options{Root: t.TempDir(), Pool: pool, Engine: noEngine{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sn.Close(); err != nil {
			t.Error(err)
		}
		if err := pool.Close(); err != nil {
			t.Error(err)
		}
	})
	layers, err := l.Layers()
	if err != nil {
		t.Fatal(err)
	}
	var diffIDs []digest.Digest
	parent := ""
	for i, layer := range layers {
		diffIDs = append(diffIDs, layer.DiffID)
		name := identity.ChainID(diffIDs).String()
		if err := unpack(ctx, sn, l, layer, fmt.Sprint("extract-", i), name, parent); err != nil {
			t.Fatalf("unpack layer %d: %v", i, err)
		}
		parent = name
	}
	if _, err := sn.View(ctx, "keep", parent); err != nil { // which needs the image
		t.Fatal(err)
	}
	for _, r := range pool.Records() {
		if r.Kind == daxmem.KindImage {
			return path, fmt.Sprintf("pool:%x", r.Key)
		}
	}
	t.Fatal("no image in the pool")
	return "", ""
}

// unpack makes a layer into a committed snapshot. As with layers that containerd
// unpacks at the same time, what is below counts at the end only, so no image is
// mounted for it.
func unpack(ctx context.Context, sn snapshots.Snapshotter, l *images.Layout, layer images.Layer, key, name, parent string) error {
	mounts, err := sn.Prepare(ctx, key, "")
	if err != nil {
		return err
	}
	tar, err := l.Open(layer)
	if err != nil {
		return err
	}
	defer tar.Close()
	err = mount.WithTempMount(ctx, mounts, func(root string) error {
		_, err := archive.Apply(ctx, root, tar, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
		return err
	})
	if err != nil {
		return err
	}
	return sn.Commit(ctx, name, key, snapshots.WithParent(parent))
}
