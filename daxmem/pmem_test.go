package daxmem

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

// filePmem is a pmemRegion over a file, for its arithmetic: integration/vm has
// the device.
func filePmem(t *testing.T, size, sector int64) *pmemRegion {
	f, err := os.Create(filepath.Join(t.TempDir(), "pmem"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	r := &pmemRegion{f: f, path: f.Name(), size: size, sector: sector}
	r.buffers.New = func() any { b := alignedBytes(directSize, directAlign); return &b }
	return r
}

// TestPmemIO writes and reads at all alignments and compares with a slice.
func TestPmemIO(t *testing.T) {
	const size = 8 * mib
	for _, sector := range []int64{512, 4096} {
		r := filePmem(t, size, sector)
		want := randomBytes(1, size)
		if n, err := r.WriteAt(want, 0); n != size || err != nil {
			t.Fatal(n, err)
		}
		rnd := rand.New(rand.NewPCG(1, uint64(sector)))
		for i := range 400 {
			n := 1 << rnd.IntN(22)
			n -= rnd.IntN(n)
			off := rnd.IntN(size - n + 1)
			switch i % 4 {
			case 0:
				off = off / int(sector) * int(sector)
			case 1:
				off = size - n
			}
			b := randomBytes(uint64(i), n)
			if w, err := r.WriteAt(b, int64(off)); w != n || err != nil {
				t.Fatal(w, err)
			}
			copy(want[off:], b)
			got := make([]byte, n+min(7, size-off-n))
			if _, err := r.ReadAt(got, int64(off)); err != nil || !bytes.Equal(got, want[off:off+len(got)]) {
				t.Fatalf("sector %d: [%d,+%d): %v", sector, off, n, err)
			}
		}
		got := make([]byte, size)
		if _, err := r.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("sector %d: other bytes at the end: %v", sector, err)
		}
		if n, err := r.ReadAt(got[:100], size-10); n != 10 || !errors.Is(err, io.EOF) {
			t.Errorf("read over the end: %d, %v", n, err)
		}
		if n, err := r.ReadAt(got[:100], size+1); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("read behind the end: %d, %v", n, err)
		}
		for _, off := range []int64{-1, size - 99, size} {
			if n, err := r.WriteAt(got[:100], off); n != 0 || err == nil {
				t.Errorf("write at %d: %d, %v", off, n, err)
			}
		}
	}
}

// Neighbours in one sector do not undo each other's writes.
func TestPmemNeighbours(t *testing.T) {
	r := filePmem(t, mib, 4096)
	var wg sync.WaitGroup
	for i := range int64(16) {
		wg.Go(func() {
			for n := range 200 {
				if _, err := r.WriteAt(bytes.Repeat([]byte{byte(n)}, 256), i*256); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got := make([]byte, 4096)
	if _, err := r.ReadAt(got, 0); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{199}, 4096)) {
		t.Errorf("a write was lost, %v", err)
	}
}

func TestAlignedBytes(t *testing.T) {
	for _, n := range []int{1, 4096, 1 << 20} {
		b := alignedBytes(n, 4096)
		if len(b) != n || cap(b) != n {
			t.Errorf("%d bytes: length %d, capacity %d", n, len(b), cap(b))
		}
	}
}

// A block device that is no pmem is refused before anything is read or written.
func TestBlockDeviceWithoutDAX(t *testing.T) {
	testutil.Root(t)
	backing := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(backing, make([]byte, mib), 0o600); err != nil {
		t.Fatal(err)
	}
	dev := attachLoop(t, backing)
	for _, open := range []func(string) (Region, error){OpenRegion, OpenRegionReadOnly} {
		if _, err := open(dev); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "without DAX") {
			t.Errorf("%v", err)
		}
	}
}

// attachLoop returns a loop device over a file, until the end of the test.
func attachLoop(t *testing.T, backing string) string {
	t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		testutil.Missing(t, "tools", "needs loop devices: %v", err)
	}
	defer control.Close()
	f, err := os.Open(backing)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for try := 0; ; try++ {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Fatal(err)
		}
		dev, err := os.OpenFile("/dev/loop"+string(rune('0'+n)), os.O_RDONLY, 0)
		if n > 9 || err != nil {
			testutil.Missing(t, "tools", "no free loop device: %d, %v", n, err)
		}
		cfg := unix.LoopConfig{Fd: uint32(f.Fd())}
		cfg.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
		if err = unix.IoctlLoopConfigure(int(dev.Fd()), &cfg); err == nil {
			t.Cleanup(func() { dev.Close() })
			return dev.Name()
		}
		dev.Close()
		if try == 20 || !errors.Is(err, unix.EBUSY) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
