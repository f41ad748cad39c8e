package integration

import (
	"context"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"

	"github.com/daxfs/containerd-daxfs/integration/lab"
)

// containerd's own tests of a snapshotter, through the proxy and our daemon.
//
// The suite is told the name "overlayfs", which it uses for one thing: its
// Rename case leaves out the rename of a lower directory, which overlay mounts
// without redirect_dir answer with EXDEV whoever made them. All other cases are
// the same for every name.
func TestSnapshotterSuite(t *testing.T) {
	lab.Require(t)
	built := lab.Build(t)
	testsuite.SnapshotterSuite(t, "overlayfs", func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		return built.Serve(t, root)
	})
}
