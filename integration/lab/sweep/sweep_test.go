package sweep

import (
	"os"
	"path/filepath"
	"testing"
)

func TestReadMounts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mountinfo")
	lines := `27 1 254:0 / / rw,relatime - ext4 /dev/root rw
90 27 0:50 / /tmp/dxlab1/with\040space rw shared:7 master:1 - overlay overlay rw,lowerdir=/a,upperdir=/tmp/dxlab1/daxfs/snapshots/1/fs
91 27 0:51 / /tmp/dxlab1/i ro - erofs /tmp/dxlab1/daxfs/pool ro,fsoffset=4096
92 27 0:52 / /tmp/dxlab12/i ro - erofs /tmp/dxlab12/daxfs/pool ro
`
	if err := os.WriteFile(file, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	mounts, err := readMounts(file)
	if err != nil || len(mounts) != 4 {
		t.Fatalf("%v %+v", err, mounts)
	}
	if m := mounts[1]; m.Point != "/tmp/dxlab1/with space" || m.Type != "overlay" || m.ID != 90 {
		t.Errorf("%+v", m)
	}
	if rootOf(file, "/tmp/dxlab1") {
		t.Error("the machine's own root is taken for a container's")
	}
	root := `27 1 0:50 / / rw - overlay overlay rw,lowerdir=/a,upperdir=/tmp/dxlab1/daxfs/snapshots/1/fs
`
	if err := os.WriteFile(file, []byte(root), 0o600); err != nil {
		t.Fatal(err)
	}
	if !rootOf(file, "/tmp/dxlab1") || rootOf(file, "/tmp/dxlab") || rootOf(file, "/tmp/dxlab12") {
		t.Error("a container's root is not told from another lab's")
	}
}

// Nothing that the test itself runs, or its parents, may ever be found.
func TestFindsNobodyElse(t *testing.T) {
	if pids := processesOf(t.TempDir()); len(pids) > 0 {
		t.Errorf("processes %v found for a directory that nothing uses", pids)
	}
}
