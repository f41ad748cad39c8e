package integration

import (
	"testing"

	"github.com/daxfs/containerd-daxfs/integration/fstree"
	"github.com/daxfs/containerd-daxfs/integration/lab"
	"github.com/daxfs/containerd-daxfs/integration/ocitree"
)

// The comparison is worth something only if it fails when a snapshotter is
// wrong. One that is, and that containerd does not notice: a proxy that returns
// bind mounts loses every whiteout when layers are unpacked in parallel, with
// all digests right.
func TestComparisonFindsLostWhiteouts(t *testing.T) {
	l := lab.New(t, lab.Config{Standin: true, Rebase: true, Parallel: 4})
	ctx := l.Namespace("harness")
	want, notes := l.Expected("nasty", ocitree.Options{Walking: true})
	got := l.ViewTree(ctx, l.MustPull(ctx, "nasty", lab.Daxfs, lab.Transfer), lab.Daxfs)
	rest, _ := fstree.Excused(fstree.Diff(got, want), departure(notes, true))
	found := map[string]bool{}
	for _, d := range rest {
		found[d.Path] = true
	}
	for _, path := range []string{"gone/old", "opaque/old", "partly/a/b", "kinds/links/b"} {
		if !found[path] {
			t.Errorf("%s is there and should not be, and the comparison is silent about it", path)
		}
	}
}
