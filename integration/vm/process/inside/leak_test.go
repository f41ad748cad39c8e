package inside

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestUnload: when the last mount is gone, so are inodes, memory and ranges, and
// the module can go and come back.
func TestUnload(t *testing.T) {
	daxfsOnly(t)
	loaded := memoryMap(t)
	if err := unix.DeleteModule("daxfs", 0); err != nil {
		t.Fatalf("remove the module before mounting: %v", err)
	}
	unloaded := memoryMap(t)
	run(t, "insmod", config.Module)

	root := mountDaxfs(t, ImageNative, "")
	if err := unix.DeleteModule("daxfs", 0); err == nil {
		t.Fatal("the module could be removed under a mount")
	}
	walk(t, root)
	if n := slabObjects(t); n < ManyNames {
		t.Errorf("%d inodes in memory after a walk of %d and more", n, ManyNames)
	}
	if now := memoryMap(t); now == loaded {
		t.Error("/proc/iomem does not show the region")
	}
	must(t, unix.Unmount(root, 0))
	if n := slabObjects(t); n != 0 {
		t.Errorf("%d inodes in memory after unmounting", n)
	}
	if now := memoryMap(t); now != loaded {
		t.Errorf("/proc/iomem after unmounting:\n%s\nwas\n%s", now, loaded)
	}
	if err := unix.DeleteModule("daxfs", 0); err != nil {
		t.Fatalf("remove the module: %v", err)
	}
	if now := memoryMap(t); now != unloaded {
		t.Errorf("/proc/iomem without the module:\n%s\nwas\n%s", now, unloaded)
	}
	if _, err := os.Stat("/sys/fs/daxfs"); !os.IsNotExist(err) {
		t.Errorf("/sys/fs/daxfs without the module: %v", err)
	}
	run(t, "insmod", config.Module)
	m := native(t)
	m.wantUnchanged(t, "data/65537")
}

// slabObjects counts the inodes of daxfs in memory.
func slabObjects(t *testing.T) int {
	t.Helper()
	// Freed ones are kept at hand for each processor until they are asked for.
	writeFile(t, "/sys/kernel/slab/daxfs_inode/shrink", "1")
	time.Sleep(100 * time.Millisecond) // they are freed after a grace period
	writeFile(t, "/sys/kernel/slab/daxfs_inode/shrink", "1")
	b, err := os.ReadFile("/proc/slabinfo")
	must(t, err)
	for _, line := range strings.Split(string(b), "\n") {
		var active int
		if n, _ := fmt.Sscanf(line, "daxfs_inode %d", &active); n == 1 {
			return active
		}
	}
	t.Fatal("/proc/slabinfo has no daxfs_inode")
	return 0
}

// TestMountLeaks: mounting again and again, well or badly, costs no memory.
func TestMountLeaks(t *testing.T) {
	daxfsOnly(t)
	available := func() int64 {
		writeFile(t, "/proc/sys/vm/drop_caches", "3")
		return meminfo(t)["MemAvailable"]
	}
	round := func() {
		for _, more := range []string{"", "nopages", "name=x"} {
			dir := mountDaxfs(t, ImageTwin, more)
			if _, err := os.ReadFile(dir + "/65537"); err != nil {
				t.Fatal(err)
			}
			must(t, unix.Unmount(dir, 0))
		}
		if err := tryMount(t, options(ImageTorn, "")); !errors.Is(err, unix.EUCLEAN) {
			t.Errorf("mount half a superblock: %v", err)
		}
	}
	round()
	before := available()
	for range 10 {
		round()
	}
	if lost := before - available(); lost > 24<<20 {
		t.Errorf("40 mounts have cost %d bytes", lost)
	}
}

// TestAtOnce: processes that read, map, walk, copy on write and forget, while
// others mount and unmount, do not hurt each other.
func TestAtOnce(t *testing.T) {
	onViews(t, "native nopages overlay", func(t *testing.T, m *mounted) {
		const rel = "data/65536"
		var wg sync.WaitGroup
		end := time.Now().Add(6 * time.Second)
		each := func(f func() error) {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for time.Now().Before(end) {
					if err := f(); err != nil {
						t.Error(err)
						return
					}
				}
			}()
		}
		want := make([]byte, 65536)
		Fill(want, rel, 0)
		for _, flags := range []int{unix.MAP_SHARED, unix.MAP_PRIVATE} {
			each(func() error {
				f, err := os.Open(m.path(rel))
				if err != nil {
					return err
				}
				defer f.Close()
				mem, err := tryMap(f, 0, 65536, unix.PROT_READ, flags)
				if err != nil {
					return err
				}
				defer mem.unmap()
				if string(mem.b) != string(want) {
					return fmt.Errorf("mapping with flags %#x has wrong bytes", flags)
				}
				if m.nopages() && flags == unix.MAP_SHARED {
					return nil // frames alone cannot be given back
				}
				return mem.madvise(0, 32768, unix.MADV_DONTNEED)
			})
		}
		each(func() error {
			b, err := os.ReadFile(m.path(rel))
			if err == nil && string(b) != string(want) {
				err = fmt.Errorf("read has wrong bytes")
			}
			return err
		})
		each(func() error {
			d, err := os.ReadDir(m.path("names"))
			if err == nil && len(d) < 250 {
				err = fmt.Errorf("%d names", len(d))
			}
			return err
		})
		each(func() error { return exec.Command(m.path("bin/subject"), "ids").Run() })
		each(func() error {
			time.Sleep(200 * time.Millisecond)
			return os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0)
		})
		if config.FS == "daxfs" {
			dir := mountPoint(t)
			each(func() error {
				if err := unix.Mount("none", dir, "daxfs", unix.MS_RDONLY, options(ImageTwin, m.options)); err != nil {
					return err
				}
				_, err := os.ReadFile(dir + "/8193")
				// A program that somebody is about to start has our open file
				// until it really starts.
				for unix.Unmount(dir, 0) == unix.EBUSY {
					time.Sleep(time.Millisecond)
				}
				return err
			})
		}
		wg.Wait()
		m.wantUnchanged(t, rel)
	})
}
