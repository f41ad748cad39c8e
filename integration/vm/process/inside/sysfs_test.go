package inside

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestStatfs: what statfs(2) says.
func TestStatfs(t *testing.T) {
	daxfsOnly(t)
	onViews(t, "native v8 pool nopages", func(t *testing.T, m *mounted) {
		var st unix.Statfs_t
		must(t, unix.Statfs(m.root, &st))
		if st.Type != 0x64617835 || st.Bsize != pageSize || st.Namelen != 255 {
			t.Errorf("type %#x, block size %d, name length %d, want 0x64617835, %d, 255", st.Type, st.Bsize, st.Namelen, pageSize)
		}
		if st.Bfree != 0 || st.Bavail != 0 || st.Ffree != 0 {
			t.Errorf("free: %d, %d, %d, want nothing", st.Bfree, st.Bavail, st.Ffree)
		}
		inodes := map[string]bool{}
		var bytes int64
		for path, e := range m.Tree {
			if e.Links != nil {
				path = e.Links[0]
			}
			if !inodes[path] {
				bytes += e.Size
			}
			inodes[path] = true
		}
		if st.Files != uint64(len(inodes)) {
			t.Errorf("%d inodes, want %d", st.Files, len(inodes))
		}
		if total := int64(st.Blocks) * st.Bsize; total < bytes || uint64(total) > config.Size {
			t.Errorf("%d bytes, want the %d of all files at least and the region's %d at most", total, bytes, config.Size)
		}
		if st.Flags&unix.ST_RDONLY == 0 {
			t.Errorf("flags %#x, want ST_RDONLY", st.Flags)
		}
		var other unix.Statfs_t
		must(t, unix.Statfs(mountDaxfs(t, ImageTwin, m.options), &other))
		if other.Fsid == st.Fsid {
			t.Errorf("two mounts have the id %v", st.Fsid)
		}
	})
}

// entries are the directories of /sys/fs/daxfs.
func entries(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob("/sys/fs/daxfs/*:*")
	must(t, err)
	return all
}

// TestSysfs: each mount is described, by its device number, as long as anybody
// uses it.
func TestSysfs(t *testing.T) {
	daxfsOnly(t)
	if e := entries(t); len(e) != 0 {
		t.Fatalf("/sys/fs/daxfs has %q before anything is mounted", e)
	}
	for _, c := range []struct{ image, options, pages string }{
		{ImageNative, "name=some-name", "own"},
		{ImageV8, "", "own"},
		{ImageDebian, "nopages", "none"},
	} {
		t.Run(c.image, func(t *testing.T) {
			root := mountDaxfs(t, c.image, c.options)
			var st unix.Stat_t
			must(t, unix.Stat(root, &st))
			all := entries(t)
			dev := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
			if len(all) != 1 || !strings.HasPrefix(filepath.Base(all[0]), dev) {
				t.Fatalf("/sys/fs/daxfs has %q, want one entry for device %s", all, dev)
			}
			name := dev
			if c.options == "name=some-name" {
				name = "some-name"
			}
			for file, want := range map[string]string{
				"size": fmt.Sprint(config.Size), "offset": fmt.Sprint(config.Images[c.image].Offset),
				"name": name, "pages": c.pages,
			} {
				if got := readLine(t, filepath.Join(all[0], file)); got != want {
					t.Errorf("%s: %q, want %q", file, got, want)
				}
			}
			var phys uint64
			if _, err := fmt.Sscanf(readLine(t, filepath.Join(all[0], "phys")), "0x%x", &phys); err != nil || phys != config.Phys {
				t.Errorf("phys: %#x, %v, want %#x", phys, err, config.Phys)
			}
			if uuid := readLine(t, filepath.Join(all[0], "uuid")); len(uuid) != 36 {
				t.Errorf("uuid: %q", uuid)
			}
			lines := regions(t)
			if len(lines) != 1 || !strings.Contains(lines[0], "users=1 pages="+c.pages) || !strings.Contains(lines[0], fmt.Sprintf("size=%d", config.Size)) {
				t.Errorf("regions: %q, want one with a user and pages=%s", lines, c.pages)
			}

			// A file that is open keeps it, also out of sight.
			f := open(t, root)
			must(t, unix.Unmount(root, unix.MNT_DETACH))
			if len(entries(t)) != 1 {
				t.Error("gone while a file is open")
			}
			f.Close()
			if e := entries(t); len(e) != 0 {
				t.Errorf("still there without users: %q", e)
			}
			wantRegions(t, 0)
		})
	}
}

func readLine(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return strings.TrimSuffix(string(b), "\n")
}

// TestRegionsShared: mounts of one pool have one region.
func TestRegionsShared(t *testing.T) {
	daxfsOnly(t)
	for i, image := range []string{ImageNative, ImageV8, ImagePool, ImageTwin, ImageNative} {
		mountDaxfs(t, image, "")
		lines := regions(t)
		if len(lines) != 1 || !strings.Contains(lines[0], fmt.Sprintf("users=%d ", i+1)) {
			t.Errorf("regions with %d mounts: %q, want one", i+1, lines)
		}
	}
	if n := len(entries(t)); n != 5 {
		t.Errorf("/sys/fs/daxfs has %d mounts, want 5", n)
	}
}

// TestMountinfo: the options that a mount has can be read, and used again.
func TestMountinfo(t *testing.T) {
	daxfsOnly(t)
	root := mountDaxfs(t, ImageNative, "name=with space,novalidate")
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for _, line := range strings.Split(string(b), "\n") {
		w := strings.Fields(line)
		if len(w) < 10 || w[4] != root {
			continue
		}
		got := w[len(w)-1]
		for _, want := range []string{"ro", fmt.Sprintf("phys=%#x", config.Phys), fmt.Sprintf("size=%d", config.Size),
			fmt.Sprintf("offset=%d", config.Images[ImageNative].Offset), `name=with\040space`, "novalidate"} {
			if !contains(strings.Split(got, ","), want) {
				t.Errorf("options %q, want %s among them", got, want)
			}
		}
		return
	}
	t.Errorf("no mount at %s", root)
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

// TestProcFilesystems: the type is known and needs no device.
func TestProcFilesystems(t *testing.T) {
	daxfsOnly(t)
	b, err := os.ReadFile("/proc/filesystems")
	must(t, err)
	if !strings.Contains(string(b), "nodev\tdaxfs\n") {
		t.Errorf("/proc/filesystems has no daxfs:\n%s", b)
	}
}
