package inside

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What other parts of the kernel do with files and pages.

// TestLoop: a disk image in a file is mounted, with the page cache and without.
func TestLoop(t *testing.T) {
	onViews(t, "native v8 nopages overlay", func(t *testing.T, m *mounted) {
		for _, direct := range []string{"off", "on"} {
			dev := run(t, "losetup", "--find", "--show", "--read-only", "--direct-io="+direct, m.path(Disk))
			dev = dev[:len(dev)-1]
			dir := mountPoint(t)
			if err := unix.Mount(dev, dir, "ext4", unix.MS_RDONLY, ""); err != nil {
				run(t, "losetup", "--detach", dev)
				t.Fatalf("mount %s with direct-io=%s: %v", dev, direct, err)
			}
			b, err := os.ReadFile(filepath.Join(dir, DiskFile))
			if err != nil {
				t.Error(err)
			}
			wantFill(t, "through a loop device", b, DiskFile, 0)
			unmount(t, dir)
			run(t, "losetup", "--detach", dev)
		}
	})
}

// TestLocks: files can be locked, as far as the descriptor may.
func TestLocks(t *testing.T) {
	onViews(t, "native nopages overlay", func(t *testing.T, m *mounted) {
		a, b := m.open(t, "types/file"), m.open(t, "types/file")
		if err := unix.Flock(int(a.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			t.Errorf("flock: %v", err)
		}
		if err := unix.Flock(int(b.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != unix.EWOULDBLOCK {
			t.Errorf("flock of a locked file: %v, want %v", err, unix.EWOULDBLOCK)
		}
		lock := unix.Flock_t{Type: unix.F_RDLCK, Len: 10}
		if err := unix.FcntlFlock(a.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
			t.Errorf("lock to read: %v", err)
		}
		lock.Type = unix.F_WRLCK
		if err := unix.FcntlFlock(b.Fd(), unix.F_OFD_SETLK, &lock); err != unix.EBADF {
			t.Errorf("lock to write a descriptor to read: %v, want %v", err, unix.EBADF)
		}
	})
}

// TestInotify: opening and reading are noticed.
func TestInotify(t *testing.T) {
	onViews(t, "native overlay", func(t *testing.T, m *mounted) {
		fd, err := unix.InotifyInit1(unix.IN_NONBLOCK)
		must(t, err)
		defer unix.Close(fd)
		_, err = unix.InotifyAddWatch(fd, m.path("types"), unix.IN_OPEN|unix.IN_ACCESS)
		must(t, err)
		_, err = os.ReadFile(m.path("types/file"))
		must(t, err)
		b := make([]byte, 4096)
		n, err := unix.Read(fd, b)
		must(t, err)
		var seen uint32
		for off := 0; off < n; {
			e := (*unix.InotifyEvent)(unsafe.Pointer(&b[off]))
			seen |= e.Mask
			off += unix.SizeofInotifyEvent + int(e.Len)
		}
		if seen&unix.IN_OPEN == 0 || seen&unix.IN_ACCESS == 0 {
			t.Errorf("events %#x, want IN_OPEN and IN_ACCESS", seen)
		}
	})
}

// TestUprobe: a probe on the text of a program is refused: the kernel reads
// instructions from the page cache, which there is none of (uprobe_register()
// in kernel/events/uprobes.c).
func TestUprobe(t *testing.T) {
	daxfsOnly(t)
	onViews(t, "native overlay", func(t *testing.T, m *mounted) {
		const events = "/sys/kernel/tracing/uprobe_events"
		s := m.subject(t, "subject-static", "spin")
		number(t, s)
		var text region
		for _, r := range maps(t, s.pid(), "/bin/subject-static") {
			if r.perms == "r-xp" {
				text = r
			}
		}
		f, err := os.OpenFile(events, os.O_WRONLY|os.O_APPEND, 0)
		must(t, err)
		defer f.Close()
		if _, err := fmt.Fprintf(f, "p:daxfs_test %s:%#x\n", m.path("bin/subject-static"), text.off+pageSize); err != nil {
			t.Fatalf("define a probe: %v", err)
		}
		defer fmt.Fprintf(f, "-:daxfs_test\n")
		err = os.WriteFile("/sys/kernel/tracing/events/uprobes/daxfs_test/enable", []byte("1"), 0)
		if !errors.Is(err, unix.EIO) {
			t.Errorf("enable a probe: %v, want %v", err, unix.EIO)
		}
		number(t, s)
		s.kill()
	})
}

// TestMigrate: pages stay where they are, and whoever asks is told.
func TestMigrate(t *testing.T) {
	daxfsOnly(t)
	onViews(t, "native pool", func(t *testing.T, m *mounted) {
		const rel = "data/65536"
		for _, flags := range []int{unix.MAP_SHARED, unix.MAP_PRIVATE} {
			mem := mapPath(t, m.path(rel), unix.PROT_READ, flags)
			mem.touch()
			page := []uintptr{mem.addr + pageSize}
			node, status := []int32{0}, []int32{-99}
			if _, _, e := unix.Syscall6(unix.SYS_MOVE_PAGES, 0, 1, uintptr(unsafe.Pointer(&page[0])),
				uintptr(unsafe.Pointer(&node[0])), uintptr(unsafe.Pointer(&status[0])), 4); e != 0 && e != unix.ENOENT { // MPOL_MF_MOVE_ALL
				t.Errorf("move_pages: %v", e)
			}
			mask := uint64(1)
			// MPOL_BIND, MPOL_MF_MOVE
			if _, _, e := unix.Syscall6(unix.SYS_MBIND, mem.addr, 65536, 2, uintptr(unsafe.Pointer(&mask)), 64, 2); e != 0 && e != unix.EIO {
				t.Errorf("mbind: %v", e)
			}
			wantFill(t, "afterwards", mem.b, rel, 0)
			m.wantFrames(t, rel, 0, mem.frames(t))
			mem.unmap()
		}
	})
}

// TestProcFiles: what /proc says about pages can be read.
func TestProcFiles(t *testing.T) {
	onViews(t, "native nopages", func(t *testing.T, m *mounted) {
		mem := mapPath(t, m.path("data/65536"), unix.PROT_READ, unix.MAP_SHARED)
		mem.touch()
		for _, path := range []string{"smaps", "smaps_rollup", "numa_maps", "maps"} {
			if b, err := os.ReadFile("/proc/self/" + path); err != nil || len(b) == 0 {
				t.Errorf("%s: %d bytes, %v", path, len(b), err)
			}
		}
	})
}
