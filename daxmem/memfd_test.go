package daxmem

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// memfdLocation is a memfd that only this test has.
func memfdLocation(t *testing.T, size int64) string {
	return fmt.Sprintf("memfd:%s-%d,size=%d", t.Name(), os.Getpid(), size)
}

// A memfd lives as long as somebody has it: the next owner finds the pool that
// a former one made, as long as a reader holds it, and else nothing.
func TestMemfd(t *testing.T) {
	location := memfdLocation(t, 16*mib)
	if _, err := OpenRegionReadOnly(location); !errors.Is(err, ErrNoMemory) || errors.Is(err, os.ErrNotExist) {
		t.Errorf("before it is made: %v", err)
	}
	p, err := OpenOrCreate(bg, location, manual)
	if err != nil {
		t.Fatal(err)
	}
	if s := mustStat(t, p); s.Kind != KindMemfd || s.Size != 16*mib || s.Path != location {
		t.Errorf("%+v", s)
	}
	addLayer(t, p, "a", randomBytes(1, 3*mib))
	mustCheck(t, p)
	if _, err := OpenRegion(location); !errors.Is(err, ErrOwned) {
		t.Errorf("second owner: %v", err)
	}
	ro, err := OpenRegionShared(location)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ro.WriteAt([]byte("x"), 0); !errors.Is(err, os.ErrPermission) {
		t.Errorf("a reader writes: %v", err)
	}
	mustClose(t, p)

	if p, err = OpenOrCreate(bg, location, manual); err != nil {
		t.Fatal(err)
	}
	if s := mustStat(t, p); s.LayerCount != 1 {
		t.Error("the pool is another one")
	}
	mustCheck(t, p)
	if err := ro.Close(); err != nil {
		t.Error(err)
	}
	other := strings.Replace(location, "16777216", "8388608", 1)
	if _, err := OpenRegionReadOnly(other); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "16777216 bytes") {
		t.Errorf("of another size: %v", err)
	}
	mustClose(t, p)
	if _, err := OpenRegionShared(location); !errors.Is(err, ErrNoMemory) {
		t.Errorf("after its end: %v", err)
	}
}

// All of the memory is there from the beginning, stays at its place, and cannot
// change its size.
func TestMemfdPages(t *testing.T) {
	r, err := OpenRegion(memfdLocation(t, 4*mib))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	m := r.(*memfdRegion)
	allocated := func() int64 {
		var st unix.Stat_t
		if err := unix.Fstat(int(m.f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	if got := allocated(); got < 4*mib {
		t.Errorf("%d bytes are there", got)
	}
	if _, err := r.WriteAt(bytes.Repeat([]byte{1}, mib), mib); err != nil {
		t.Fatal(err)
	}
	if err := r.Punch(mib, mib); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, mib)
	if _, err := r.ReadAt(b, mib); err != nil || !isZero(b) {
		t.Errorf("after a punch: %v", err)
	}
	if got := allocated(); got < 4*mib {
		t.Errorf("%d bytes are there after a punch", got)
	}
	for _, size := range []int64{2 * mib, 8 * mib} {
		if err := m.f.Truncate(size); !errors.Is(err, os.ErrPermission) {
			t.Errorf("truncate to %d: %v", size, err)
		}
	}
	if err := r.Grow(8 * mib); !errors.Is(err, ErrInvalid) {
		t.Errorf("grow: %v", err)
	}
}

// Two memories of one name are not guessed between, and one that can shrink is
// not trusted.
func TestMemfdOthers(t *testing.T) {
	l, err := ParseLocation(memfdLocation(t, 2*mib))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.MemfdCreate(memfdPrefix+l.Name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, l.Size); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenRegion(l.String()); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "can still change its size") {
		t.Errorf("without seals: %v", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, memfdSeals); err != nil {
		t.Fatal(err)
	}
	f, err := newMemfd(l)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := OpenRegion(l.String()); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "2 memfds") {
		t.Errorf("two: %v", err)
	}
}

// The numbers are those of include/uapi/linux/udmabuf.h and dma-heap.h.
func TestDescriptorABI(t *testing.T) {
	if got, want := udmabufArgument(7, 2*mib), "07000000"+"01000000"+"0000000000000000"+"0000200000000000"; fmt.Sprintf("%x", got) != want {
		t.Errorf("struct udmabuf_create: %x, want %s", got, want)
	}
	if got, want := dmaHeapArgument(2*mib), "0000200000000000"+"00000000"+"02000800"+"0000000000000000"; fmt.Sprintf("%x", got) != want {
		t.Errorf("struct dma_heap_allocation_data: %x, want %s", got, want)
	}
	for name, c := range map[string]struct{ got, want uint32 }{
		"UDMABUF_CREATE":       {udmabufCreate, ioc(1, 'u', 0x42, 24)},
		"DMA_HEAP_IOCTL_ALLOC": {dmaHeapAlloc, ioc(3, 'H', 0, 24)},
		"DMA_BUF_SET_NAME_B":   {dmaBufSetName, ioc(1, 'b', 1, 8)},
		"LAZY_CMA_IOCTL_ALLOC": {lazyCMAAlloc, ioc(3, 'H', 0, lazyCMAArgSize)},
	} {
		if c.got != c.want {
			t.Errorf("%s: %#x, want %#x", name, c.got, c.want)
		}
	}
}

// ioc is _IOC of include/uapi/asm-generic/ioctl.h: direction (1 write, 2 read),
// type, number, size.
func ioc(dir, typ, nr, size uint32) uint32 { return dir<<30 | size<<16 | typ<<8 | nr }

// A device that is no udmabuf, or has a limit, says so.
func TestUdmabufErrors(t *testing.T) {
	r, err := OpenRegion(memfdLocation(t, 2*mib))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	m := r.(*memfdRegion)
	m.udmabuf = udmabuf{device: filepath.Join(t.TempDir(), "none")}
	if _, err := m.DmaBuf(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no device: %v", err)
	}
	m.udmabuf.device = filepath.Join(t.TempDir(), "file")
	writeFile(t, m.udmabuf.device, "")
	if _, err := m.DmaBuf(); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("a file: %v", err)
	}
}

// A heap that is not there, or no heap, says so; and nobody finds what was not
// allocated.
func TestDmaHeapErrors(t *testing.T) {
	dir := t.TempDir()
	l := Location{Scheme: KindDmaHeap, Name: "none", Size: 2 * mib}
	if _, err := openDmaHeap(dir, l.String(), l, toOwn); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no heap: %v", err)
	}
	writeFile(t, filepath.Join(dir, "file"), "")
	l.Name = "file"
	if _, err := openDmaHeap(dir, l.String(), l, toOwn); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("a file: %v", err)
	}
	if _, err := openDmaHeap(dir, l.String(), l, toAttach); !errors.Is(err, ErrNoMemory) {
		t.Errorf("attach: %v", err)
	}
	if got := dmaHeapName(Location{Name: strings.Repeat("x", 40)}); len(got) != dmaBufNameMax {
		t.Errorf("name of %d bytes", len(got))
	}
	// From above a heap that is not there is no file to be made.
	if _, err := OpenOrCreate(bg, "dma-heap:not-there,size=2MiB", manual); !errors.Is(err, ErrNoMemory) {
		t.Errorf("open or create: %v", err)
	}
}

// The next owner of a memfd does not take a fault for each page that it writes.
func TestMemfdPageTables(t *testing.T) {
	const size = 32 * mib
	location := memfdLocation(t, size)
	write := func() (faults int64) {
		r, err := OpenRegion(location)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		data := randomBytes(1, mib)
		var before, after unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &before); err != nil {
			t.Fatal(err)
		}
		for at := int64(0); at < size; at += mib {
			if _, err := r.WriteAt(data, at); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Getrusage(unix.RUSAGE_SELF, &after); err != nil {
			t.Fatal(err)
		}
		return after.Minflt - before.Minflt
	}
	kept, err := OpenRegion(location) // which makes it
	if err != nil {
		t.Fatal(err)
	}
	ro, err := OpenRegionReadOnly(location)
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	if err := kept.Close(); err != nil {
		t.Fatal(err)
	}
	first, second := write(), write()
	t.Logf("%d faults for %d new pages, then %d", first, size/blockSize, second)
	if second > size/blockSize/2 {
		t.Errorf("%d faults for %d pages", second, size/blockSize)
	}
}
