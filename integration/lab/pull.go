package lab

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/snapshots"
	timage "github.com/containerd/containerd/v2/core/transfer/image"
	tregistry "github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sync/semaphore"

	"github.com/daxfs/containerd-daxfs/integration/fstree"
	"github.com/daxfs/containerd-daxfs/integration/ocitree"
)

// Method is a way of pulling and unpacking an image, as clients have them.
type Method string

const (
	// PullUnpack is client.Pull with WithPullUnpack, as nerdctl and ctr --local
	// do it: the client unpacks, extraction snapshots carry labels.
	PullUnpack Method = "client-pull"
	// FetchUnpack is client.Fetch and then Image.Unpack: no labels at all.
	FetchUnpack Method = "fetch-then-unpack"
	// Transfer is the transfer service, as ctr pull and the CRI do it: containerd
	// itself unpacks.
	Transfer Method = "transfer"
)

// Methods is all of them.
var Methods = []Method{PullUnpack, FetchUnpack, Transfer}

// Ref is the reference under which containerd knows an image of the registry.
func (l *Lab) Ref(name string) string { return l.addr + "/" + name + ":latest" }

// Pull fetches an image that Image has put into the registry, and unpacks it.
func (l *Lab) Pull(ctx context.Context, name, snapshotter string, m Method) (client.Image, error) {
	ref := l.Ref(name)
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost)),
	})
	switch m {
	case PullUnpack:
		opts := []client.RemoteOpt{client.WithResolver(resolver), client.WithPullUnpack, client.WithPullSnapshotter(snapshotter)}
		if l.Parallel > 1 {
			limiter := semaphore.NewWeighted(int64(l.Parallel))
			opts = append(opts, client.WithUnpackOpts([]client.UnpackOpt{client.WithUnpackLimiter(limiter)}))
		}
		return l.client.Pull(ctx, ref, opts...)
	case FetchUnpack:
		img, err := l.client.Fetch(ctx, ref, client.WithResolver(resolver))
		if err != nil {
			return nil, err
		}
		i := client.NewImage(l.client, img)
		return i, i.Unpack(ctx, snapshotter)
	case Transfer:
		reg, err := tregistry.NewOCIRegistry(ctx, ref, tregistry.WithDefaultScheme("http"))
		if err != nil {
			return nil, err
		}
		p := platforms.DefaultSpec()
		store := timage.NewStore(ref, timage.WithPlatforms(p), timage.WithUnpack(p, snapshotter))
		if err := l.client.Transfer(ctx, reg, store); err != nil {
			return nil, err
		}
		return l.client.GetImage(ctx, ref)
	}
	return nil, fmt.Errorf("no pull method %q", m)
}

// MustPull is Pull that fails the test.
func (l *Lab) MustPull(ctx context.Context, name, snapshotter string, m Method) client.Image {
	l.t.Helper()
	img, err := l.Pull(ctx, name, snapshotter, m)
	if err != nil {
		l.t.Fatalf("pull %s into %s by %s: %v", name, snapshotter, m, err)
	}
	return img
}

// RemoveImage removes an image and waits until containerd has collected the
// snapshots and blobs that only it used.
func (l *Lab) RemoveImage(ctx context.Context, name string) {
	l.t.Helper()
	err := l.client.ImageService().Delete(ctx, l.Ref(name), images.SynchronousDelete())
	if err != nil && !errdefs.IsNotFound(err) {
		l.t.Fatalf("remove image %s: %v", name, err)
	}
}

// ChainID is the name of the committed snapshot of all of an image's layers.
func (l *Lab) ChainID(ctx context.Context, img client.Image) string {
	l.t.Helper()
	ids, err := img.RootFS(ctx)
	if err != nil {
		l.t.Fatal(err)
	}
	return identity.ChainID(ids).String()
}

// Snapshots lists the names and keys of a snapshotter in a namespace.
func (l *Lab) Snapshots(ctx context.Context, snapshotter string) []string {
	l.t.Helper()
	var names []string
	err := l.client.SnapshotService(snapshotter).Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		names = append(names, i.Name)
		return nil
	})
	if err != nil {
		l.t.Fatalf("list snapshots of %s: %v", snapshotter, err)
	}
	return names
}

// ViewTree records what a container of img would see below its changes.
func (l *Lab) ViewTree(ctx context.Context, img client.Image, snapshotter string) fstree.Tree {
	l.t.Helper()
	return l.ViewSnapshot(ctx, l.ChainID(ctx, img), snapshotter)
}

// ViewSnapshot records a committed snapshot's tree through a view of it.
func (l *Lab) ViewSnapshot(ctx context.Context, name, snapshotter string) fstree.Tree {
	l.t.Helper()
	ctx, done, err := l.client.WithLease(ctx)
	if err != nil {
		l.t.Fatal(err)
	}
	defer done(ctx)
	sn := l.client.SnapshotService(snapshotter)
	key := "view-" + strings.ReplaceAll(name, ":", "-")
	mounts, err := sn.View(ctx, key, name)
	if err != nil {
		l.t.Fatalf("view of %s in %s: %v", name, snapshotter, err)
	}
	defer func() {
		if err := sn.Remove(ctx, key); err != nil {
			l.t.Errorf("remove view: %v", err)
		}
	}()
	return l.MountTree(mounts)
}

// MountTree mounts what a snapshotter returned, records the tree and unmounts.
func (l *Lab) MountTree(mounts []mount.Mount) fstree.Tree {
	l.t.Helper()
	var tree fstree.Tree
	l.Mounted(mounts, func(root string) {
		var err error
		if tree, err = fstree.Walk(root, fstree.Options{}); err != nil {
			l.t.Fatal(err)
		}
	})
	return tree
}

// Mounted calls f with the mounts at a temporary place.
func (l *Lab) Mounted(mounts []mount.Mount, f func(root string)) {
	l.t.Helper()
	root, err := os.MkdirTemp(l.path("tmp"), "mnt")
	if err != nil {
		l.t.Fatal(err)
	}
	if err := mount.All(mounts, root); err != nil {
		l.t.Fatalf("mount %+v: %v", mounts, err)
	}
	defer func() {
		if err := mount.UnmountMounts(mounts, root, 0); err != nil {
			l.t.Errorf("unmount: %v", err)
		}
		os.Remove(root)
	}()
	f(root)
}

// Expected is what the OCI layer specification wants an image to look like.
func (l *Lab) Expected(name string, o ocitree.Options) (fstree.Tree, *ocitree.Notes) {
	l.t.Helper()
	layout := l.Image(name)
	layers, err := layout.Layers()
	if err != nil {
		l.t.Fatal(err)
	}
	var readers []io.Reader
	for _, layer := range layers {
		r, err := layout.Open(layer)
		if err != nil {
			l.t.Fatal(err)
		}
		defer r.Close()
		readers = append(readers, r)
	}
	tree, notes, err := ocitree.Flatten(readers, o)
	if err != nil {
		l.t.Fatalf("%s: %v", name, err)
	}
	return tree, notes
}
