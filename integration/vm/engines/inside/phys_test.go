package inside

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/engine"
)

// The whole way with our module: shared extents on a bare range of memory.
func TestPhysDaxfs(t *testing.T) {
	r := start(t, daxmem.Options{})
	if r.engine != "daxfs" || r.probe("daxfs").Method != "phys" || r.pool.Region().Kind() != daxmem.KindPhys {
		t.Fatalf("engine %s: %+v", r.engine, r.probes)
	}
	r.images("0x64617835", true)
}

// The same with images that share nothing, which the module does not need.
func TestPhysSelfContained(t *testing.T) {
	r := start(t, daxmem.Options{SelfContained: true})
	r.images("0x64617835", false)
}

// The owner writes through its mapping whatever the module has mounted, comes
// back after its end, and is kept out of what the module does not hold.
func TestPhysOwnerBesideMounts(t *testing.T) {
	r := start(t, daxmem.Options{})
	base, one, two := fileSets()
	r.layer("base", "", base)
	lower := r.lower("c", "base")
	wantFiles(t, lower, base)
	r.layer("one", "base", one)
	must(t, r.close())
	r.open()
	r.layer("two", "base", two)
	r.check()
	wantFiles(t, lower, base)
	wantFiles(t, r.lower("d", "two"), base, two)
	for _, probe := range r.probes {
		if probe.Engine == "daxfs" && probe.Answer != engine.Yes {
			t.Errorf("%+v", probe)
		}
	}
}

// A full pool does not keep the daemon from starting: an image that is there
// is tried.
func TestPhysFull(t *testing.T) {
	r := start(t, daxmem.Options{})
	base, _, _ := fileSets()
	r.layer("base", "", base)
	lower := r.lower("c", "base")
	st, err := r.pool.Stat()
	must(t, err)
	must(t, r.close())
	r.maxSize = st.Size - st.Free
	r.open()
	if r.engine != "daxfs" {
		t.Errorf("engine %s: %+v", r.engine, r.probes)
	}
	wantFiles(t, lower, base)
	if _, _, err := r.pool.Lend(bg, make([]byte, 1)); !errors.Is(err, daxmem.ErrFull) {
		t.Errorf("it is not full: %v", err)
	}
}

// Other engines say what they would need.
func TestPhysOtherEngines(t *testing.T) {
	newPool(t, daxmem.Options{})
	region, err := daxmem.OpenRegionReadOnly(location)
	must(t, err)
	defer region.Close()
	_, probes, err := engine.Select(bg, []string{"erofs-dax", "erofs"}, engine.Pool{Region: region})
	if !errors.Is(err, engine.ErrNoEngine) || len(probes) != 2 {
		t.Fatalf("%+v, %v", probes, err)
	}
	for i, want := range []string{"not a pmem device", "neither a file nor a block device"} {
		if p := probes[i]; p.Answer != engine.No || !strings.Contains(p.Reason, want) || p.Remedy == "" {
			t.Errorf("%+v", p)
		}
	}
}

// Each mount has a superblock of its own name, and the next one that gets its
// device number does not keep the first one's memory.
func TestPhysGone(t *testing.T) {
	r := start(t, daxmem.Options{})
	base, one, _ := fileSets()
	r.layer("base", "", base)
	r.layer("one", "base", one)
	r.lower("c", "base")
	r.lower("d", "one")
	var mounts []*engine.Mount
	for _, rec := range r.pool.Records() {
		if rec.Kind != daxmem.KindImage {
			continue
		}
		src := engine.Source{Region: r.pool.Region(), Offset: rec.Offset, Size: r.pool.Size() - rec.Offset}
		m, err := (&engine.Daxfs{}).Mount(bg, src, t.TempDir())
		must(t, err)
		if len(m.Superblocks) != 1 {
			t.Fatalf("%+v", m)
		}
		mounts = append(mounts, m)
	}
	// The kernel gives the lowest free number: the second gets the first's.
	must(t, engine.Unmount(mounts[0]))
	must(t, engine.Unmount(mounts[1]))
	src := engine.Source{Region: r.pool.Region(), Offset: imageOffset(t, r, 1), Size: r.pool.Size() - imageOffset(t, r, 1)}
	second, err := (&engine.Daxfs{}).Mount(bg, src, t.TempDir())
	must(t, err)
	dev, _, _ := strings.Cut(second.Superblocks[0], ".")
	if !strings.HasPrefix(mounts[0].Superblocks[0], dev+".") {
		t.Fatalf("superblock %s, the first was %s", second.Superblocks[0], mounts[0].Superblocks[0])
	}
	if !mounts[0].Gone() || second.Gone() {
		t.Errorf("the first is gone: %v, the second: %v", mounts[0].Gone(), second.Gone())
	}
	must(t, engine.Unmount(second))
	if !second.Gone() {
		t.Error("the second is there")
	}
}

// imageOffset is where the n-th image of the pool is.
func imageOffset(t *testing.T, r *rig, n int) int64 {
	t.Helper()
	for _, rec := range r.pool.Records() {
		if rec.Kind != daxmem.KindImage {
			continue
		}
		if n == 0 {
			return rec.Offset
		}
		n--
	}
	t.Fatal("not so many images")
	return 0
}

// Bytes written through the region are where the kernel has them, and nothing
// of the kernel's own memory can be had.
func TestPhysBytes(t *testing.T) {
	r, err := daxmem.OpenRegion(location)
	must(t, err)
	defer r.Close()
	word := []byte("12345678")
	if _, err := r.WriteAt(word, r.Size()-8); err != nil {
		t.Fatal(err)
	}
	again, err := daxmem.OpenRegionReadOnly(location)
	must(t, err)
	defer again.Close()
	got := make([]byte, 8)
	if _, err := again.ReadAt(got, r.Size()-8); err != nil || string(got) != string(word) {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range []string{"phys:0x1000000,size=16MiB", "phys:0x200000,size=1GiB"} {
		if _, err := daxmem.OpenRegion(bad); !errors.Is(err, daxmem.ErrInvalid) || !strings.Contains(err.Error(), "System RAM") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if left, err := filepath.Glob(os.TempDir() + "/.daxfs-*"); err != nil || len(left) != 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}
