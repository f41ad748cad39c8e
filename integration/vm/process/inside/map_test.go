package inside

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestMap: mappings of all sizes have the file's bytes, zeros to the end of the
// last page, and a signal behind it.
func TestMap(t *testing.T) {
	onViews(t, "native v8 pool nopages overlay", func(t *testing.T, m *mounted) {
		for _, flags := range []int{unix.MAP_SHARED, unix.MAP_PRIVATE} {
			for _, size := range FillSizes {
				rel := FillName(size)
				f := m.open(t, rel)
				// Two pages more than the file has.
				n := (int(size)+pageSize-1)/pageSize*pageSize + 2*pageSize
				mem, err := tryMap(f, 0, n, unix.PROT_READ, flags)
				if err != nil {
					t.Errorf("map %s, flags %#x: %v", rel, flags, err)
					continue
				}
				wantFill(t, "mapping", mem.b[:size], rel, 0)
				end := n - 2*pageSize
				if tail := mem.b[size:end]; !bytes.Equal(tail, make([]byte, len(tail))) {
					t.Errorf("%s, flags %#x: the last page's %d bytes behind the end are not zero", rel, flags, len(tail))
				}
				for _, at := range []int{end, end + pageSize} {
					if err := faulted(func() { sink += mem.b[at] }); err == nil {
						t.Errorf("%s, flags %#x: byte %d, behind the last page, can be read, want SIGBUS", rel, flags, at)
					}
				}
				mem.unmap()
				f.Close()
			}
		}
	})
}

// TestMapOffsets maps parts, and touches them in all orders.
func TestMapOffsets(t *testing.T) {
	onViews(t, "native v8 pool nopages overlay", func(t *testing.T, m *mounted) {
		rel := FillName(3<<20 + 123)
		f := m.open(t, rel)
		pages := (3<<20 + 123 + pageSize - 1) / pageSize
		orders := map[string]func(i, n int) int{
			"forwards":  func(i, n int) int { return i },
			"backwards": func(i, n int) int { return n - 1 - i },
			"every 7th": func(i, n int) int { return i * 7 % n },
			"from half": func(i, n int) int { return (i + n/2) % n },
		}
		for _, c := range []struct{ first, n int }{{0, pages}, {1, 100}, {15, 2}, {511, 3}, {512, 200}, {pages - 1, 1}, {pages - 3, 3}} {
			for _, flags := range []int{unix.MAP_SHARED, unix.MAP_PRIVATE} {
				for what, order := range orders {
					if what == "every 7th" && c.n%7 == 0 {
						continue // would not come everywhere
					}
					mem, err := tryMap(f, int64(c.first)*pageSize, c.n*pageSize, unix.PROT_READ, flags)
					must(t, err)
					for i := range c.n {
						sink += mem.b[order(i, c.n)*pageSize]
					}
					end := min(c.n*pageSize, 3<<20+123-c.first*pageSize)
					wantFill(t, what, mem.b[:end], rel, int64(c.first)*pageSize)
					if m.inPlace() {
						m.wantFrames(t, rel, c.first, mem.frames(t))
					}
					mem.unmap()
				}
			}
		}
		if mem, err := tryMap(f, 1, pageSize, unix.PROT_READ, unix.MAP_SHARED); !errors.Is(err, unix.EINVAL) {
			t.Errorf("map at byte 1: %v, %v, want %v", mem, err, unix.EINVAL)
		}
		mem, err := tryMap(f, 1<<40, pageSize, unix.PROT_READ, unix.MAP_SHARED)
		must(t, err)
		defer mem.unmap()
		if err := faulted(func() { sink += mem.b[0] }); err == nil {
			t.Error("a page of a terabyte behind the end can be read, want SIGBUS")
		}
	})
}

// TestMapExecutable: text can be mapped, where the mount allows it.
func TestMapExecutable(t *testing.T) {
	onViews(t, "native nopages overlay", func(t *testing.T, m *mounted) {
		f := m.open(t, "bin/subject-static")
		mem := mapFile(t, f, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
		want, err := os.ReadFile(m.path("bin/subject-static"))
		must(t, err)
		if !bytes.Equal(mem.b, want) {
			t.Error("mapped text is not what read gives")
		}
	})
	if config.FS != "daxfs" {
		return
	}
	t.Run("noexec", func(t *testing.T) {
		dir := mountAt(t, "none", "daxfs", unix.MS_RDONLY|unix.MS_NOEXEC, options(ImageNative, ""))
		f := open(t, dir+"/bin/subject-static")
		if _, err := tryMap(f, 0, pageSize, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE); !errors.Is(err, unix.EPERM) {
			t.Errorf("map to execute: %v, want %v", err, unix.EPERM)
		}
	})
}

// TestMapParts: unmapping, moving, protecting and growing parts of a mapping
// leave the rest.
func TestMapParts(t *testing.T) {
	onViews(t, "native v8 pool nopages", func(t *testing.T, m *mounted) {
		const rel = "data/65536"
		for _, flags := range []int{unix.MAP_SHARED, unix.MAP_PRIVATE} {
			check := func(what string, b []byte, off int) {
				t.Helper()
				wantFill(t, what, b, rel, int64(off))
			}
			frames := func(what string, mem *mapping) {
				t.Helper()
				if m.inPlace() {
					m.wantFrames(t, rel, 0, mem.frames(t))
				}
			}

			t.Run("unmap a half", func(t *testing.T) {
				for _, touch := range []bool{false, true} {
					mem, err := tryMap(m.open(t, rel), 0, 65536, unix.PROT_READ, flags)
					must(t, err)
					if touch {
						mem.touch()
					}
					must(t, munmap(mem.addr+32768, 32768))
					check("first half", mem.b[:32768], 0)
					if err := faulted(func() { sink += mem.b[32768] }); err == nil {
						t.Error("the half that was unmapped can be read")
					}
					must(t, munmap(mem.addr, 32768))

					mem, err = tryMap(m.open(t, rel), 0, 65536, unix.PROT_READ, flags)
					must(t, err)
					if touch {
						mem.touch()
					}
					must(t, munmap(mem.addr, 32768))
					check("second half", mem.b[32768:], 32768)
					must(t, munmap(mem.addr+32768, 32768))

					mem, err = tryMap(m.open(t, rel), 0, 65536, unix.PROT_READ, flags)
					must(t, err)
					if touch {
						mem.touch()
					}
					must(t, munmap(mem.addr+16384, 32768))
					check("first quarter", mem.b[:16384], 0)
					check("last quarter", mem.b[49152:], 49152)
					must(t, munmap(mem.addr, 65536))
				}
			})
			t.Run("move", func(t *testing.T) {
				mem := mapPath(t, m.path(rel), unix.PROT_READ, flags)
				mem.touch()
				to := anon(t, 65536)
				must(t, mremap(mem.addr, 65536, 65536, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, to.addr))
				mem.b = nil
				check("moved", to.b, 0)
				frames("moved", to)
			})
			t.Run("move and keep", func(t *testing.T) {
				mem := mapPath(t, m.path(rel), unix.PROT_READ, flags)
				mem.touch()
				to := anon(t, 65536)
				err := mremap(mem.addr, 65536, 65536, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED|unix.MREMAP_DONTUNMAP, to.addr)
				if errors.Is(err, unix.EINVAL) && m.nopages() && flags == unix.MAP_SHARED {
					return // the kernel does not do that with frames alone
				}
				must(t, err)
				check("moved", to.b, 0)
				check("kept", mem.b, 0)
				frames("moved", to)
				frames("kept", mem)
			})
			grow := func(mem *mapping, n int) (*mapping, error) {
				p, err := unix.MremapPtr(unsafe.Pointer(&mem.b[0]), uintptr(len(mem.b)), nil, uintptr(n), unix.MREMAP_MAYMOVE)
				if err != nil {
					return nil, err
				}
				mem.b = nil
				g := &mapping{unsafe.Slice((*byte)(p), n), uintptr(p)}
				t.Cleanup(g.unmap)
				return g, nil
			}
			t.Run("shrink and grow", func(t *testing.T) {
				mem := mapPath(t, m.path(rel), unix.PROT_READ, flags)
				mem.touch()
				must(t, mremap(mem.addr, 65536, 4*pageSize, 0, 0))
				mem.b = mem.b[:4*pageSize]
				check("shrunk", mem.b, 0)
				g, err := grow(mem, 16*pageSize)
				if config.FS == "daxfs" && (errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EFAULT)) {
					// Where there is room, the kernel merges the mapping with what
					// is added, and does not merge VM_SPECIAL ones (vma_merge());
					// VM_PFNMAP ones do not grow at all.
					return
				}
				must(t, err)
				check("grown", g.b, 0)
				frames("grown", g)
			})
			t.Run("grow and move", func(t *testing.T) {
				room := anon(t, 16*pageSize)
				part := &mapping{room.b[:4*pageSize], room.addr}
				must(t, mmapFixed(m.open(t, rel), part.b, 0, unix.PROT_READ, flags))
				part.touch()
				g, err := grow(part, 16*pageSize)
				if errors.Is(err, unix.EFAULT) && m.nopages() && flags == unix.MAP_SHARED {
					return
				}
				must(t, err)
				check("grown", g.b, 0)
				frames("grown", g)
			})
			t.Run("protect", func(t *testing.T) {
				mem := mapPath(t, m.path(rel), unix.PROT_READ, flags)
				mem.touch()
				must(t, mem.mprotect(16384, 16384, unix.PROT_NONE))
				if err := faulted(func() { sink += mem.b[16384] }); err == nil {
					t.Error("a page without protection can be read")
				}
				must(t, mem.mprotect(16384, 16384, unix.PROT_READ|unix.PROT_EXEC))
				check("protected and back", mem.b, 0)
				frames("protected and back", mem)
			})
			t.Run("fixed over", func(t *testing.T) {
				mem := anon(t, 65536)
				f := m.open(t, rel)
				part := mem.b[16384:32768]
				must(t, mmapFixed(f, part, 16384, unix.PROT_READ, flags))
				check("in the middle of other memory", part, 16384)
				if mem.b[0] != 0 || mem.b[65535] != 0 {
					t.Error("the memory around it has changed")
				}
			})
		}
	})
}

// TestMapLongerThanDescriptor: a mapping needs no descriptor, nor a name.
func TestMapLongerThanDescriptor(t *testing.T) {
	onViews(t, "native pool nopages", func(t *testing.T, m *mounted) {
		const rel = "data/65536"
		mem := mapPath(t, m.path(rel), unix.PROT_READ, unix.MAP_SHARED) // closed by now
		dropCaches(t)
		if err := unix.Unmount(m.root, 0); err != unix.EBUSY {
			t.Errorf("unmount with a mapping: %v, want %v", err, unix.EBUSY)
		}
		// Out of sight, the mount lives on until the mapping ends.
		must(t, unix.Unmount(m.root, unix.MNT_DETACH))
		wantFill(t, "after a lazy unmount", mem.b, rel, 0)
		mem.unmap()
	})
}
