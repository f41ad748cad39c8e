package snapshotter_test

import (
	"fmt"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
)

// BenchmarkSecondContainer is Prepare, Mounts and Remove of a further
// container of an image, for containerd's overlayfs snapshotter and ours.
func BenchmarkSecondContainer(b *testing.B) {
	const layers = 5
	run := func(b *testing.B, sn snapshots.Snapshotter) {
		parent := ""
		for i := range layers {
			name := fmt.Sprint("layer", i)
			if _, err := sn.Prepare(ctx, "p", parent); err != nil {
				b.Fatal(err)
			}
			if err := sn.Commit(ctx, name, "p"); err != nil {
				b.Fatal(err)
			}
			parent = name
		}
		if _, err := sn.Prepare(ctx, "first", parent); err != nil {
			b.Fatal(err)
		}
		for i := 0; b.Loop(); i++ {
			key := fmt.Sprint("c", i)
			if _, err := sn.Prepare(ctx, key, parent); err != nil {
				b.Fatal(err)
			}
			if _, err := sn.Mounts(ctx, key); err != nil {
				b.Fatal(err)
			}
			if err := sn.Remove(ctx, key); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("overlayfs", func(b *testing.B) {
		sn, err := overlay.NewSnapshotter(b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		defer sn.Close()
		run(b, sn)
	})
	b.Run("daxfs", func(b *testing.B) { run(b, start(b)) })
}
