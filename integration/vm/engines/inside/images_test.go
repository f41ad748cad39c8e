package inside

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// images drives a snapshotter through two images on one base at once: whatever
// the engine, they show what was put there, from the memory's own pages, without
// a page of cache, and go when their last user does. Two inodes have the same
// pages exactly if the pool shares extents.
func (r *rig) images(fsType string, shared bool) {
	t := r.t
	t.Helper()
	base, one, two := fileSets()
	tool, err := os.ReadFile("/bin/ls")
	must(t, err)
	base["bin/tool"] = tool
	r.layer("base", "", base)
	r.layer("one", "base", one)
	r.layer("two", "base", two)
	r.check()
	before := cached(t)
	size := r.pool.Region().Size()

	lower1, lower2 := r.lower("c1", "one"), r.lower("c2", "two")
	for _, l := range []string{lower1, lower2} {
		if got := statType(t, l); got != fsType {
			t.Errorf("%s has type %s, want %s", l, got, fsType)
		}
	}
	wantFiles(t, lower1, base, one)
	wantFiles(t, lower2, base, two)
	at := map[string]int64{}
	for _, path := range []string{lower1 + "/same", lower1 + "/again", lower1 + "/dir/same", lower2 + "/same", lower2 + "/other/same"} {
		at[path] = wantFrames(t, path, size)
	}
	distinct := map[int64]bool{}
	for _, off := range at {
		distinct[off] = true
	}
	if want := map[bool]int{true: 1, false: len(at)}[shared]; len(distinct) != want {
		t.Errorf("files of one content lie at %d places, want %d: %v", len(distinct), want, at)
	}
	wantFrames(t, lower1+"/large", size)
	wantFrames(t, lower2+"/bin/tool", size)

	// A container's overlay keeps all of it, and runs programs.
	merged := r.overlay("c1")
	wantFiles(t, merged, base, one)
	wantFrames(t, merged+"/large", size)
	if out := run(t, merged+"/bin/tool", merged+"/etc"); out != "base\nname\n" {
		t.Errorf("a program from an image wrote %q", out)
	}
	must(t, os.WriteFile(merged+"/etc/name", []byte("changed"), 0o644))
	wantFiles(t, lower1, one)

	// Metadata may be cached, file data not.
	if grown := cached(t) - before; grown > int64(len(base["large"]))/2 {
		t.Errorf("the page cache grew by %d bytes over %d bytes of files", grown, len(base["large"]))
	}

	// A restart takes the mounts over.
	must(t, r.close())
	r.open(r.engine)
	held, err := snapshotter.HeldImages(r.root)
	if err != nil || len(held) != 2 || !held[0].Mounted || !held[1].Mounted || held[0].Engine != r.engine {
		t.Fatalf("%+v, %v", held, err)
	}
	wantFiles(t, lower1, base, one)

	// The end of a container unmounts its image, and the pool keeps the bytes
	// as long as the kernel does.
	f, err := os.Open(lower1 + "/large")
	must(t, err)
	must(t, r.Remove(bg, "c1"))
	must(t, unix.Unmount(merged, 0))
	if held, err = snapshotter.HeldImages(r.root); err != nil || len(held) != 2 {
		t.Errorf("with a file open: %+v, %v", held, err)
	}
	got := make([]byte, len(base["large"]))
	if _, err := f.ReadAt(got, 0); err != nil || !slices.Equal(got, base["large"]) {
		t.Errorf("a file of an unmounted image: %v", err)
	}
	must(t, f.Close())
	must(t, r.Cleanup(bg))
	if held, err = snapshotter.HeldImages(r.root); err != nil || len(held) != 1 {
		t.Errorf("after its last user: %+v, %v", held, err)
	}
	for _, key := range []string{"c2", "one", "two", "base"} {
		must(t, r.Remove(bg, key))
	}
	must(t, r.pool.Sync(bg))
	st, err := r.pool.Stat()
	must(t, err)
	if used := st.Segments + st.Extents + st.Copies + st.Inflight + st.Retired + st.Quarantined; used != 0 {
		t.Errorf("%d bytes in use with everything removed: %+v", used, st)
	}
	if left := superblocks(t); len(left) != 0 {
		t.Errorf("the kernel still has %q", left)
	}
	wantNoDevices(t)
}

// wantNoDevices demands that no device of device-mapper is there, soon: the
// kernel removes them in the background.
func wantNoDevices(t *testing.T) {
	t.Helper()
	var left []string
	for range 100 {
		var err error
		left, err = filepath.Glob("/sys/block/dm-*")
		must(t, err)
		if len(left) == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("devices left: %q", left)
}

// A second owner is kept out, a reader is not.
func TestPmemOwner(t *testing.T) { testOwner(t) }
func TestPhysOwner(t *testing.T) { testOwner(t) }

func testOwner(t *testing.T) {
	newPool(t, daxmem.Options{})
	r, err := daxmem.OpenRegion(location)
	must(t, err)
	defer r.Close()
	if r.Address() != address || !r.Fixed() || r.Path() != location {
		t.Errorf("address %#x, want %#x; fixed %v, path %s", r.Address(), address, r.Fixed(), r.Path())
	}
	if _, err := daxmem.OpenRegion(location); err == nil {
		t.Error("a second owner got in")
	}
	ro, err := daxmem.OpenRegionReadOnly(location)
	must(t, err)
	pool, err := daxmem.OpenReadOnly(bg, ro)
	must(t, err)
	if pool.Size() != r.Size() {
		t.Errorf("pool of %d bytes in a region of %d", pool.Size(), r.Size())
	}
	must(t, pool.Close())
}
