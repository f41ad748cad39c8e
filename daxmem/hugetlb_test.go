package daxmem

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

// hugetlbDir mounts a hugetlbfs with 10 huge pages of 2 MiB that exist for this
// test only.
func hugetlbDir(t *testing.T) string {
	testutil.Root(t)
	const count = "/proc/sys/vm/nr_hugepages"
	had, err := os.ReadFile(count)
	if err != nil {
		testutil.Missing(t, "hugetlbfs", "no huge pages: %v", err)
	}
	before, err := strconv.Atoi(strings.TrimSpace(string(had)))
	if err != nil {
		t.Fatal(err)
	}
	const pages = 10
	t.Cleanup(func() {
		if err := os.WriteFile(count, had, 0); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(count, []byte(strconv.Itoa(before+pages)), 0); err != nil {
		testutil.Missing(t, "hugetlbfs", "reserve huge pages: %v", err)
	}
	if now, _ := os.ReadFile(count); strings.TrimSpace(string(now)) != strconv.Itoa(before+pages) {
		testutil.Missing(t, "hugetlbfs", "%s huge pages, want %d: memory is too fragmented", now, before+pages)
	}
	dir := t.TempDir()
	// Not more than the test's own pages, whatever the machine has.
	if err := syscall.Mount("none", dir, "hugetlbfs", 0, "pagesize=2M,size=20M"); err != nil {
		testutil.Missing(t, "hugetlbfs", "mount hugetlbfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestHugetlb(t *testing.T) {
	path := filepath.Join(hugetlbDir(t), "pool")
	p, err := OpenOrCreate(bg, path, Options{MaxSize: 63 * mib, SyncDelay: -1})
	if err != nil {
		t.Fatal(err)
	}
	if p.Size() != 64*mib {
		t.Errorf("size %d, want a multiple of 2 MiB", p.Size())
	}
	big := randomBytes(1, 3*mib+5)
	addLayer(t, p, "a", big, randomBytes(2, 100))
	mustCheck(t, p)
	used := mustStat(t, p).Allocated
	if used == 0 {
		t.Error("nothing is allocated")
	}
	// More than the huge pages there are: an error, not a signal.
	_, err = tryLayer(p, key("b"), randomBytes(3, 30*mib))
	if !errors.Is(err, ErrFull) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("beyond the huge pages: %v", err)
	}
	mustCheck(t, p)
	if s := mustStat(t, p); s.Inflight != 0 || s.Allocated > used+2*mib {
		t.Errorf("left behind: %+v", s)
	}
	mustClose(t, p)
	if p, err = OpenOrCreate(bg, path, manual); err != nil {
		t.Fatal(err)
	}
	mustCheck(t, p)
	e := p.byDigest[hashBytes(big)]
	if !bytes.Equal(content(t, p, Extent{Offset: e.off, Size: e.size}), big) {
		t.Error("content differs after reopening")
	}
	// What was written before this process is zeroed too.
	if err := p.Remove(bg, KindLayer, key("a")); err != nil {
		t.Fatal(err)
	}
	if err := p.Sync(bg); err != nil {
		t.Fatal(err)
	}
	mustEmpty(t, p)
	mustClose(t, p)
}
