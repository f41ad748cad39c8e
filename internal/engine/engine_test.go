package engine

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

// TestMethods tries every method on disk and on tmpfs, and that the kernel's
// superblock is known to be there as long as something uses it.
func TestMethods(t *testing.T) {
	testutil.Root(t)
	tmpfs := t.TempDir()
	if err := unix.Mount("tmpfs", tmpfs, "tmpfs", 0, "size=16m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(tmpfs, unix.MNT_DETACH)
	worked := 0
	for _, dir := range []string{t.TempDir(), tmpfs} {
		src, err := probeImage(context.Background(), filepath.Join(dir, "image"))
		if err != nil {
			t.Fatal(err)
		}
		for i := range methods {
			target := t.TempDir()
			e := &Erofs{method: &methods[i]}
			m, err := e.Mount(context.Background(), src, target)
			if err != nil {
				t.Logf("%s: %v", methods[i].name, err)
				continue
			}
			worked++
			t.Logf("%s: %+v", dir, *m)
			f, err := os.Open(filepath.Join(target, "probe"))
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
			if m.Gone() {
				t.Errorf("%s: superblock is gone while a file is open", m.Method)
			}
			f.Close()
			if !m.Gone() {
				t.Errorf("%s: superblock is there after the last user: %v", m.Method, m.Superblocks)
			}
		}
		p := (&Erofs{}).Probe(context.Background(), dir)
		t.Logf("%+v", p)
		if p.Answer != Yes {
			t.Errorf("probe in %s: %+v", dir, p)
		}
	}
	if worked < 3 {
		t.Errorf("only %d methods worked", worked)
	}
}
