package inside

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/engine"
)

// regionInfo is what the table says about the region at location.
func regionInfo(t *testing.T, kind string) daxmem.KindInfo {
	t.Helper()
	r, err := daxmem.OpenRegion(location)
	must(t, err)
	defer r.Close()
	info, ok := daxmem.InfoOf(kind)
	if !ok || r.Kind() != kind || r.Path() != location {
		t.Fatalf("%s is of kind %s, want %s", r.Path(), r.Kind(), kind)
	}
	if (r.Address() != 0) != info.Address {
		t.Errorf("address %#x, the table says %v", r.Address(), info.Address)
	}
	if _, ok := r.(engine.DmaBuf); ok != info.DmaBuf {
		t.Errorf("a dma-buf: %v, the table says %v", ok, info.DmaBuf)
	}
	w, err := r.Window(0, 4096, true)
	must(t, err)
	if w.Atomic() != info.Atomic {
		t.Errorf("compare-and-swap: %v, the table says %v", w.Atomic(), info.Atomic)
	}
	must(t, w.Close())
	return info
}

// Reserved RAM, found by its name and size among other resources of that name.
func TestNamedPhys(t *testing.T) {
	iomem, err := os.ReadFile("/proc/iomem")
	must(t, err)
	if n := strings.Count(string(iomem), " : Reserved\n"); n < 2 {
		t.Errorf("%d resources are reserved, which makes it easy:\n%s", n, iomem)
	}
	regionInfo(t, daxmem.KindPhys)
	address = ReservedAt
	testOwner(t)
	r := start(t, daxmem.Options{})
	if r.engine != "daxfs" {
		t.Fatalf("engine %s: %+v", r.engine, r.probes)
	}
	run(t, "/bin/ls", "/etc") // the first time its libraries come into the page cache
	r.images("0x64617835", true)
}

// The memory of an ivshmem device: the whole way with our module.
func TestIvshmemDaxfs(t *testing.T) {
	regionInfo(t, daxmem.KindIvshmem)
	r := start(t, daxmem.Options{})
	address = r.pool.Region().Address()
	if r.engine != "daxfs" || r.probe("daxfs").Method != "phys" {
		t.Fatalf("engine %s: %+v", r.engine, r.probes)
	}
	r.images("0x64617835", true)
}

func TestIvshmemOwner(t *testing.T) {
	r, err := daxmem.OpenRegionReadOnly(location)
	must(t, err)
	address = r.Address()
	must(t, r.Close())
	testOwner(t)
}

// The device is gone while the region is open: what is mapped stays as it was, or
// is an error, and never a signal.
func TestIvshmemGone(t *testing.T) {
	r := newMarked(t)
	dir := filepath.Join("/sys/bus/pci/devices", strings.TrimPrefix(location, "ivshmem:"))
	must(t, os.WriteFile(filepath.Join(dir, "remove"), []byte("1"), 0))
	b := make([]byte, 1<<20)
	_, err := r.ReadAt(b, 0)
	if err != nil && !errors.Is(err, daxmem.ErrFault) {
		t.Errorf("%v", err)
	}
	must(t, r.Close())
	if _, err := daxmem.OpenRegion(location); !errors.Is(err, daxmem.ErrNoMemory) {
		t.Errorf("open: %v", err)
	}
}

// newMarked makes a pool and returns its region with a marker near its end, the
// pool being closed.
func newMarked(t *testing.T) daxmem.Region {
	t.Helper()
	newPool(t, daxmem.Options{})
	r, err := daxmem.OpenRegion(location)
	must(t, err)
	_, err = r.WriteAt([]byte(Marker), r.Size()-MarkerFromEnd)
	must(t, err)
	return r
}

// A pool on a DAX device: written, synced, found again; a reader beside its
// owner has its seat.
func TestDevdaxPool(t *testing.T) {
	regionInfo(t, daxmem.KindDevdax)
	r, err := daxmem.OpenRegion(location)
	must(t, err)
	address = r.Address()
	if !r.Persistent() {
		t.Error("a namespace of pmem is not persistent")
	}
	must(t, r.Close())
	testOwner(t)

	p, err := daxmem.OpenOrCreate(bg, location, daxmem.Options{MaxSize: 1 << 40, Holder: "owner"})
	must(t, err)
	ro, err := daxmem.OpenRegionShared(location)
	must(t, err)
	reader, err := daxmem.Attach(bg, ro, daxmem.Options{Holder: "reader"})
	must(t, err)
	seats, err := p.Seats()
	if err != nil || len(seats) != 2 {
		t.Errorf("%d seats, %v", len(seats), err)
	}
	must(t, reader.Close())
	_, giveBack, err := p.Lend(bg, bytes.Repeat([]byte("x"), 3<<20))
	must(t, err)
	giveBack()
	must(t, p.Sync(bg))
	rep, err := p.Check(bg, daxmem.CheckOptions{Data: true})
	if err != nil || !rep.OK() {
		t.Errorf("%+v, %v", rep, err)
	}
	must(t, p.Close())
}

// Whether our module can mount from a DAX device is a matter of its alignment:
// pages that the driver has made as compounds of 2 MiB are not for it.
func TestDevdaxDaxfs(t *testing.T) {
	align, err := os.ReadFile(filepath.Join("/sys/bus/dax/devices", filepath.Base(location), "align"))
	must(t, err)
	if string(align) == "4096\n" {
		r := start(t, daxmem.Options{})
		address = r.pool.Region().Address()
		if r.engine != "daxfs" || r.probe("daxfs").Method != "phys" {
			t.Fatalf("engine %s: %+v", r.engine, r.probes)
		}
		r.images("0x64617835", true)
		return
	}
	if p := probeDaxfs(t); p.Answer != engine.No || !strings.Contains(p.Reason, "a driver owns a part of it") {
		t.Errorf("%+v", p)
	}
}

// probeDaxfs asks the engine of our module about a new pool.
func probeDaxfs(t *testing.T) engine.Probe {
	t.Helper()
	newPool(t, daxmem.Options{})
	p, err := daxmem.OpenOrCreate(bg, location, daxmem.Options{MaxSize: 1 << 40})
	must(t, err)
	defer p.Close()
	return (&engine.Daxfs{}).Probe(bg, engine.Pool{Region: p.Region(), Shared: true, Trial: engine.Lend(p.Region(), p.Lend)})
}

// TestDevdaxMark leaves a pool for TestAfterDevdax.
func TestDevdaxMark(t *testing.T) {
	r := newMarked(t)
	must(t, r.Sync())
	must(t, r.Close())
}

// The driver is unbound under a region that is open: what needs the memory gets
// an error, in the region and in a window, and no signal.
func TestDevdaxGone(t *testing.T) {
	r, err := daxmem.OpenRegion(location)
	must(t, err)
	w, err := r.Window(0, 4096, true)
	must(t, err)
	_, err = w.Load(0)
	must(t, err)
	must(t, os.WriteFile("/sys/bus/dax/drivers/device_dax/unbind", []byte(filepath.Base(location)), 0))
	if _, err := r.ReadAt(make([]byte, 1<<20), 4<<20); !errors.Is(err, daxmem.ErrFault) {
		t.Errorf("read: %v", err)
	}
	if err := w.Store(0, 1); !errors.Is(err, daxmem.ErrFault) {
		t.Errorf("store: %v", err)
	}
	must(t, w.Close())
	must(t, r.Close())
	if _, err := daxmem.OpenRegion(location); err == nil {
		t.Error("opened again")
	} else {
		t.Log(err)
	}
}

// What was written by way of the DAX device is at its physical address, where our
// module mounts it once the driver has let go.
func TestAfterDevdax(t *testing.T) {
	r, err := daxmem.OpenRegion(location)
	must(t, err)
	b := make([]byte, len(Marker))
	if _, err := r.ReadAt(b, r.Size()-MarkerFromEnd); err != nil || string(b) != Marker {
		t.Errorf("%q, %v", b, err)
	}
	must(t, r.Close())
	p, err := daxmem.OpenOrCreate(bg, location, daxmem.Options{MaxSize: 1 << 40})
	must(t, err)
	must(t, p.Close())
	if p := probeDaxfs(t); p.Answer != engine.Yes || p.Method != "phys" {
		t.Errorf("%+v", p)
	}
}

// The memory of a memfd, mounted by descriptor.
func TestMemfdDaxfs(t *testing.T) {
	const limit = "/sys/module/udmabuf/parameters/size_limit_mb"
	if b, err := os.ReadFile(limit); err == nil && string(bytes.TrimSpace(b)) == "64" {
		r, err := daxmem.OpenRegion("memfd:large,size=128MiB")
		must(t, err)
		if _, err := r.(engine.DmaBuf).DmaBuf(); err == nil || !strings.Contains(err.Error(), "allows 64 MiB") {
			t.Errorf("beyond the limit: %v", err)
		}
		must(t, os.WriteFile(limit, []byte("128"), 0))
		f, err := r.(engine.DmaBuf).DmaBuf()
		must(t, err)
		must(t, errors.Join(f.Close(), r.Close()))
	}
	testDescriptor(t, daxmem.KindMemfd)
}

// The memory of a heap, mounted by descriptor.
func TestDmaHeapDaxfs(t *testing.T) {
	testDescriptor(t, daxmem.KindDmaHeap)
}

// testDescriptor drives a snapshotter on memory that lives with a descriptor:
// images show what was put there, from pages that are shared; inspection finds
// the memory in the owner's process; mounts outlive the owner, the pool does not.
func testDescriptor(t *testing.T, kind string) {
	regionInfo(t, kind)
	r := start(t, daxmem.Options{})
	if r.engine != "daxfs" || r.probe("daxfs").Method != "dmabuf" {
		t.Fatalf("engine %s: %+v", r.engine, r.probes)
	}
	base, one, two := fileSets()
	tool, err := os.ReadFile("/bin/ls")
	must(t, err)
	base["bin/tool"] = tool
	r.layer("base", "", base)
	r.layer("one", "base", one)
	r.layer("two", "base", two)
	before := cached(t)
	lower1, lower2 := r.lower("c1", "one"), r.lower("c2", "two")
	wantFiles(t, lower1, base, one)
	wantFiles(t, lower2, base, two)
	first := framesOf(t, lower1+"/same", 1)
	for _, path := range []string{lower1 + "/again", lower1 + "/dir/same", lower2 + "/other/same"} {
		for i, at := range framesOf(t, path, 2) {
			if at != first[i] {
				t.Fatalf("page %d of %s is at %#x, of %s/same at %#x", i, path, at, lower1, first[i])
			}
		}
	}
	if grown := cached(t) - before; grown > int64(len(base["large"]))/2 {
		t.Errorf("the page cache grew by %d bytes", grown)
	}
	merged := r.overlay("c1")
	if out := run(t, merged+"/bin/tool", merged+"/etc"); out != "base\nname\n" {
		t.Errorf("a program from an image wrote %q", out)
	}
	// What is removed and written again does not change what is mounted, and is
	// itself right: the pages are the same ones for all.
	r.layer("three", "one", map[string][]byte{"gone": bytes.Repeat([]byte("gone"), 1<<18)})
	must(t, r.Remove(bg, "three"))
	must(t, r.pool.Sync(bg))
	again := map[string][]byte{"new": bytes.Repeat([]byte("new!"), 1<<18)}
	r.layer("four", "one", again)
	wantFiles(t, r.lower("c4", "four"), base, one, again)
	wantFiles(t, lower1, base, one)
	r.check()

	ro, err := daxmem.OpenRegionReadOnly(location)
	must(t, err)
	look, err := daxmem.OpenReadOnly(bg, ro)
	must(t, err)
	if rep, err := look.Check(bg, daxmem.CheckOptions{Data: true}); err != nil || !rep.OK() || rep.Records == 0 {
		t.Errorf("seen from elsewhere: %+v, %v", rep, err)
	}
	must(t, look.Close())

	must(t, r.close())
	if _, err := daxmem.OpenRegionShared(location); !errors.Is(err, daxmem.ErrNoMemory) {
		t.Errorf("after the owner's end: %v", err)
	}
	wantFiles(t, lower1, base, one)
	wantFiles(t, merged, base, one)
}
