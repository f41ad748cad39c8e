package differ_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/introspection"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/differ"
	"github.com/daxfs/containerd-daxfs/internal/engine"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

var ctx = namespaces.WithNamespace(context.Background(), "a")

// rig is a differ over a content store in a directory, without containerd.
type rig struct {
	*snapshotter.Snapshotter
	*differ.Differ
	t     testing.TB
	store *askedStore
	pool  *daxmem.Pool
}

func start(t testing.TB, poolSize int64) *rig {
	t.Helper()
	testutil.Root(t)
	dir := t.TempDir()
	pool, err := daxmem.OpenOrCreate(ctx, filepath.Join(dir, "pool"), daxmem.Options{MaxSize: poolSize})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { testutil.UnmountBelow(t, dir); pool.Close() })
	e, _, err := engine.Select(ctx, nil, snapshotter.EnginePool(pool))
	if err != nil {
		t.Fatal(err)
	}
	sn, err := snapshotter.New(ctx, snapshotter.Options{Root: dir, Pool: pool, Engine: e})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sn.Close() })
	files, err := local.NewStore(filepath.Join(dir, "content"))
	if err != nil {
		t.Fatal(err)
	}
	store := &askedStore{Store: files}
	return &rig{sn, differ.New(sn, differ.NewBlobs(store, contentPlugin(filepath.Join(dir, "content")))), t, store, pool}
}

// askedStore counts the blobs that are read through it, and breaks off where it
// should.
type askedStore struct {
	content.Store
	opened  int
	breakAt int64 // 0: nowhere
}

var errBroken = errors.New("the disk is gone")

func (a *askedStore) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	a.opened++
	ra, err := a.Store.ReaderAt(ctx, desc)
	if err != nil || a.breakAt == 0 {
		return ra, err
	}
	return brokenReaderAt{ra, a.breakAt}, nil
}

type brokenReaderAt struct {
	content.ReaderAt
	at int64
}

func (b brokenReaderAt) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > b.at {
		return 0, errBroken
	}
	return b.ReaderAt.ReadAt(p, off)
}

// contentPlugin is an introspection service that knows one plugin, by its root.
type contentPlugin string

func (c contentPlugin) Plugins(context.Context, ...string) (*introspectionapi.PluginsResponse, error) {
	return &introspectionapi.PluginsResponse{Plugins: []*introspectionapi.Plugin{{Exports: map[string]string{"root": string(c)}}}}, nil
}

func (contentPlugin) Server(context.Context) (*introspectionapi.ServerResponse, error) {
	return nil, errors.ErrUnsupported
}

func (contentPlugin) PluginInfo(context.Context, string, string, any) (*introspectionapi.PluginInfoResponse, error) {
	return nil, errors.ErrUnsupported
}

var _ introspection.Service = contentPlugin("")

// blob puts bytes into the content store.
func (r *rig) blob(mediaType string, b []byte) ocispec.Descriptor {
	r.t.Helper()
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if err := content.WriteBlob(ctx, r.store, desc.Digest.String(), bytes.NewReader(b), desc); err != nil {
		r.t.Fatal(err)
	}
	return desc
}

// prepare makes the snapshot that an unpack of a layer does.
func (r *rig) prepare(diffID digest.Digest, parent string) (key, chain string, mounts []mount.Mount) {
	r.t.Helper()
	ids := []digest.Digest{diffID}
	if parent != "" {
		ids = append([]digest.Digest{digest.Digest(filepath.Base(parent))}, diffID)
	}
	chain = identity.ChainID(ids).String()
	key = "a/1/extract " + chain
	mounts, err := r.Prepare(ctx, key, parent, snapshots.WithLabels(map[string]string{"containerd.io/snapshot.ref": chain}))
	if err != nil {
		r.t.Fatal(err)
	}
	return key, "a/2/" + chain, mounts
}

// file reads a file of a chain's image.
func (r *rig) file(chain, name string) string {
	r.t.Helper()
	mounts, err := r.View(ctx, "a/9/view", chain)
	if err != nil {
		r.t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(mounts[0].Source, name))
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.Remove(ctx, "a/9/view"); err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

// clean fails if anything is in the pool.
func (r *rig) clean() {
	r.t.Helper()
	if err := r.Cleanup(ctx); err != nil {
		r.t.Fatal(err)
	}
	st, err := r.pool.Stat()
	if err != nil {
		r.t.Fatal(err)
	}
	if n := len(r.pool.Records()); n > 0 || st.Inflight > 0 || st.ExtentCount > 0 {
		r.t.Errorf("left in the pool: %d records, %+v", n, st)
	}
}

// archive is a layer of one file.
func archive(t testing.TB, name, body string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(body))})
	if err == nil {
		_, err = io.WriteString(w, body)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(b)
	_ = w.Close()
	return out.Bytes()
}

func zstded(b []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		panic(fmt.Sprint("zstd: ", err))
	}
	return w.EncodeAll(b, nil)
}
