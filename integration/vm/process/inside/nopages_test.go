package inside

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// What mounts without page structs cannot do, and what they save. That they
// can do the rest is what the view "nopages" is for.

// TestNopagesMapping: shared mappings have the pool's frames, which are counted
// for nobody and not shown (TestLive sees that they are the pool's); private
// ones have copies.
func TestNopagesMapping(t *testing.T) {
	daxfsOnly(t)
	m := findView(t, "nopages").mount(t)
	const rel = "data/65537"
	shared := mapPath(t, m.path(rel), unix.PROT_READ, unix.MAP_SHARED)
	shared.touch()
	if v := smaps(t, os.Getpid(), shared.addr); v["Rss"] != 0 {
		t.Errorf("shared: Rss %d, want 0", v["Rss"])
	}
	private := mapPath(t, m.path(rel), unix.PROT_READ, unix.MAP_PRIVATE)
	private.touch()
	wantFill(t, "private", private.b, rel, 0)
	for _, pfn := range private.frames(t) {
		wantPrivate(t, "private page", pfn)
	}
	if v := smaps(t, os.Getpid(), private.addr); v["Rss"] != 17*pageSize {
		t.Errorf("private: Rss %d, want %d", v["Rss"], 17*pageSize)
	}
}

// TestMountMemory: a mount costs page structs, 16 MiB for each GiB at most, and
// a nopages mount not even them.
func TestMountMemory(t *testing.T) {
	daxfsOnly(t)
	taken := func(options string) int64 {
		before := meminfo(t)["MemFree"]
		dir := mountDaxfs(t, ImagePool, options)
		mem := mapPath(t, dir+"/"+Big, unix.PROT_READ, unix.MAP_SHARED)
		mem.touch()
		after := meminfo(t)["MemFree"]
		mem.unmap()
		must(t, unix.Unmount(dir, 0))
		wantRegions(t, 0)
		return before - after
	}
	taken("")             // whatever is needed once
	const noise = 4 << 20 // of a guest that does other things too
	structs := int64(config.Size / pageSize * 64)
	if n := taken(""); n > structs+noise {
		t.Errorf("a mount takes %d bytes, want at most the %d of its page structs", n, structs)
	}
	if n := taken("nopages"); n > noise {
		t.Errorf("a nopages mount takes %d bytes, want none", n)
	}
}

// TestNopagesCopiesAreFreed: private copies go with their mapping.
func TestNopagesCopiesAreFreed(t *testing.T) {
	daxfsOnly(t)
	m := findView(t, "nopages").mount(t)
	before := meminfo(t)["MemAvailable"]
	for range 8 {
		mem := mapPath(t, m.path(Big), unix.PROT_READ, unix.MAP_PRIVATE)
		mem.touch()
		mem.unmap()
	}
	if lost := before - meminfo(t)["MemAvailable"]; lost > 2*BigSize { // processors keep free pages at hand
		t.Errorf("%d bytes are gone after mapping %d eight times", lost, BigSize)
	}
}
