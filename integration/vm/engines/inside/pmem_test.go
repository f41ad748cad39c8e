package inside

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/engine"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// What the region writes is in the memory, not in this kernel's page cache.
func TestPmemBytes(t *testing.T) {
	r, err := daxmem.OpenRegion(location)
	must(t, err)
	defer r.Close()
	if r.Kind() != daxmem.KindPmem {
		t.Errorf("kind %s", r.Kind())
	}
	before := cached(t)
	b := make([]byte, 1<<20)
	for i := range b {
		b[i] = byte(i >> 8)
	}
	for at := int64(0); at < 32<<20; at += int64(len(b)) {
		if _, err := r.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
		if _, err := r.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	if grown := cached(t) - before; grown > 4<<20 {
		t.Errorf("the page cache grew by %d bytes", grown)
	}
	must(t, r.Sync())
	if err := r.Grow(r.Size() + 4096); !errors.Is(err, daxmem.ErrInvalid) {
		t.Errorf("grow: %v", err)
	}
	// One word beside another, and nothing else.
	for i := range int64(2) {
		if _, err := r.WriteAt([]byte(fmt.Sprintf("word %d. ", i)), 4096+8*i); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, 24)
	if _, err := r.ReadAt(got, 4096); err != nil || string(got[:16]) != "word 0. word 1. " || !bytes.Equal(got[16:], b[4096+16:][:8]) {
		t.Errorf("%q, %v", got, err)
	}
}

// The whole way with a stock kernel: images that share nothing, mounted by the
// kernel's EROFS with DAX.
func TestPmemErofsDax(t *testing.T) {
	r := start(t, daxmem.Options{SelfContained: true})
	if r.engine != "erofs-dax" || r.probe("daxfs").Answer != engine.No || r.probe("erofs-dax").Method != "dm-linear" {
		t.Fatalf("engine %s: %+v", r.engine, r.probes)
	}
	if p := r.probe("daxfs"); !strings.Contains(p.Reason, "no file system daxfs") || p.Remedy == "" {
		t.Errorf("%+v", p)
	}
	r.images(fmt.Sprintf("%#x", unix.EROFS_SUPER_MAGIC_V1), false)
}

// A pool with shared extents is not for DAX: the next engine takes it.
func TestPmemShared(t *testing.T) {
	r := start(t, daxmem.Options{})
	if r.engine != "erofs" || !strings.HasPrefix(r.probe("erofs").Method, "loop") {
		t.Fatalf("engine %s: %+v", r.engine, r.probes)
	}
	if p := r.probe("erofs-dax"); p.Answer != engine.No || !strings.Contains(p.Reason, "one inode for each page") || !strings.Contains(p.Remedy, "share_extents = false") {
		t.Errorf("%+v", p)
	}
	base, one, _ := fileSets()
	r.layer("base", "", base)
	r.layer("one", "base", one)
	wantFiles(t, r.lower("c", "one"), base, one)
	// And neither are its images, for who mounts one by hand.
	for _, rec := range r.pool.Records() {
		if rec.Kind != daxmem.KindImage {
			continue
		}
		src := engine.Source{Region: r.pool.Region(), Offset: rec.Offset, Size: r.pool.Size() - rec.Offset}
		if _, err := (&engine.ErofsDax{}).Mount(bg, src, t.TempDir()); !errors.Is(err, engine.ErrUnsuitable) {
			t.Errorf("%v", err)
		}
	}
}

// Images that mkdaxfs wrote, anywhere on the device: several at once, each
// itself, though the kernel would take one device for one superblock.
func TestPmemImageFiles(t *testing.T) {
	region, err := daxmem.OpenRegion(location)
	must(t, err)
	defer region.Close()
	contents := []string{"the first", "the second", strings.Repeat("the third ", 100_000)}
	var mounts []*engine.Mount
	for i, content := range contents {
		dir := t.TempDir()
		m, err := engine.MountBest(bg, nil, writeImage(t, region, content, false, 1<<20+int64(i)*(8<<20)), dir)
		must(t, err)
		if m.Engine != "erofs-dax" || len(m.Superblocks) != 1 {
			t.Errorf("%+v", m)
		}
		mounts = append(mounts, m)
	}
	for i, m := range mounts {
		wantFiles(t, m.Target, map[string][]byte{"a": []byte(contents[i]), "b": []byte(contents[i])})
		a, b := wantFrames(t, m.Target+"/a", region.Size()), wantFrames(t, m.Target+"/b", region.Size())
		if a == b || a < 1<<20+int64(i)*(8<<20) {
			t.Errorf("files at %d and %d of the region", a, b)
		}
	}
	for _, m := range mounts {
		f, err := os.Open(m.Target + "/a")
		must(t, err)
		must(t, engine.Unmount(m))
		if m.Gone() {
			t.Errorf("%s is gone with a file open", m.Superblocks)
		}
		must(t, f.Close())
		if !m.Gone() {
			t.Errorf("%s is there after its last user", m.Superblocks)
		}
	}
	wantNoDevices(t)
	// One in which two files have the same bytes.
	src := writeImage(t, region, "same", true, 1<<20)
	if _, err := (&engine.ErofsDax{}).Mount(bg, src, t.TempDir()); !errors.Is(err, engine.ErrUnsuitable) {
		t.Errorf("shared files: %v", err)
	}
	m, err := engine.MountBest(bg, nil, src, t.TempDir())
	must(t, err)
	if m.Engine != "erofs" {
		t.Errorf("%+v", m)
	}
	must(t, engine.Unmount(m))
	if left := superblocks(t); len(left) != 0 {
		t.Errorf("the kernel still has %q", left)
	}
}

// The reason for a device for each image: with fsoffset=, the second image of
// one device shows the first one's files.
func TestPmemFsoffset(t *testing.T) {
	region, err := daxmem.OpenRegion(location)
	must(t, err)
	defer region.Close()
	var shown []string
	for i, content := range []string{"the first", "the second"} {
		src := writeImage(t, region, content, false, 1<<20+int64(i)*(8<<20))
		dir := t.TempDir()
		if err := unix.Mount(location, dir, "erofs", unix.MS_RDONLY, fmt.Sprintf("dax=always,fsoffset=%d", src.Offset)); errors.Is(err, unix.EINVAL) {
			t.Skip("the kernel has no fsoffset=")
		} else if err != nil {
			t.Fatal(err)
		}
		defer func() { must(t, unix.Unmount(dir, 0)) }()
		b, err := os.ReadFile(dir + "/a")
		must(t, err)
		shown = append(shown, string(b))
	}
	if shown[0] != "the first" || shown[1] != "the first" {
		t.Errorf("shown %q: the kernel can tell them apart now, and device-mapper is not needed any more", shown)
	}
}

// What a process left that died while it made a device goes at the next probe;
// a device in use, and that of a living process, stay.
func TestPmemStaleDevices(t *testing.T) {
	dead := exec.Command("true")
	must(t, dead.Run())
	names := map[string]bool{ // whether it goes
		fmt.Sprintf("daxfs-%d-1", dead.Process.Pid): true,
		fmt.Sprintf("daxfs-%d-2", dead.Process.Pid): false, // in use
		fmt.Sprintf("daxfs-%d-9", os.Getpid()):      false,
		"somebody-elses":                            false,
	}
	var open *os.File
	for name := range names {
		run(t, "dmsetup", "create", "--noudevsync", "--readonly", name, "--table", "0 4096 linear "+location+" 8192")
		if strings.HasSuffix(name, "-2") {
			out := run(t, "dmsetup", "info", "-c", "--noheadings", "-o", "minor", name)
			f, err := os.Open("/dev/dm-" + strings.TrimSpace(out))
			must(t, err)
			open = f
		}
	}
	newPool(t, daxmem.Options{SelfContained: true})
	region, err := daxmem.OpenRegion(location)
	must(t, err)
	pool, err := daxmem.Open(bg, region, daxmem.Options{})
	must(t, err)
	defer pool.Close()
	if p := (&engine.ErofsDax{}).Probe(bg, snapshotter.EnginePool(pool)); p.Answer != engine.Yes {
		t.Errorf("%+v", p)
	}
	left := run(t, "dmsetup", "ls")
	for name, gone := range names {
		if strings.Contains(left, name) == gone {
			t.Errorf("%s: gone %v\n%s", name, !gone, left)
		}
	}
	must(t, open.Close())
	for name, gone := range names {
		if !gone {
			run(t, "dmsetup", "remove", name)
		}
	}
}

func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

// With our module in the kernel the pool on the device is its business, shared
// extents or not: the driver's own page structs are used. Linux 7 has none that
// could be: the next engine takes the pool.
func TestPmemWithModule(t *testing.T) {
	for _, selfContained := range []bool{false, true} {
		t.Run(fmt.Sprint("self-contained ", selfContained), func(t *testing.T) {
			r := start(t, daxmem.Options{SelfContained: selfContained})
			if strings.HasPrefix(run(t, "uname", "-r"), "7.") {
				p := r.probe("daxfs")
				if p.Answer != engine.No || !strings.Contains(p.Reason, "a driver owns a part of it") || !strings.Contains(p.Remedy, fmt.Sprintf("phys:%#x,", address)) {
					t.Errorf("%+v", p)
				}
				if want := map[bool]string{true: "erofs-dax", false: "erofs"}[selfContained]; r.engine != want {
					t.Errorf("engine %s, want %s", r.engine, want)
				}
				return
			}
			if r.engine != "daxfs" || r.probe("daxfs").Method != "phys" {
				t.Fatalf("engine %s: %+v", r.engine, r.probes)
			}
			r.images("0x64617835", !selfContained)
		})
	}
}

// Programs that are not the module's are not its memory's either: a file system
// of the device keeps its pool out.
func TestPmemSomethingElse(t *testing.T) {
	r, err := daxmem.OpenRegion(location)
	must(t, err)
	precious := slices.Repeat([]byte("precious"), 4096)
	_, err = r.WriteAt(precious, 0)
	must(t, err)
	must(t, r.Close())
	if _, err := daxmem.OpenOrCreate(bg, location, daxmem.Options{}); !errors.Is(err, daxmem.ErrNotPool) {
		t.Errorf("%v", err)
	}
	if r, err = daxmem.OpenRegion(location); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := make([]byte, len(precious))
	if _, err := r.ReadAt(got, 0); err != nil || !slices.Equal(got, precious) {
		t.Errorf("it was changed, %v", err)
	}
}
