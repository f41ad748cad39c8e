package inside

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/engine"
)

// memory is a region in a memfd, which udmabuf makes a dma-buf of.
type memory struct {
	*os.File
	size int64
}

func (m memory) Size() int64     { return m.size }
func (m memory) Kind() string    { return "memfd" }
func (m memory) Path() string    { return m.Name() }
func (m memory) Address() uint64 { return 0 }

// udmabufCreate is struct udmabuf_create, and the ioctl that takes it, of
// include/uapi/linux/udmabuf.h.
type udmabufCreate struct {
	memfd, flags uint32
	offset, size uint64
}

const udmabufIoctl = 0x40187542

func (m memory) DmaBuf() (*os.File, error) {
	control, err := os.OpenFile("/dev/udmabuf", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	c := udmabufCreate{memfd: uint32(m.Fd()), flags: 1 /* UDMABUF_FLAGS_CLOEXEC */, size: uint64(m.size)}
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), udmabufIoctl, uintptr(unsafe.Pointer(&c)))
	if errno != 0 {
		return nil, errno
	}
	return os.NewFile(fd, "dmabuf"), nil
}

// newMemory makes a memfd that does not shrink, which udmabuf asks for.
func newMemory(t *testing.T, size int64) memory {
	t.Helper()
	if _, err := os.Stat("/dev/udmabuf"); errors.Is(err, os.ErrNotExist) {
		t.Skip("the kernel has no udmabuf")
	}
	fd, err := unix.MemfdCreate("images", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	must(t, err)
	m := memory{os.NewFile(uintptr(fd), "memfd:images"), size}
	t.Cleanup(func() { m.Close() })
	must(t, m.Truncate(size))
	_, err = unix.FcntlInt(m.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK)
	must(t, err)
	return m
}

// Two images in one dma-buf are mounted from it, with its own pages; the buffer
// lives as long as a mount of it, whoever closes what.
func TestDmaBuf(t *testing.T) {
	m := newMemory(t, 8<<20)
	var mounts []*engine.Mount
	contents := []string{"the first", strings.Repeat("the second ", 10_000)}
	for i, content := range contents {
		mnt, err := engine.MountBest(bg, nil, writeImage(t, m, content, true, int64(i)*(4<<20)), t.TempDir())
		must(t, err)
		if mnt.Engine != "daxfs" || mnt.Method != "dmabuf" || len(mnt.Superblocks) != 1 {
			t.Errorf("%+v", mnt)
		}
		mounts = append(mounts, mnt)
	}
	must(t, m.Close())
	for i, mnt := range mounts {
		want := []byte(contents[i])
		wantFiles(t, mnt.Target, map[string][]byte{"a": want, "b": want})
		if a, b := framesOf(t, mnt.Target+"/a", unix.MAP_PRIVATE), framesOf(t, mnt.Target+"/b", unix.MAP_SHARED); a[0] != b[0] {
			t.Errorf("one content in two frames, %#x and %#x", a[0], b[0])
		}
	}
	for _, mnt := range mounts {
		f, err := os.Open(mnt.Target + "/a")
		must(t, err)
		must(t, engine.Unmount(mnt))
		if mnt.Gone() {
			t.Error("gone with a file open")
		}
		must(t, f.Close())
		if !mnt.Gone() {
			t.Error("there after its last user")
		}
	}
}

// A probe tries an image in the dma-buf.
func TestDmaBufProbe(t *testing.T) {
	m := newMemory(t, 8<<20)
	trial := engine.Lend(m, func(_ context.Context, b []byte) (int64, func(), error) {
		_, err := m.WriteAt(b, 1<<20)
		return 1 << 20, func() {}, err
	})
	if p := (&engine.Daxfs{}).Probe(bg, engine.Pool{Region: m, Shared: true, Trial: trial}); p.Answer != engine.Yes || p.Method != "dmabuf" {
		t.Errorf("%+v", p)
	}
}
