package differ_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/differ"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

// Every media type and compression that containerd unpacks makes the same layer,
// and is read from the content store's files.
func TestApply(t *testing.T) {
	plain := archive(t, "f", "hello")
	for _, c := range []struct {
		name, mediaType string
		blob            []byte
	}{
		{"plain", ocispec.MediaTypeImageLayer, plain},
		{"gzip", ocispec.MediaTypeImageLayerGzip, gzipped(plain)},
		{"zstd", ocispec.MediaTypeImageLayerZstd, zstded(plain)},
		{"docker", images.MediaTypeDockerSchema2Layer, plain},
		{"docker gzip", images.MediaTypeDockerSchema2LayerGzip, gzipped(plain)},
		{"docker foreign gzip", images.MediaTypeDockerSchema2LayerForeignGzip, gzipped(plain)},
		{"nondistributable gzip", ocispec.MediaTypeImageLayerNonDistributableGzip, gzipped(plain)}, //nolint:staticcheck // images have it
		{"gzip that says plain", images.MediaTypeDockerSchema2Layer, gzipped(plain)},
		{"zstd that says gzip", ocispec.MediaTypeImageLayerGzip, zstded(plain)},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := start(t, 64<<20)
			key, chain, mounts := r.prepare(digest.FromBytes(plain), "")
			got, err := r.Apply(ctx, r.blob(c.mediaType, c.blob), mounts)
			if err != nil {
				t.Fatal(err)
			}
			want := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(plain), Size: int64(len(plain))}
			if got.Digest != want.Digest || got.Size != want.Size || got.MediaType != want.MediaType {
				t.Errorf("applied %+v, want %+v", got, want)
			}
			if err := r.Commit(ctx, chain, key); err != nil {
				t.Fatal(err)
			}
			if got := r.file(chain, "f"); got != "hello" {
				t.Errorf("read %q", got)
			}
			if r.store.opened > 0 {
				t.Errorf("read through containerd")
			}
		})
	}
}

// Programs that containerd would use to decompress are used here too. The test
// runs itself, because containerd looks for them once.
func TestApplyProgram(t *testing.T) {
	if os.Getenv("DAXFS_TEST_IGZIP") == "" {
		testutil.Root(t)
		dir := t.TempDir()
		script := "#!/bin/sh\ntouch " + dir + "/used\nexec gzip \"$@\"\n"
		if err := os.WriteFile(dir+"/igzip", []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestApplyProgram$")
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "DAXFS_TEST_IGZIP=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if _, err := os.Stat(dir + "/used"); err != nil {
			t.Error(err)
		}
		return
	}
	r := start(t, 64<<20)
	plain := archive(t, "f", "hello")
	blob := gzipped(plain)
	_, _, mounts := r.prepare(digest.FromBytes(plain), "")
	if got, err := r.Apply(ctx, r.blob(ocispec.MediaTypeImageLayerGzip, blob), mounts); err != nil || got.Digest != digest.FromBytes(plain) {
		t.Errorf("applied %+v, %v", got, err)
	}
	_, _, mounts = r.prepare("sha256:"+digest.Digest(strings.Repeat("0", 64)), "")
	if _, err := r.Apply(ctx, r.blob(ocispec.MediaTypeImageLayerGzip, blob[:len(blob)-20]), mounts); !errdefs.IsInvalidArgument(err) {
		t.Errorf("truncated blob: %v", err)
	}
}

// A content store whose files are somewhere else is read through containerd.
func TestApplyWithoutFiles(t *testing.T) {
	r := start(t, 64<<20)
	plain := archive(t, "f", "hello")
	desc := r.blob(ocispec.MediaTypeImageLayer, plain)
	d := differ.New(r.Snapshotter, differ.NewBlobs(r.store, contentPlugin(t.TempDir())))
	_, _, mounts := r.prepare(digest.FromBytes(plain), "")
	if _, err := d.Apply(ctx, desc, mounts); err != nil {
		t.Fatal(err)
	}
	if r.store.opened != 1 {
		t.Errorf("%d blobs were read through containerd, want 1", r.store.opened)
	}
}

// noise cannot be compressed.
func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte("noise"))).Read(b)
	return b
}

// What cannot be unpacked is an error of the right class, leaves nothing in the
// pool, and the snapshot as it was.
func TestApplyBad(t *testing.T) {
	random := noise(6 << 20)
	good := archive(t, "f", string(random))
	packed := gzipped(good)
	broken := bytes.Clone(packed)
	broken[len(broken)/2] ^= 0xff
	brokenZstd := zstded(good)
	brokenZstd[len(brokenZstd)-1] ^= 0xff // of its checksum
	const poolSize = 20 << 20
	bomb := append(archive(t, "f", "x"), make([]byte, poolSize)...) // nothing behind its end
	for _, c := range []struct {
		name, mediaType string
		blob            []byte
		is              func(error) bool
		says            string
	}{
		{"truncated gzip", ocispec.MediaTypeImageLayerGzip, packed[:len(packed)/2], errdefs.IsInvalidArgument, `"f": put 6291456 bytes`},
		{"truncated zstd", ocispec.MediaTypeImageLayerZstd, zstded(good)[:1<<20], errdefs.IsInvalidArgument, "unexpected EOF"},
		{"damaged gzip", ocispec.MediaTypeImageLayerGzip, broken, errdefs.IsInvalidArgument, "decompress"},
		{"damaged zstd", ocispec.MediaTypeImageLayerZstd, brokenZstd, errdefs.IsInvalidArgument, "decompress"},
		{"no gzip", ocispec.MediaTypeImageLayerGzip, packed[:5], errdefs.IsInvalidArgument, "decompress"},
		{"bzip2", ocispec.MediaTypeImageLayer, append([]byte("BZh91AY&SY"), random[:1<<10]...), errdefs.IsNotImplemented, "bzip2"},
		{"truncated archive", ocispec.MediaTypeImageLayer, good[:5<<20], errdefs.IsInvalidArgument, `"f"`},
		{"no archive", ocispec.MediaTypeImageLayer, random[:1<<20], errdefs.IsInvalidArgument, ""},
		{"bomb", ocispec.MediaTypeImageLayerZstd, zstded(bomb), errdefs.IsOutOfRange, "more than 20971520 bytes"},
		{"more than fits", ocispec.MediaTypeImageLayerGzip, gzipped(archive(t, "f", strings.Repeat(string(random[:1<<20]), 19))), errdefs.IsResourceExhausted, ""},
		{"encrypted", images.MediaTypeImageLayerGzipEncrypted, packed, errdefs.IsNotImplemented, "encrypted"},
		{"foreign", "application/vnd.example.layer", packed, errdefs.IsNotImplemented, "application/vnd.example.layer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := start(t, poolSize)
			_, _, mounts := r.prepare(digest.FromBytes(good), "")
			_, err := r.Apply(ctx, r.blob(c.mediaType, c.blob), mounts)
			if err == nil || !c.is(err) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v", err)
			}
			r.clean()
			if _, err := r.Apply(ctx, r.blob(ocispec.MediaTypeImageLayer, good), mounts); err != nil {
				t.Errorf("apply the right blob afterwards: %v", err)
			}
		})
	}
}

// Blobs that are not there, or not to the end.
func TestApplyLost(t *testing.T) {
	r := start(t, 64<<20)
	plain := archive(t, "f", strings.Repeat("0123456789", 1<<20))
	_, _, mounts := r.prepare(digest.FromBytes(plain), "")
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString("nothing"), Size: 1}
	if _, err := r.Apply(ctx, desc, mounts); !errdefs.IsNotFound(err) {
		t.Errorf("blob that is not there: %v", err)
	}
	desc.Digest = "sha256:../../../etc/passwd"
	if _, err := r.Apply(ctx, desc, mounts); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no digest: %v", err)
	}
	d := differ.New(r.Snapshotter, differ.NewBlobs(r.store, contentPlugin(t.TempDir())))
	r.store.breakAt = 5 << 20
	plain = archive(t, "f", string(noise(6<<20)))
	for mediaType, blob := range map[string][]byte{
		ocispec.MediaTypeImageLayer: plain, ocispec.MediaTypeImageLayerGzip: gzipped(plain), ocispec.MediaTypeImageLayerZstd: zstded(plain),
	} {
		if _, err := d.Apply(ctx, r.blob(mediaType, blob), mounts); !errors.Is(err, errBroken) || errdefs.IsInvalidArgument(err) {
			t.Errorf("%s that is lost half way: %v", mediaType, err)
		}
	}
	r.clean()
}

// Who gives up leaves nothing.
func TestApplyCancelled(t *testing.T) {
	r := start(t, 64<<20)
	plain := archive(t, "f", strings.Repeat("0123456789", 3<<20))
	desc := r.blob(ocispec.MediaTypeImageLayer, plain)
	cancelled, cancel := context.WithCancel(ctx)
	d := differ.New(r.Snapshotter, differ.NewBlobs(cancelling{r.store, cancel}, contentPlugin(t.TempDir())))
	_, _, mounts := r.prepare(digest.FromBytes(plain), "")
	if _, err := d.Apply(cancelled, desc, mounts); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	r.clean()
}

// The mounts of a container, or of another snapshotter, are the next differ's.
func TestApplyForeignMounts(t *testing.T) {
	r := start(t, 64<<20)
	plain := archive(t, "f", "hello")
	desc := r.blob(ocispec.MediaTypeImageLayer, plain)
	container, err := r.Prepare(ctx, "a/1/container", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, mounts := range [][]mount.Mount{
		container, nil,
		{{Type: "bind", Source: t.TempDir(), Options: []string{"rw"}}},
		{{Type: "overlay", Source: "overlay", Options: []string{"upperdir=/tmp/1/fs", "workdir=/tmp/1/work"}}},
	} {
		if _, err := r.Apply(ctx, desc, mounts); !errdefs.IsNotImplemented(err) {
			t.Errorf("%v: %v, want %v", mounts, err, errdefs.ErrNotImplemented)
		}
	}
	r.clean()
}

// Two layers with the same big file, unpacked at once, have it once.
func TestApplyTwins(t *testing.T) {
	r := start(t, 64<<20)
	body := strings.Repeat("0123456789abcdef", 1<<20)
	done := make(chan error, 2)
	for _, name := range []string{"a", "b"} {
		plain := archive(t, name, body)
		desc := r.blob(ocispec.MediaTypeImageLayerGzip, gzipped(plain))
		key, chain, mounts := r.prepare(digest.FromBytes(plain), "")
		go func() {
			_, err := r.Apply(ctx, desc, mounts)
			if err == nil {
				err = r.Commit(ctx, chain, key)
			}
			done <- err
		}()
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	n := 0
	for _, rec := range r.pool.Records() {
		if rec.Kind == daxmem.KindLayer {
			n++
		}
	}
	if st, err := r.pool.Stat(); err != nil || n != 2 || st.ExtentCount != 1 {
		t.Errorf("%d layers, %d extents, want 2 and 1: %v", n, st.ExtentCount, err)
	}
}

// cancelling is a store whose reader goes away in the middle of a blob.
type cancelling struct {
	*askedStore
	cancel context.CancelFunc
}

func (c cancelling) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	ra, err := c.askedStore.ReaderAt(ctx, desc)
	return cancellingReaderAt{ra, c.cancel}, err
}

type cancellingReaderAt struct {
	content.ReaderAt
	cancel context.CancelFunc
}

func (c cancellingReaderAt) ReadAt(p []byte, off int64) (int, error) {
	if off > 5<<20 {
		c.cancel()
	}
	return c.ReaderAt.ReadAt(p, off)
}
