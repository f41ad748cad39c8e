package inside

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestBadOptions: what cannot be mounted is refused with the number that says
// why, and leaves nothing.
func TestBadOptions(t *testing.T) {
	daxfsOnly(t)
	phys, size := config.Phys, config.Size
	pool := func(more string) string { return fmt.Sprintf("phys=%#x,size=%d%s", phys, size, more) }
	at := func(image string, d int64) string {
		return pool(fmt.Sprintf(",offset=%d", config.Images[image].Offset+d))
	}
	iomem := memoryMap(t)
	for _, c := range []struct {
		what, options string
		want          error
	}{
		{"no options", "", unix.EINVAL},
		{"no size", fmt.Sprintf("phys=%#x", phys), unix.EINVAL},
		{"no phys", fmt.Sprintf("size=%d", size), unix.EINVAL},
		{"an unknown option", pool(",nonsense"), unix.EINVAL},
		{"phys is no number", fmt.Sprintf("phys=abc,size=%d", size), unix.EINVAL},
		{"phys is empty", fmt.Sprintf("phys=,size=%d", size), unix.EINVAL},
		{"phys has no value", fmt.Sprintf("phys,size=%d", size), unix.EINVAL},
		{"phys is negative", fmt.Sprintf("phys=-%d,size=%d", phys, size), unix.EINVAL},
		{"phys ends in letters", fmt.Sprintf("phys=%#xzz,size=%d", phys, size), unix.EINVAL},
		{"phys is not aligned", fmt.Sprintf("phys=%#x,size=%d", phys+pageSize, size-2<<20), unix.EINVAL},
		{"phys is not a page", fmt.Sprintf("phys=%#x,size=%d,nopages", phys+1, size-2<<20), unix.EINVAL},
		{"size is 0", fmt.Sprintf("phys=%#x,size=0", phys), unix.EINVAL},
		{"size is no number", fmt.Sprintf("phys=%#x,size=much", phys), unix.EINVAL},
		{"size is not aligned", fmt.Sprintf("phys=%#x,size=%d", phys, size-pageSize), unix.EINVAL},
		{"size is not a page", fmt.Sprintf("phys=%#x,size=%d,nopages", phys, size-1), unix.EINVAL},
		{"the range wraps around", "phys=0xffffffffffe00000,size=0x400000", unix.EINVAL},
		{"the range is nowhere", "phys=0xfff0000000000000,size=0x400000", unix.EINVAL},
		{"the range is nowhere, nopages", "phys=0xfff0000000000000,size=0x400000,nopages", unix.EINVAL},
		{"the size is everything", fmt.Sprintf("phys=%#x,size=0xffffffffffe00000", phys), unix.EINVAL},
		{"System RAM", "phys=0x1000000,size=0x200000", unix.EINVAL},
		{"System RAM, nopages", "phys=0x1000000,size=0x200000,nopages", unix.EINVAL},
		{"System RAM at its end", fmt.Sprintf("phys=%#x,size=0x400000", lastRAM(t)), unix.EINVAL},
		{"offset is no number", pool(",offset=x"), unix.EINVAL},
		{"offset is negative", pool(",offset=-4096"), unix.EINVAL},
		{"offset is not aligned", at(ImageNative, 1), unix.EINVAL},
		{"offset is the size", pool(fmt.Sprintf(",offset=%d", size)), unix.EINVAL},
		{"offset is behind", pool(fmt.Sprintf(",offset=%d", size+pageSize)), unix.EINVAL},
		{"offset wraps around", pool(",offset=0xfffffffffffff000"), unix.EINVAL},
		{"the pool's own", pool(",offset=0"), unix.EINVAL},
		{"zeros", pool(fmt.Sprintf(",offset=%d", size-pageSize)), unix.EINVAL},
		{"no superblock", at(ImageNative, pageSize), unix.EINVAL},
		{"no superblock, trusted", at(ImageNative, pageSize) + ",novalidate", unix.EINVAL},
		{"half a superblock", at(ImageTorn, 0), unix.EUCLEAN},
		{"half a superblock, trusted", at(ImageTorn, 0) + ",novalidate", unix.EUCLEAN},
		{"a region that ends inside the image", fmt.Sprintf("phys=%#x,size=0x400000,offset=%d", phys, config.Images[ImageNative].Offset), unix.EUCLEAN},
		{"a dma-buf that is none", "dmabuf=99", unix.EBADF},
		{"nopages has a value", pool(",nopages=1"), unix.EINVAL},
		{"validate has a value", pool(",validate=1"), unix.EINVAL},
	} {
		if err := tryMount(t, c.options); !errors.Is(err, c.want) {
			t.Errorf("%s (%s): %v, want %v", c.what, c.options, err, c.want)
		}
		if lines := regions(t); len(lines) != 0 {
			t.Fatalf("%s (%s): regions %q are left", c.what, c.options, lines)
		}
		if now := memoryMap(t); now != iomem {
			t.Fatalf("%s (%s): /proc/iomem has changed:\n%s\nwas\n%s", c.what, c.options, now, iomem)
		}
	}
	if e := entries(t); len(e) != 0 {
		t.Errorf("/sys/fs/daxfs has %q afterwards", e)
	}
}

// tryMount mounts and unmounts.
func tryMount(t *testing.T, options string) error {
	t.Helper()
	dir := mountPoint(t)
	if err := unix.Mount("none", dir, "daxfs", unix.MS_RDONLY, options); err != nil {
		return err
	}
	unmount(t, dir)
	return nil
}

// memoryMap is /proc/iomem.
func memoryMap(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/iomem")
	must(t, err)
	return string(b)
}

// lastRAM is where the last 2 MiB of System RAM begin.
func lastRAM(t *testing.T) uint64 {
	t.Helper()
	var last uint64
	for _, line := range strings.Split(memoryMap(t), "\n") {
		var from, to uint64
		if n, _ := fmt.Sscanf(line, "%x-%x : System RAM", &from, &to); n == 2 && strings.HasSuffix(line, ": System RAM") {
			last = to + 1
		}
	}
	return last&^(2<<20-1) - 2<<20
}

// TestGoodOptions: all the ways to say the same.
func TestGoodOptions(t *testing.T) {
	daxfsOnly(t)
	phys, size := config.Phys, config.Size
	off := config.Images[ImageTwin].Offset
	for _, options := range []string{
		fmt.Sprintf("phys=%d,size=%#x,offset=%#x", phys, size, off),
		fmt.Sprintf("offset=%d,size=%d,phys=%#X,validate", off, size, phys),
		fmt.Sprintf("phys=%#x,size=%dM,offset=%dK", phys, size>>20, off>>10),
		fmt.Sprintf("phys=%#x,size=%d,offset=%d,novalidate,nopages,name=x", phys, size, off),
		fmt.Sprintf("phys=0,phys=%#x,size=%d,offset=%d", phys, size, off), // the last counts
		// A region need not begin where the pool does, if only it ends there.
		fmt.Sprintf("phys=%#x,size=%d,offset=%d", phys+2<<20, size-2<<20, off-2<<20),
		fmt.Sprintf("phys=%#x,size=%d,offset=%d,nopages", phys+pageSize, size-pageSize, off-pageSize),
	} {
		if err := tryMount(t, options); err != nil {
			t.Errorf("%s: %v", options, err)
		}
	}
	// By the program that people use.
	dir := mountPoint(t)
	run(t, "mount", "-t", "daxfs", "-o", byHand(ImageTwin), "none", dir)
	b, err := os.ReadFile(dir + "/8193")
	must(t, err)
	wantFill(t, "mounted by mount(8)", b, "data/8193", 0)
	run(t, "umount", dir)
	wantRegions(t, 0)
}

// byHand are the options for mount(8), which takes offset= for one of a loop
// device, and has a second name here.
func byHand(image string) string {
	return strings.Replace(options(image, ""), ",offset=", ",fsoffset=", 1)
}

// TestRegionOfOneImage: an image whose region it is needs no offset.
func TestRegionOfOneImage(t *testing.T) {
	daxfsOnly(t)
	v8 := &mounted{view: view{image: ImageV8}, Manifest: manifest(t, ImageV8)}
	for _, more := range []string{"", ",nopages"} {
		dir := mountAt(t, "none", "daxfs", unix.MS_RDONLY, fmt.Sprintf("phys=%#x,size=%d%s", config.Phys+V8At, V8Room, more))
		mem := mapPath(t, filepath.Join(dir, "data/65537"), unix.PROT_READ, unix.MAP_SHARED)
		wantFill(t, "mapped", mem.b, "data/65537", 0)
		if more == "" {
			v8.wantFrames(t, "data/65537", 0, mem.frames(t))
		}
		mem.unmap()
		must(t, unix.Unmount(dir, 0))
	}
	// Two regions of one pool at once.
	mountAt(t, "none", "daxfs", unix.MS_RDONLY, fmt.Sprintf("phys=%#x,size=%d", config.Phys+V8At, V8Room))
	behind := int64(V8At + V8Room)
	other := mountAt(t, "none", "daxfs", unix.MS_RDONLY, fmt.Sprintf("phys=%#x,size=%d,offset=%d",
		config.Phys+uint64(behind), int64(config.Size)-behind, config.Images[ImageTwin].Offset-behind))
	b, err := os.ReadFile(filepath.Join(other, "65537"))
	must(t, err)
	wantFill(t, "of another region", b, "data/65537", 0)
	if lines := regions(t); len(lines) != 2 {
		t.Errorf("regions: %q, want two", lines)
	}
}

// TestOverlap: regions are equal or disjoint.
func TestOverlap(t *testing.T) {
	daxfsOnly(t)
	mountDaxfs(t, ImageTwin, "")
	off := config.Images[ImageTwin].Offset
	for _, o := range []string{
		fmt.Sprintf("phys=%#x,size=%d,offset=%d", config.Phys+2<<20, config.Size-2<<20, off-2<<20),
		fmt.Sprintf("phys=%#x,size=%d,offset=%d", config.Phys, config.Size-2<<20, off),
		fmt.Sprintf("phys=%#x,size=%d,offset=%d,nopages", config.Phys, config.Size-2<<20, off),
		fmt.Sprintf("phys=%#x,size=%#x", config.Phys+2<<20, 2<<20),
	} {
		if err := tryMount(t, o); !errors.Is(err, unix.EBUSY) {
			t.Errorf("%s, while the whole pool is in use: %v, want %v", o, err, unix.EBUSY)
		}
	}
	// nopages on a region that has them is no contradiction.
	if err := tryMount(t, options(ImageNative, "nopages")); err != nil {
		t.Errorf("nopages on a region with page structs: %v", err)
	}
}

// TestNopagesFirst: page structs are not added to a region that is in use.
func TestNopagesFirst(t *testing.T) {
	daxfsOnly(t)
	mountDaxfs(t, ImageTwin, "nopages")
	mountDaxfs(t, ImageNative, "nopages")
	if err := tryMount(t, options(ImageTwin, "")); !errors.Is(err, unix.EBUSY) {
		t.Errorf("with page structs, while a nopages mount is there: %v, want %v", err, unix.EBUSY)
	}
}

// TestOwnedByDriver: a range that nd_pmem has is refused, or shared on kernels
// where its page structs can be mapped by others; unbound, it is free.
func TestOwnedByDriver(t *testing.T) {
	daxfsOnly(t)
	run(t, "modprobe", "nd_pmem")
	t.Cleanup(func() { run(t, "modprobe", "-r", "nd_pmem") })
	if _, err := os.Stat("/dev/pmem0"); err != nil {
		t.Fatal(err)
	}
	before := memoryMap(t)
	dir := mountPoint(t)
	err := unix.Mount("none", dir, "daxfs", unix.MS_RDONLY, options(ImageNative, ""))
	switch err {
	case unix.EBUSY:
		t.Logf("refused: %v", err)
	case nil:
		t.Logf("shared: %q", regions(t))
		if len(entries(t)) == 1 && readLine(t, filepath.Join(entries(t)[0], "pages")) != "existing" {
			t.Errorf("regions: %q, want existing pages", regions(t))
		}
		m := &mounted{view: allViews[0], root: dir, base: dir, Manifest: manifest(t, ImageNative)}
		mem := mapPath(t, m.path("data/65537"), unix.PROT_READ, unix.MAP_SHARED)
		wantFill(t, "mapped", mem.b, "data/65537", 0)
		m.wantFrames(t, "data/65537", 0, mem.frames(t))
		mem.unmap()
		unmount(t, dir)
	default:
		t.Errorf("mount: %v, want success or %v", err, unix.EBUSY)
	}
	wantRegions(t, 0)
	if now := memoryMap(t); now != before {
		t.Errorf("/proc/iomem has changed:\n%s\nwas\n%s", now, before)
	}
	if err := tryMount(t, options(ImageNative, "nopages")); err != nil && !errors.Is(err, unix.EBUSY) {
		t.Errorf("nopages: %v, want success or %v", err, unix.EBUSY)
	}

	namespaces, _ := filepath.Glob("/sys/bus/nd/drivers/nd_pmem/namespace*")
	if len(namespaces) != 1 {
		t.Fatalf("nd_pmem has %q, want one namespace", namespaces)
	}
	name := filepath.Base(namespaces[0])
	writeFile(t, "/sys/bus/nd/drivers/nd_pmem/unbind", name)
	if err := tryMount(t, options(ImageNative, "")); err != nil {
		t.Errorf("mount after unbinding: %v", err)
	}
	// And back: the driver gets its range again.
	writeFile(t, "/sys/bus/nd/drivers/nd_pmem/bind", name)
	if _, err := os.Stat("/dev/pmem0"); err != nil {
		t.Errorf("after binding again: %v", err)
	}
}

// TestKernelLogLines: a refused image is one line in the kernel's log.
func TestKernelLogLines(t *testing.T) {
	daxfsOnly(t)
	out, err := exec.Command("dmesg", "-C").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for range 5 {
		if err := tryMount(t, options(ImageTorn, "name=torn")); !errors.Is(err, unix.EUCLEAN) {
			t.Fatalf("mount: %v, want %v", err, unix.EUCLEAN)
		}
	}
	var lines []string
	for _, l := range strings.Split(run(t, "dmesg"), "\n") {
		if strings.Contains(l, "daxfs: torn: ") {
			lines = append(lines, l)
		}
	}
	if len(lines) == 0 || len(lines) > 5 {
		t.Errorf("5 refused mounts have left %d lines that begin with \"daxfs: torn: \", want 1 to 5:\n%s", len(lines), strings.Join(lines, "\n"))
	}
}
