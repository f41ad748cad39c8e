package differ_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// BenchmarkApply unpacks a layer to a committed snapshot: containerd's own differ
// onto overlayfs, and ours. DAXFS_BENCH_LAYER is a plain layer in a file.
func BenchmarkApply(b *testing.B) {
	path := os.Getenv("DAXFS_BENCH_LAYER")
	if path == "" {
		b.Skip("DAXFS_BENCH_LAYER names no layer")
	}
	plain, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	diffID := digest.FromBytes(plain)
	for _, c := range []struct {
		mediaType string
		blob      []byte
	}{
		{ocispec.MediaTypeImageLayer, plain},
		{ocispec.MediaTypeImageLayerGzip, gzipped(plain)},
		{ocispec.MediaTypeImageLayerZstd, zstded(plain)},
	} {
		b.Run(filepath.Base(c.mediaType)+"/daxfs", func(b *testing.B) {
			r := start(b, 4<<30)
			desc := r.blob(c.mediaType, c.blob)
			b.SetBytes(int64(len(plain)))
			for b.Loop() {
				key, chain, mounts := r.prepare(diffID, "")
				if _, err := r.Apply(ctx, desc, mounts); err != nil {
					b.Fatal(err)
				}
				if err := r.Commit(ctx, chain, key); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := r.Remove(ctx, chain); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
		b.Run(filepath.Base(c.mediaType)+"/overlayfs", func(b *testing.B) {
			r := start(b, 4<<30)
			desc := r.blob(c.mediaType, c.blob)
			sn, err := overlay.NewSnapshotter(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			defer sn.Close()
			walking := apply.NewFileSystemApplier(r.store)
			b.SetBytes(int64(len(plain)))
			n := 0
			for b.Loop() {
				n++
				key, chain := fmt.Sprint("k", n), fmt.Sprint("c", n)
				mounts, err := sn.Prepare(ctx, key, "")
				if err != nil {
					b.Fatal(err)
				}
				if _, err := walking.Apply(ctx, desc, mounts); err != nil {
					b.Fatal(err)
				}
				if err := sn.Commit(ctx, chain, key); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := sn.Remove(ctx, chain); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
