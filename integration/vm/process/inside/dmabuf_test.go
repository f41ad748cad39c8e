package inside

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/fstree"
)

// The ioctls of a mount.
const (
	iocDmabuf     = 'D'<<8 | 1
	iocFileDmabuf = 'D'<<8 | 2
)

// export asks for a dma-buf.
func export(t *testing.T, f *os.File, request uintptr) (*os.File, error) {
	t.Helper()
	fd, err := ioctl(int(f.Fd()), request, 0)
	if err != nil {
		return nil, err
	}
	buf := os.NewFile(uintptr(fd), "dma-buf")
	t.Cleanup(func() { buf.Close() })
	return buf, nil
}

// TestDmabufOfMount: the whole pool as a dma-buf, asked of any file.
func TestDmabufOfMount(t *testing.T) {
	daxfsOnly(t)
	onViews(t, "native v8 pool", func(t *testing.T, m *mounted) {
		for _, rel := range []string{".", "data/8193", "data/0"} {
			buf, err := export(t, m.open(t, rel), iocDmabuf)
			if err != nil {
				t.Errorf("%s: %v", rel, err)
				continue
			}
			if link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", buf.Fd())); err != nil || !strings.HasPrefix(link, "/dmabuf:") {
				t.Errorf("%s: the descriptor is %q, %v", rel, link, err)
			}
			if size, err := buf.Seek(0, 2); uint64(size) != config.Size || err != nil {
				t.Errorf("%s: size %d, %v, want %d", rel, size, err, config.Size)
			}
			const file = "data/65537"
			mem, err := tryMap(buf, m.Extents[file]&^(pageSize-1), 17*pageSize, unix.PROT_READ, unix.MAP_SHARED)
			must(t, err)
			wantFill(t, "dma-buf", mem.b[:65537], file, 0)
			m.wantFrames(t, file, 0, mem.frames(t))
			mem.unmap()
			super, err := tryMap(buf, config.Images[m.image].Offset, pageSize, unix.PROT_READ, unix.MAP_PRIVATE)
			must(t, err)
			if magic := binary.LittleEndian.Uint32(super.b); magic != 0x64617835 {
				t.Errorf("%s: the dma-buf has %#x at the superblock", rel, magic)
			}
			super.unmap()
			buf.Close()
		}
	})
}

// TestDmabufOfFile: the pages of one file as a dma-buf.
func TestDmabufOfFile(t *testing.T) {
	daxfsOnly(t)
	onViews(t, "native v8 pool", func(t *testing.T, m *mounted) {
		for _, rel := range []string{"data/1", "data/8193", FillName(3<<20 + 123)} {
			size := m.Tree[rel].Size
			whole := (size + pageSize - 1) / pageSize * pageSize
			buf, err := export(t, m.open(t, rel), iocFileDmabuf)
			if err != nil {
				t.Errorf("%s: %v", rel, err)
				continue
			}
			if got, err := buf.Seek(0, 2); got != whole || err != nil {
				t.Errorf("%s: size %d, %v, want %d", rel, got, err, whole)
			}
			mem, err := tryMap(buf, 0, int(whole), unix.PROT_READ, unix.MAP_SHARED)
			must(t, err)
			wantFill(t, "dma-buf of a file", mem.b[:size], rel, 0)
			m.wantFrames(t, rel, 0, mem.frames(t))
			mem.unmap()
			if mem, err := tryMap(buf, 0, int(whole)+pageSize, unix.PROT_READ, unix.MAP_SHARED); !errors.Is(err, unix.EINVAL) {
				t.Errorf("%s: map a page more than it has: %v, %v, want %v", rel, mem, err, unix.EINVAL)
			}
			buf.Close()
		}
		for _, c := range []struct {
			rel  string
			want error
		}{{"data/0", unix.ENODEV}, {"data", unix.ENOTTY}} {
			if buf, err := export(t, m.open(t, c.rel), iocFileDmabuf); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, %v, want %v", c.rel, buf, err, c.want)
			}
		}
	})
}

// TestDmabufReadOnly: nothing can be written through it.
func TestDmabufReadOnly(t *testing.T) {
	daxfsOnly(t)
	m := native(t)
	const rel = "data/8193"
	for _, request := range []uintptr{iocDmabuf, iocFileDmabuf} {
		buf, err := export(t, m.open(t, rel), request)
		must(t, err)
		off := int64(0)
		if request == iocDmabuf {
			off = m.Extents[rel]
		}
		if _, err := tryMap(buf, off, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); !errors.Is(err, unix.EACCES) {
			t.Errorf("map shared to write: %v, want %v", err, unix.EACCES)
		}
		mem, err := tryMap(buf, off, pageSize, unix.PROT_READ, unix.MAP_SHARED)
		must(t, err)
		mem.touch()
		if err := mem.mprotect(0, pageSize, unix.PROT_READ|unix.PROT_WRITE); !errors.Is(err, unix.EACCES) {
			t.Errorf("mprotect to write: %v, want %v", err, unix.EACCES)
		}
		mem.unmap()
		mem, err = tryMap(buf, off, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
		if err == nil {
			mem.b[0] ^= 0xff
			wantPrivate(t, "private page of a dma-buf, written", mem.frames(t)[0])
			mem.unmap()
		}
		if _, err := buf.Write([]byte("x")); err == nil {
			t.Error("write to a dma-buf succeeds")
		}
	}
	m.wantUnchanged(t, rel)
}

// TestDmabufPrivileges: the whole memory is for CAP_SYS_ADMIN; a file's is for
// who may read it.
func TestDmabufPrivileges(t *testing.T) {
	daxfsOnly(t)
	m := native(t)
	f := m.open(t, "data/8193")
	path, err := unix.Open(m.path("data/8193"), unix.O_PATH, 0)
	must(t, err)
	defer unix.Close(path)
	var whole, file, byPath error
	var fd int
	asUser(t, 1000, 1000, nil, func() {
		_, whole = ioctl(int(f.Fd()), iocDmabuf, 0)
		fd, file = ioctl(int(f.Fd()), iocFileDmabuf, 0)
		_, byPath = ioctl(path, iocFileDmabuf, 0)
	})
	if !errors.Is(whole, unix.EPERM) {
		t.Errorf("the whole memory for a user: %v, want %v", whole, unix.EPERM)
	}
	if file != nil {
		t.Errorf("a file for a user who has it open: %v", file)
	} else {
		unix.Close(fd)
	}
	if !errors.Is(byPath, unix.EBADF) {
		t.Errorf("a file by an O_PATH descriptor: %v, want %v", byPath, unix.EBADF)
	}
}

// TestDmabufOutlivesMount: out of sight, the memory stays until the dma-buf is
// closed and unmapped.
func TestDmabufOutlivesMount(t *testing.T) {
	daxfsOnly(t)
	m := native(t)
	const rel = "data/65536"
	f := m.open(t, rel)
	buf, err := export(t, f, iocFileDmabuf)
	must(t, err)
	f.Close()
	must(t, unix.Unmount(m.root, unix.MNT_DETACH))
	mem, err := tryMap(buf, 0, 65536, unix.PROT_READ, unix.MAP_SHARED)
	must(t, err)
	wantFill(t, "after unmounting", mem.b, rel, 0)
	m.wantFrames(t, rel, 0, mem.frames(t))
	buf.Close()
	wantFill(t, "after closing the dma-buf", mem.b, rel, 0)
	wantRegions(t, 1)
	mem.unmap()
	wantRegions(t, 0)
}

// TestDmabufOfNopages: there is nothing to export without page structs.
func TestDmabufOfNopages(t *testing.T) {
	daxfsOnly(t)
	m := findView(t, "nopages").mount(t)
	for _, request := range []uintptr{iocDmabuf, iocFileDmabuf} {
		if buf, err := export(t, m.open(t, "data/8193"), request); !errors.Is(err, unix.EOPNOTSUPP) {
			t.Errorf("ioctl %#x: %v, %v, want %v", request, buf, err, unix.EOPNOTSUPP)
		}
	}
}

// memory is a dma-buf of the guest's own memory with an image in it.
type memory struct {
	buf *os.File
	mem []byte // the image's bytes
}

const smallAt = 64 << 10 // of the image in the buffer

// udmabuf makes a dma-buf of a memory file.
func udmabuf(t *testing.T, image []byte) memory {
	t.Helper()
	size := (smallAt + len(image) + pageSize - 1) / pageSize * pageSize
	fd, err := unix.MemfdCreate("image", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC)
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.Ftruncate(fd, int64(size)))
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	t.Cleanup(func() { unix.Munmap(mem) })
	copy(mem[smallAt:], image)
	_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK)
	must(t, err)
	dev, err := os.OpenFile("/dev/udmabuf", os.O_RDWR, 0)
	must(t, err)
	defer dev.Close()
	// struct udmabuf_create
	create := struct {
		memfd, flags uint32
		offset, size uint64
	}{uint32(fd), 1, 0, uint64(size)} // UDMABUF_FLAGS_CLOEXEC
	const udmabufCreate = 1<<30 | 24<<16 | 'u'<<8 | 0x42
	buf, err := ioctl(int(dev.Fd()), udmabufCreate, uintptr(unsafe.Pointer(&create)))
	must(t, err)
	return memory{os.NewFile(uintptr(buf), "udmabuf"), mem[smallAt:]}
}

// systemHeap makes a dma-buf of pages of any size.
func systemHeap(t *testing.T, image []byte) memory {
	t.Helper()
	size := (smallAt + len(image) + pageSize - 1) / pageSize * pageSize
	dev, err := os.Open("/dev/dma_heap/system")
	must(t, err)
	defer dev.Close()
	// struct dma_heap_allocation_data
	alloc := struct {
		len         uint64
		fd, fdFlags uint32
		heapFlags   uint64
	}{uint64(size), 0, unix.O_RDWR | unix.O_CLOEXEC, 0}
	const dmaHeapAlloc = 3<<30 | 24<<16 | 'H'<<8
	_, err = ioctl(int(dev.Fd()), dmaHeapAlloc, uintptr(unsafe.Pointer(&alloc)))
	must(t, err)
	mem, err := unix.Mmap(int(alloc.fd), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	t.Cleanup(func() { unix.Munmap(mem) })
	copy(mem[smallAt:], image)
	return memory{os.NewFile(uintptr(alloc.fd), "heap"), mem[smallAt:]}
}

// mountDmabuf mounts the image in a dma-buf.
func mountDmabuf(t *testing.T, buf *os.File, offset int64, more ...string) (string, error) {
	t.Helper()
	fs, err := unix.Fsopen("daxfs", unix.FSOPEN_CLOEXEC)
	must(t, err)
	defer unix.Close(fs)
	if err := unix.FsconfigSetFd(fs, "dmabuf", int(buf.Fd())); err != nil {
		return "", fmt.Errorf("fsconfig dmabuf: %w", err)
	}
	must(t, unix.FsconfigSetString(fs, "offset", fmt.Sprint(offset)))
	for _, flag := range more {
		must(t, unix.FsconfigSetFlag(fs, flag))
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		b := make([]byte, 1000)
		n, _ := unix.Read(fs, b) // what the file system has to say
		return "", fmt.Errorf("fsconfig create: %w: %s", err, b[:max(n, 0)])
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	dir := mountPoint(t)
	must(t, unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH))
	t.Cleanup(func() { unmount(t, dir) })
	return dir, nil
}

// TestMountDmabuf: an image in memory of the guest's own, by a descriptor.
func TestMountDmabuf(t *testing.T) {
	daxfsOnly(t)
	if config.Kernel == "6.1" {
		t.Skip("Debian's 6.1 has neither udmabuf nor DMA heaps")
	}
	image, err := os.ReadFile(config.SmallFile)
	must(t, err)
	small, err := readManifest(config.SmallManifest)
	must(t, err)
	for _, c := range []struct {
		name string
		make func(t *testing.T, image []byte) memory
		more []string
	}{
		{"udmabuf", udmabuf, nil},
		{"system heap", systemHeap, nil},
		{"udmabuf, nopages", udmabuf, []string{"nopages"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			mem := c.make(t, image)
			root, err := mountDmabuf(t, mem.buf, smallAt, c.more...)
			must(t, err)
			mem.buf.Close() // the mount has it
			tree := walk(t, root)
			if d := diff(small.Tree, tree); len(d) > 0 {
				t.Errorf("%d differences, source != mounted:\n%s", len(d), fstree.Format(d, 20))
			}
			for _, rel := range []string{"data/8193", FillName(3<<20 + 123)} {
				for _, flags := range []int{unix.MAP_SHARED, unix.MAP_PRIVATE} {
					file := mapPath(t, filepath.Join(root, rel), unix.PROT_READ, flags)
					wantFill(t, "mapped", file.b, rel, 0)
					at := mem.mem[small.Extents[rel]:]
					own := frames(t, os.Getpid(), uintptr(unsafe.Pointer(&at[0])), file.pages())
					// The heap's own mapping shows none (VM_PFNMAP).
					if got := file.frames(t); c.name == "udmabuf" && fmt.Sprint(got) != fmt.Sprint(own) {
						t.Errorf("%s, flags %#x: frames are not the buffer's", rel, flags)
					}
					file.unmap()
				}
			}
			if got := output(t, 1000, root+"/bin/subject", "ids"); got != "1000 1000 1000 1000 0000000000000000" {
				t.Errorf("a program from the buffer says %q", got)
			}
			private := mapPath(t, filepath.Join(root, "data/8193"), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
			private.b[0] ^= 0xff
			if !bytes.Equal(mem.mem[:len(image)], image) {
				t.Error("the buffer's bytes have changed")
			}
			private.unmap()
			// Bytes changed outside are seen at once.
			at := small.Extents["data/8193"]
			mem.mem[at] ^= 0xff
			b, err := os.ReadFile(filepath.Join(root, "data/8193"))
			must(t, err)
			if b[0] != mem.mem[at] {
				t.Error("a byte changed in the buffer is not read")
			}
			live := mapPath(t, filepath.Join(root, "data/8193"), unix.PROT_READ, unix.MAP_SHARED)
			if mem.mem[at] ^= 0xff; live.b[0] != mem.mem[at] {
				t.Error("a byte changed in the buffer is not seen in a mapping")
			}
			live.unmap()
			overlay := mountOverlay(t, root, scratch(t), "")
			must(t, os.WriteFile(overlay+"/data/8193", []byte("new"), 0o644))
			must(t, unix.Unmount(overlay, 0))
			if lines := regions(t); len(lines) != 1 || !strings.HasPrefix(lines[0], "dmabuf=") {
				t.Errorf("regions: %q, want one of a dma-buf", lines)
			}
			must(t, unix.Unmount(root, 0))
			wantRegions(t, 0)
		})
	}
}

// TestMountOwnDmabuf: a dma-buf that a mount has given out can be mounted, on
// every kernel.
func TestMountOwnDmabuf(t *testing.T) {
	daxfsOnly(t)
	m := native(t)
	buf, err := export(t, m.open(t, "."), iocDmabuf)
	must(t, err)
	root, err := mountDmabuf(t, buf, config.Images[ImageTwin].Offset)
	must(t, err)
	b, err := os.ReadFile(root + "/8193")
	must(t, err)
	wantFill(t, "read", b, "data/8193", 0)
	twin := &mounted{view: view{image: ImageTwin}, Manifest: manifest(t, ImageTwin)}
	mem := mapPath(t, root+"/65537", unix.PROT_READ, unix.MAP_PRIVATE)
	mem.touch()
	twin.wantFrames(t, "65537", 0, mem.frames(t))
}

// TestMountBadDmabuf: descriptors and options that do not go.
func TestMountBadDmabuf(t *testing.T) {
	daxfsOnly(t)
	m := native(t)
	if _, err := mountDmabuf(t, m.open(t, "data/8193"), 0); !strings.Contains(fmt.Sprint(err), "invalid argument") {
		t.Errorf("mount an ordinary file: %v, want invalid argument", err)
	}
	for _, c := range []struct {
		offset int64
		want   string
	}{
		{int64(config.Size), "invalid argument"},
		{1, "invalid argument"},
		{pageSize * 7, "invalid argument"}, // no superblock
		{config.Images[ImageTorn].Offset, "structure needs cleaning"},
	} {
		buf, err := export(t, m.open(t, "."), iocDmabuf)
		must(t, err)
		if _, err := mountDmabuf(t, buf, c.offset); !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("offset %d: %v, want %s", c.offset, err, c.want)
		}
		buf.Close()
	}
	if lines := regions(t); len(lines) != 1 {
		t.Errorf("regions afterwards: %q, want the mount's", lines)
	}
}
