package inside

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Values that golang.org/x/sys/unix has not got.
const (
	madvCollapse = 25
	mlockOnFault = 1
)

// TestAdvise: every madvise(2) does what it says or refuses, and leaves the
// bytes and, where they are mapped, the frames.
func TestAdvise(t *testing.T) {
	onViews(t, "native pool nopages overlay", func(t *testing.T, m *mounted) {
		const rel = "data/65536"
		const all, none, any = 1, 0, -1 // what is mapped afterwards
		for _, c := range []struct {
			name   string
			advice int
			want   unix.Errno
			mapped int
		}{
			{"NORMAL", unix.MADV_NORMAL, 0, all},
			{"RANDOM", unix.MADV_RANDOM, 0, all},
			{"SEQUENTIAL", unix.MADV_SEQUENTIAL, 0, all},
			{"WILLNEED", unix.MADV_WILLNEED, 0, all},
			{"DONTNEED", unix.MADV_DONTNEED, 0, none},
			{"COLD", unix.MADV_COLD, 0, all},
			{"PAGEOUT", unix.MADV_PAGEOUT, 0, any},
			{"HUGEPAGE", unix.MADV_HUGEPAGE, 0, all},
			{"NOHUGEPAGE", unix.MADV_NOHUGEPAGE, 0, all},
			{"DONTFORK", unix.MADV_DONTFORK, 0, all},
			{"DOFORK", unix.MADV_DOFORK, 0, all},
			{"DONTDUMP", unix.MADV_DONTDUMP, 0, all},
			{"MERGEABLE", unix.MADV_MERGEABLE, 0, all},
			{"DODUMP", unix.MADV_DODUMP, 0, all},
			{"POPULATE_READ", unix.MADV_POPULATE_READ, 0, all},
			{"FREE", unix.MADV_FREE, unix.EINVAL, all},
			{"REMOVE", unix.MADV_REMOVE, unix.EACCES, all},
			{"POPULATE_WRITE", unix.MADV_POPULATE_WRITE, unix.EINVAL, all},
		} {
			for _, flags := range []int{unix.MAP_SHARED, unix.MAP_PRIVATE} {
				mem := mapPath(t, m.path(rel), unix.PROT_READ, flags)
				mem.touch()
				want := c.want
				special := m.nopages() && flags == unix.MAP_SHARED || m.inPlace()
				if c.name == "DODUMP" && special {
					want = unix.EINVAL // see madvise_vma_behavior() about VM_SPECIAL
				}
				if c.name == "DOFORK" && special && linuxMajor(t) >= 7 {
					want = unix.EINVAL // was about VM_IO only in Linux 6
				}
				if m.nopages() && flags == unix.MAP_SHARED {
					switch c.name {
					case "DONTNEED", "COLD", "PAGEOUT", "POPULATE_READ":
						want = unix.EINVAL // not of frames (VM_PFNMAP)
					}
				}
				err := mem.madvise(0, 65536, c.advice)
				if errno(err) != want {
					t.Errorf("MADV_%s, flags %#x: %v, want %v", c.name, flags, err, want)
				}
				pfns := mem.frames(t)
				n := resident(pfns)
				if m.inPlace() && (c.mapped == all && n != 16 || c.mapped == none && n != 0) {
					t.Errorf("MADV_%s, flags %#x: %d of 16 pages are mapped afterwards", c.name, flags, n)
				}
				wantFill(t, "after MADV_"+c.name, mem.b, rel, 0)
				if m.inPlace() {
					m.wantFrames(t, rel, 0, mem.frames(t))
				}
				mem.unmap()
			}
		}
	})
}

// TestPopulate: what is asked for in advance is there.
func TestPopulate(t *testing.T) {
	daxfsOnly(t)
	onViews(t, "native pool overlay", func(t *testing.T, m *mounted) {
		rel := FillName(3<<20 + 123)
		for _, c := range []struct {
			what string
			do   func(mem *mapping) error
		}{
			{"MADV_POPULATE_READ", func(mem *mapping) error { return mem.madvise(0, 3<<20, unix.MADV_POPULATE_READ) }},
			{"mlock", func(mem *mapping) error { return unix.Mlock(mem.b[:3<<20]) }},
			{"mlockall", func(mem *mapping) error {
				defer unix.Munlockall()
				return unix.Mlockall(unix.MCL_CURRENT)
			}},
		} {
			for _, flags := range []int{unix.MAP_SHARED, unix.MAP_PRIVATE} {
				mem := mapPath(t, m.path(rel), unix.PROT_READ, flags)
				if err := c.do(mem); err != nil {
					t.Errorf("%s, flags %#x: %v", c.what, flags, err)
				}
				pfns := mem.frames(t)[:3<<20/pageSize]
				if n := resident(pfns); n != len(pfns) {
					t.Errorf("%s, flags %#x: %d of %d pages are there", c.what, flags, n, len(pfns))
				}
				m.wantFrames(t, rel, 0, pfns)
				must(t, unix.Munlock(mem.b[:3<<20]))
				wantFill(t, "after "+c.what, mem.b[:pageSize], rel, 0)
				mem.unmap()
			}
		}
	})
}

// TestLock: locked memory stays, can be unlocked, and on fault too.
func TestLock(t *testing.T) {
	onViews(t, "native pool nopages overlay", func(t *testing.T, m *mounted) {
		const rel = "data/65536"
		for _, flags := range []int{unix.MAP_SHARED, unix.MAP_PRIVATE, unix.MAP_SHARED | unix.MAP_LOCKED, unix.MAP_PRIVATE | unix.MAP_LOCKED} {
			mem := mapPath(t, m.path(rel), unix.PROT_READ, flags)
			if err := mlock2(mem.b, mlockOnFault); err != nil {
				t.Errorf("mlock2 on fault, flags %#x: %v", flags, err)
			}
			if err := unix.Mlock(mem.b); err != nil && (!m.nopages() || err != unix.ENOMEM) {
				t.Errorf("mlock, flags %#x: %v", flags, err)
			}
			wantFill(t, "locked", mem.b, rel, 0)
			if err := unix.Munlock(mem.b); err != nil {
				t.Errorf("munlock, flags %#x: %v", flags, err)
			}
			wantFill(t, "unlocked", mem.b, rel, 0)
			mem.unmap()
		}
	})
}

// TestLockAll: a process that locks all that it has and will have runs on.
func TestLockAll(t *testing.T) {
	onViews(t, "native pool overlay", func(t *testing.T, m *mounted) {
		const rel = "data/65536"
		mem := mapPath(t, m.path(rel), unix.PROT_READ, unix.MAP_PRIVATE)
		must(t, unix.Mlockall(unix.MCL_CURRENT|unix.MCL_FUTURE))
		defer unix.Munlockall()
		later := mapPath(t, m.path(rel), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
		wantFill(t, "mapped before", mem.b, rel, 0)
		wantFill(t, "mapped later", later.b, rel, 0)
		m.wantUnchanged(t, rel)
	})
}

// TestMincore: pages that are mapped are there; others need no I/O but count as
// absent, because no cache has them.
func TestMincore(t *testing.T) {
	daxfsOnly(t)
	onViews(t, "native pool overlay", func(t *testing.T, m *mounted) {
		mem := mapPath(t, m.path(Big), unix.PROT_READ, unix.MAP_SHARED)
		sink += mem.b[0]
		sink += mem.b[32<<20]
		pfns := mem.frames(t)
		vec := make([]byte, mem.pages())
		must(t, mincore(mem.b, vec))
		for i, pfn := range pfns {
			if (vec[i]&1 == 1) != (pfn != 0) {
				t.Fatalf("page %d: mincore says %d, pagemap %#x", i, vec[i], pfn)
			}
		}
		if n := resident(pfns); n == 0 || n == len(pfns) {
			t.Errorf("%d of %d pages are there after two touches", n, len(pfns))
		}
	})
}

// TestMsync: there is nothing to write.
func TestMsync(t *testing.T) {
	onViews(t, "native nopages overlay", func(t *testing.T, m *mounted) {
		const rel = "data/65536"
		for _, flags := range []int{unix.MAP_SHARED, unix.MAP_PRIVATE} {
			mem := mapPath(t, m.path(rel), unix.PROT_READ, flags)
			mem.touch()
			for _, how := range []int{unix.MS_ASYNC, unix.MS_SYNC, unix.MS_INVALIDATE, unix.MS_SYNC | unix.MS_INVALIDATE} {
				err := unix.Msync(mem.b, how)
				if err == unix.EINVAL && config.FS != "daxfs" {
					continue // EROFS has no fsync
				}
				if err != nil {
					t.Errorf("msync %d, flags %#x: %v", how, flags, err)
				}
			}
			wantFill(t, "after msync", mem.b, rel, 0)
		}
		f := m.open(t, rel)
		for what, err := range map[string]error{"fsync": f.Sync(), "fdatasync": unix.Fdatasync(int(f.Fd())), "syncfs": unix.Syncfs(int(f.Fd()))} {
			if err != nil && config.FS == "daxfs" {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}

// TestReclaim: nothing that the kernel does to gain memory takes pages of the
// pool away from a process.
func TestReclaim(t *testing.T) {
	daxfsOnly(t)
	onViews(t, "native pool", func(t *testing.T, m *mounted) {
		rel := FillName(3<<20 + 123)
		mem := mapPath(t, m.path(rel), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
		mem.touch()
		mem.b[0] ^= 0xff
		writeFile(t, "/proc/sys/vm/drop_caches", "3")
		writeFile(t, "/proc/sys/vm/compact_memory", "1")
		if err := os.WriteFile("/proc/self/clear_refs", []byte("1"), 0); err != nil {
			t.Errorf("clear_refs: %v", err)
		}
		if err := os.WriteFile("/proc/self/clear_refs", []byte("4"), 0); err != nil {
			t.Errorf("clear soft-dirty bits: %v", err)
		}
		// What cannot become huge pages says so.
		if err := mem.madvise(0, 2<<20, madvCollapse); err == nil {
			t.Error("MADV_COLLAPSE has made huge pages of the pool")
		}
		mem.b[0] ^= 0xff
		wantFill(t, "after all that", mem.b, rel, 0)
		m.wantFrames(t, rel, 1, mem.frames(t)[1:])
	})
}
