package inside

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// view is a way in which a process sees an image.
type view struct {
	name    string
	image   string
	options string // of the mount, in addition
	overlay bool   // as the only lower directory of an overlay
}

var allViews = []view{
	{"native", ImageNative, "", false},
	{"v8", ImageV8, "", false},
	{"pool", ImagePool, "", false},
	{"nopages", ImageNative, "nopages", false},
	{"overlay", ImageNative, "", true},
}

// mounted is an image that is mounted, until the test ends.
type mounted struct {
	view
	root string // where the view is
	base string // where the image itself is
	*Manifest
}

// nopages reports whether the mount has no page structs: shared mappings have
// the pool's frames, which the kernel knows nothing about, private ones copies.
func (v view) nopages() bool { return v.options == "nopages" }

// inPlace reports whether mapped pages are the pool's own, and /proc/PID/pagemap
// says so.
func (v view) inPlace() bool { return config.FS == "daxfs" && !v.nopages() }

// onViews runs a subtest on each of the named views, of which EROFS has two; in
// short runs on the first.
func onViews(t *testing.T, names string, f func(t *testing.T, m *mounted)) {
	t.Helper()
	ran := false
	for _, name := range strings.Fields(names) {
		if ran && testing.Short() {
			break
		}
		v := findView(t, name)
		if config.FS != "daxfs" && name != "native" && name != "overlay" {
			continue
		}
		ran = true
		t.Run(name, func(t *testing.T) { f(t, v.mount(t)) })
	}
	if !ran {
		t.Skipf("%s has none of the views %q", config.FS, names)
	}
}

func findView(t *testing.T, name string) view {
	t.Helper()
	for _, v := range allViews {
		if v.name == name {
			return v
		}
	}
	t.Fatalf("no view %q", name)
	return view{}
}

func (v view) mount(t *testing.T) *mounted {
	t.Helper()
	m := &mounted{view: v, Manifest: manifest(t, v.image)}
	if config.FS == "daxfs" {
		m.base = mountDaxfs(t, v.image, v.options)
	} else {
		m.base = mountErofs(t)
	}
	m.root = m.base
	if v.overlay {
		m.root = mountOverlay(t, m.base, scratch(t), "")
	}
	return m
}

// native mounts the native image as it is.
func native(t *testing.T) *mounted {
	t.Helper()
	return findView(t, "native").mount(t)
}

func (m *mounted) path(rel string) string { return filepath.Join(m.root, rel) }

// open opens a file for reading until the test ends.
func (m *mounted) open(t *testing.T, rel string) *os.File {
	t.Helper()
	return open(t, m.path(rel))
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// frame is the page frame that page i of a file must have everywhere.
func (m *mounted) frame(t *testing.T, rel string, i int) uint64 {
	t.Helper()
	off, ok := m.Extents[rel]
	if !ok {
		t.Fatalf("image %s has no data of %q", m.image, rel)
	}
	return (config.Phys+uint64(off))/pageSize + uint64(i)
}

var manifests = map[string]*Manifest{}

func manifest(t *testing.T, image string) *Manifest {
	t.Helper()
	if m := manifests[image]; m != nil {
		return m
	}
	i, ok := config.Images[image]
	if !ok {
		t.Fatalf("the pool has no image %q", image)
	}
	m, err := readManifest(i.Manifest)
	must(t, err)
	manifests[image] = m
	return m
}

// options are the mount options for an image of the pool.
func options(image, more string) string {
	o := fmt.Sprintf("phys=%#x,size=%d,offset=%d", config.Phys, config.Size, config.Images[image].Offset)
	if more != "" {
		o += "," + more
	}
	return o
}

// mountDaxfs mounts an image until the test ends and returns the place.
func mountDaxfs(t *testing.T, image, more string) string {
	t.Helper()
	return mountAt(t, "none", "daxfs", unix.MS_RDONLY, options(image, more))
}

// mountAt mounts until the test ends; a mount that is busy then is an error.
func mountAt(t *testing.T, source, fstype string, flags uintptr, data string) string {
	t.Helper()
	dir := mountPoint(t)
	if err := unix.Mount(source, dir, fstype, flags, data); err != nil {
		t.Fatalf("mount -t %s -o %s: %v", fstype, data, err)
	}
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

// mountPoint is an empty directory until the test ends.
func mountPoint(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "inside-")
	must(t, err)
	must(t, os.Chmod(dir, 0o755))
	// Remove, not RemoveAll: it might still be a mount.
	t.Cleanup(func() { os.Remove(dir) })
	return dir
}

// unmount takes a mount down, unless the test has done so.
func unmount(t *testing.T, dir string) {
	t.Helper()
	err := unix.Unmount(dir, 0)
	if err == unix.EBUSY {
		t.Errorf("unmount %s: %v; open: %s", dir, err, users(dir))
		err = unix.Unmount(dir, unix.MNT_DETACH)
	}
	if err != nil && err != unix.EINVAL {
		t.Errorf("unmount %s: %v", dir, err)
	}
}

// users names the processes that have a file below dir open or mapped.
func users(dir string) string {
	var out []string
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	more, _ := filepath.Glob("/proc/[0-9]*/map_files/*")
	for _, l := range append(links, more...) {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, dir) {
			out = append(out, l+" -> "+to)
		}
	}
	return strings.Join(out, ", ")
}

// mountErofs mounts the EROFS view of the native image through a loop device.
func mountErofs(t *testing.T) string {
	t.Helper()
	dir := mountPoint(t)
	run(t, "mount", "-t", "erofs", "-o", "loop,ro", config.File, dir)
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

// mountOverlay mounts an overlay of lower with upper and work directories
// below dir.
func mountOverlay(t *testing.T, lower, dir, more string) string {
	t.Helper()
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	o := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, dir, dir)
	if more != "" {
		o += "," + more
	}
	return mountAt(t, "overlay", "overlay", 0, o)
}

// scratch is an empty tmpfs until the test ends.
func scratch(t *testing.T) string {
	t.Helper()
	return mountAt(t, "tmpfs", "tmpfs", 0, "size=512m,mode=0755")
}

// ext4 is an empty ext4 file system of the given size on a loop device.
func ext4(t *testing.T, size int64) string {
	t.Helper()
	image := filepath.Join(scratch(t), "ext4")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, size))
	run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", image)
	dir := mountPoint(t)
	run(t, "mount", "-o", "loop", image, dir)
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

// run runs a program that must succeed and returns what it said.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// writeFile is echo TEXT >PATH.
func writeFile(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), 0o644))
}

// dropCaches makes the kernel forget names and inodes that nobody uses.
func dropCaches(t *testing.T) {
	t.Helper()
	writeFile(t, "/proc/sys/vm/drop_caches", "2")
}
