package kills

import (
	"os"
	"testing"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/integration/lab/sweep"
)

// nothingMounted says that no mount and no loop device is left of the files in
// a directory.
func nothingMounted(t *testing.T, dir string) {
	t.Helper()
	points, err := sweep.MountsBelow(dir)
	if err != nil {
		t.Fatal(err)
	}
	if loops := sweep.LoopsOf(dir); len(points)+len(loops) > 0 {
		t.Errorf("after the last release: mounts %q, loop devices %q", points, loops)
	}
}

// holderOf is what the seat of a daemon says.
func holderOf(t *testing.T, root string) string {
	t.Helper()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return daxmem.HolderName(host + ":" + root)
}
