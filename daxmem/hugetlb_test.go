package daxmem

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// hugetlbDir is a directory on hugetlbfs with 10 free huge pages of 2 MiB:
//
//	sysctl vm.nr_hugepages=10; mount -t hugetlbfs -o pagesize=2M none DIR
//	DAXFS_TEST_HUGETLBFS=DIR go test ./daxmem -run Hugetlb
func hugetlbDir(t *testing.T) string {
	dir := os.Getenv("DAXFS_TEST_HUGETLBFS")
	if dir == "" {
		if strings.Contains(os.Getenv("DAXFS_TEST_REQUIRE"), "hugetlbfs") {
			t.Fatal("DAXFS_TEST_HUGETLBFS is not set")
		}
		t.Skip("DAXFS_TEST_HUGETLBFS names no directory on hugetlbfs")
	}
	sub, err := os.MkdirTemp(dir, "daxmem-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sub) })
	return sub
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
