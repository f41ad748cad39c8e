package inside

import (
	"fmt"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFrames: a mapped page is the pool's own frame, at the pool's physical
// address, for shared and private mappings and in every kind of image.
func TestFrames(t *testing.T) {
	daxfsOnly(t)
	onViews(t, "native v8 pool overlay", func(t *testing.T, m *mounted) {
		for _, rel := range []string{"data/1", "data/65537", FillName(2 << 20), FillName(3<<20 + 123), "bin/subject-static"} {
			for _, c := range []struct {
				what        string
				prot, flags int
			}{
				{"shared", unix.PROT_READ, unix.MAP_SHARED},
				{"private", unix.PROT_READ, unix.MAP_PRIVATE},
				{"private, writable", unix.PROT_READ | unix.PROT_WRITE, unix.MAP_PRIVATE},
				{"shared, executable", unix.PROT_READ | unix.PROT_EXEC, unix.MAP_SHARED},
				{"private, executable", unix.PROT_READ | unix.PROT_EXEC, unix.MAP_PRIVATE},
				{"shared, at once", unix.PROT_READ, unix.MAP_SHARED | unix.MAP_POPULATE},
				{"private, at once", unix.PROT_READ, unix.MAP_PRIVATE | unix.MAP_POPULATE},
			} {
				mem := mapPath(t, m.path(rel), c.prot, c.flags)
				mem.touch()
				pfns := mem.frames(t)
				if n := resident(pfns); n != mem.pages() {
					t.Errorf("%s, %s: %d of %d pages are there", rel, c.what, n, mem.pages())
				}
				m.wantFrames(t, rel, 0, pfns)
				mem.unmap()
			}
		}
	})
}

// TestFramesOfTwoImages: two files of two images with the same content in a
// pool are the same memory.
func TestFramesOfTwoImages(t *testing.T) {
	daxfsOnly(t)
	pool := findView(t, "pool").mount(t)
	twin := mountDaxfs(t, ImageTwin, "")
	rel := FillName(3<<20 + 123)
	a := mapPath(t, pool.path(rel), unix.PROT_READ, unix.MAP_SHARED)
	b := mapPath(t, twin+"/3145851", unix.PROT_READ, unix.MAP_PRIVATE)
	a.touch()
	b.touch()
	pool.wantFrames(t, rel, 0, a.frames(t))
	pool.wantFrames(t, rel, 0, b.frames(t))
}

// TestFramesOfTwoMounts: mounts of one image show one memory.
func TestFramesOfTwoMounts(t *testing.T) {
	daxfsOnly(t)
	a, b := native(t), native(t)
	for _, m := range []*mounted{a, b} {
		mem := mapPath(t, m.path("data/65537"), unix.PROT_READ, unix.MAP_SHARED)
		mem.touch()
		m.wantFrames(t, "data/65537", 0, mem.frames(t))
	}
}

// TestFramesOfTwoProcesses: other processes have the same frames, and each
// counts its share.
func TestFramesOfTwoProcesses(t *testing.T) {
	daxfsOnly(t)
	onViews(t, "native pool overlay", func(t *testing.T, m *mounted) {
		rel := FillName(2 << 20)
		const size = 2 << 20
		for _, how := range []string{"shared", "private"} {
			var all []*subject
			var at []uintptr
			for range 4 {
				s := m.subject(t, "subject-static", "map", m.path(rel), how)
				all = append(all, s)
				at = append(at, s.addresses()[0])
			}
			for i, s := range all {
				m.wantFrames(t, rel, 0, frames(t, s.pid(), at[i], size/pageSize))
				v := smaps(t, s.pid(), at[i])
				if v["Rss"] != size || v["Pss"] != size/4 || v["Shared_Clean"] != size || v["Private_Clean"]+v["Private_Dirty"]+v["Shared_Dirty"]+v["Anonymous"]+v["Swap"] != 0 {
					t.Errorf("%s, process %d of 4: %v, want Rss and Shared_Clean %d, Pss %d", how, i, v, size, size/4)
				}
			}
			for i, s := range all[1:] {
				s.end()
				left := int64(3 - i)
				want := map[string]int64{"Rss": size, "Pss": size / left, "Shared_Clean": size, "Private_Clean": 0}
				if left == 1 {
					want["Shared_Clean"], want["Private_Clean"] = 0, size
				}
				v := smaps(t, all[0].pid(), at[0])
				for k, n := range want {
					// A third is not a whole number of bytes.
					if got := v[k]; got > n || got < n-int64(size/pageSize)*2-1024 {
						t.Errorf("%s, %d processes left: %s %d, want %d", how, left, k, got, n)
					}
				}
			}
			all[0].end()
		}
	})
}

// TestFramesOfProgram: the text of a running program, and of the library that
// it has loaded, are the pool's own; its data is not once it is written.
func TestFramesOfProgram(t *testing.T) {
	daxfsOnly(t)
	onViews(t, "native v8 pool overlay", func(t *testing.T, m *mounted) {
		for _, c := range []struct{ program, file string }{
			{"subject-static", "bin/subject-static"},
			{"subject", "bin/subject"},
			{"subject", "lib/libpart.so"},
		} {
			s := m.subject(t, c.program, "spin")
			s.line()
			text, data := 0, 0
			for _, r := range maps(t, s.pid(), "/"+c.file) {
				pfns := frames(t, s.pid(), r.start, r.pages())
				for i, pfn := range pfns {
					if pfn == 0 {
						continue
					}
					page := int(r.off)/pageSize + i
					switch r.perms {
					case "r-xp", "r--p":
						// Relocated and then protected data looks like constants.
						if inPool(pfn) || r.perms == "r-xp" {
							m.wantFrames(t, c.file, page, pfns[i:i+1])
						}
						if r.perms == "r-xp" {
							text++
						}
					case "rw-p":
						if inPool(pfn) {
							m.wantFrames(t, c.file, page, pfns[i:i+1])
						}
						data++
					}
				}
			}
			if text == 0 || data == 0 && c.program == "subject-static" {
				t.Errorf("%s of %s: %d pages of text and %d of data are there, want some", c.file, c.program, text, data)
			}
			s.kill()
		}
	})
}

// TestFork: parent and child share the frames; a write makes a copy for the
// writer alone, and what is not to be inherited is not.
func TestFork(t *testing.T) {
	onViews(t, "native v8 pool overlay nopages", func(t *testing.T, m *mounted) {
		const rel = "data/65536"
		const pages = 16
		s := m.subject(t, "subject-static", "fork", m.path(rel))
		var child int
		var shared, private, alone uintptr
		line := s.line()
		if _, err := fmt.Sscanf(line, "%d 0x%x 0x%x 0x%x", &child, &shared, &private, &alone); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		read := func(pid int, addr uintptr, page int) byte {
			b := make([]byte, 1)
			n, err := readVM(pid, addr+uintptr(page)*pageSize, b)
			if n != 1 {
				t.Errorf("read the memory of process %d: %d, %v", pid, n, err)
			}
			return b[0]
		}
		if !m.nopages() {
			var want [1]byte
			Fill(want[:], rel, pageSize)
			if got := read(child, private, 1); got != 0xee {
				t.Errorf("the child reads %#x, want what it wrote, 0xee", got)
			}
			if got := read(s.pid(), private, 1); got != want[0] {
				t.Errorf("the parent reads %#x, want the file's %#x", got, want[0])
			}
		}
		if m.inPlace() {
			for _, pid := range []int{s.pid(), child} {
				m.wantFrames(t, rel, 0, frames(t, pid, shared, pages))
			}
			m.wantFrames(t, rel, 0, frames(t, s.pid(), private, pages))
			pfns := frames(t, child, private, pages)
			m.wantFrames(t, rel, 0, pfns[:1])
			wantPrivate(t, "page written by the child", pfns[1])
			m.wantFrames(t, rel, 2, pfns[2:])
			m.wantFrames(t, rel, 0, frames(t, s.pid(), alone, pages))
		}
		for _, r := range maps(t, child, "/"+rel) {
			if r.start == alone {
				t.Error("the child has the mapping with MADV_DONTFORK")
			}
		}
		if n := len(maps(t, s.pid(), "/"+rel)); n != 3 {
			t.Errorf("the parent has %d mappings of the file, want 3", n)
		}
		s.end()
		m.wantUnchanged(t, rel)
	})
}

// TestWriteToCopies: of a private mapping, what is written gets frames of its
// own and all else stays the pool's.
func TestWriteToCopies(t *testing.T) {
	daxfsOnly(t)
	onViews(t, "native v8 pool overlay", func(t *testing.T, m *mounted) {
		const rel = "data/65537"
		for _, touch := range []bool{false, true} {
			mem := mapPath(t, m.path(rel), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
			if touch {
				mem.touch()
			}
			for _, page := range []int{0, 3, 4, 15} {
				mem.b[page*pageSize+5] = 0xee
			}
			mem.touch()
			for i, pfn := range mem.frames(t) {
				switch i {
				case 0, 3, 4, 15:
					wantPrivate(t, fmt.Sprintf("page %d, written", i), pfn)
				default:
					m.wantFrames(t, rel, i, []uint64{pfn})
				}
			}
			v := smaps(t, unix.Getpid(), mem.addr)
			if v["Anonymous"] != 4*pageSize || v["Rss"] != 17*pageSize {
				t.Errorf("smaps: Anonymous %d, Rss %d, want %d, %d", v["Anonymous"], v["Rss"], 4*pageSize, 17*pageSize)
			}
			mem.unmap()
		}
		m.wantUnchanged(t, rel)
	})
}

// TestMemoryNotUsed: reading and mapping 64 MiB takes no memory of the guest's.
func TestMemoryNotUsed(t *testing.T) {
	daxfsOnly(t)
	onViews(t, "native pool overlay", func(t *testing.T, m *mounted) {
		run(t, "cat", m.path("data/1")) // what the first use takes
		cached := func() int64 {
			v := meminfo(t)
			return v["Cached"] + v["AnonPages"] + v["SReclaimable"]
		}
		before := cached()
		mem := mapPath(t, m.path(Big), unix.PROT_READ, unix.MAP_SHARED)
		mem.touch()
		cmd := exec.Command("cat", m.path(Big))
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		// Other things of the guest's go on meanwhile.
		if grown := cached() - before; grown > BigSize/8 {
			t.Errorf("page cache, processes and slabs have grown by %d bytes for a file of %d, want none", grown, BigSize)
		}
	})
}
