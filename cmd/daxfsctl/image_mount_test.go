package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/engine"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

// mountPoint is a directory that is unmounted at the end, whatever is there.
func mountPoint(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// An image of the pool and an image file are mounted, and show what is in them.
func TestImageMount(t *testing.T) {
	s := newSite(t)
	s.run("c", appName())
	var ls poolLsJSON
	s.json(0, &ls, "pool", "ls")
	image := ""
	for _, r := range ls.Records {
		if r.Kind == "image" {
			image = "pool:" + r.Key
		}
	}
	dir := mountPoint(t)
	var res struct{ Image, Dir, Engine, Method string }
	s.json(0, &res, "image", "mount", image, dir)
	if res.Image != image || res.Dir != dir || res.Engine != "erofs" || res.Method == "" {
		t.Errorf("%+v", res)
	}
	for name, want := range map[string]string{"etc/conf": "one", "app/main": "main"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o600); err == nil {
		t.Error("can be written to")
	}
	if _, errOut, code := s.ctl("image", "mount", image, dir); code != 1 || !strings.Contains(errOut, "an image is mounted there") {
		t.Errorf("mounted twice: %d, %s", code, errOut)
	}
	f, err := os.Open(filepath.Join(dir, "etc/conf"))
	if err != nil {
		t.Fatal(err)
	}
	if _, errOut, code := s.ctl("image", "unmount", dir); code != 1 || !strings.Contains(errOut, "busy") {
		t.Errorf("unmounted while in use: %d, %s", code, errOut)
	}
	f.Close()
	s.good("image", "unmount", dir)
	if _, errOut, code := s.ctl("image", "unmount", dir); code != 1 || !strings.Contains(errOut, "no image is mounted there") {
		t.Errorf("unmounted twice: %d, %s", code, errOut)
	}

	// One in a file, behind something else.
	file := filepath.Join(t.TempDir(), "disk")
	if err := writeSample(file, false); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(make([]byte, 12288), b...), 0o600); err != nil {
		t.Fatal(err)
	}
	out := s.good("image", "mount", "--offset", "12288", "--engine", "erofs", file, dir)
	wants(t, out, file+": mounted on "+dir+" by erofs/")
	if b, err := os.ReadFile(dir + "/dir/linked"); err != nil || string(b) != "linked\n" {
		t.Errorf("%q, %v", b, err)
	}
	wants(t, s.good("image", "cat", "--offset", "12288", file, "link"), "linked")
	s.good("image", "unmount", dir)
}

// An image that an overlay still uses stays pinned, whatever else is unmounted in
// the moment in which it would be free.
func TestImageUnmountBesideOthers(t *testing.T) {
	t.Setenv("TMPDIR", "/dev/shm") // where images are mounted through loop devices
	s := newSite(t)
	s.run("c", appName())
	var ls poolLsJSON
	s.json(0, &ls, "pool", "ls")
	image := ""
	for _, r := range ls.Records {
		if r.Kind == "image" {
			image = "pool:" + r.Key
		}
	}
	file := filepath.Join(t.TempDir(), "image")
	if err := writeSample(file, false); err != nil {
		t.Fatal(err)
	}
	dir, other, root := mountPoint(t), mountPoint(t), mountPoint(t)
	s.good("image", "mount", image, dir)
	s.good("image", "mount", "--engine", "erofs", file, other)
	if err := unix.Mount("overlay", root, "overlay", 0, "lowerdir="+dir+":"+t.TempDir()); err != nil {
		t.Fatal(err)
	}
	go func() {
		for engine.Mounted(dir) {
			time.Sleep(time.Millisecond)
		}
		_ = unix.Unmount(other, 0)
	}()
	if _, errOut, code := s.ctl("image", "unmount", dir); code != 1 || !strings.Contains(errOut, "stays pinned") {
		t.Errorf("status %d, %q: the overlay still uses it", code, errOut)
	}
}

func TestImageMountRefuses(t *testing.T) {
	s := newSite(t)
	file := filepath.Join(t.TempDir(), "image")
	if err := writeSample(file, false); err != nil {
		t.Fatal(err)
	}
	damaged := file + ".bad"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-5000] ^= 1 // in the metadata, which ends the file
	if err := os.WriteFile(damaged, b, 0o600); err != nil {
		t.Fatal(err)
	}
	var ls poolLsJSON
	s.json(0, &ls, "pool", "ls")
	of := make(map[string]string) // one of each kind
	for _, r := range ls.Records {
		of[r.Kind] = "pool:" + r.Key
	}
	chain := fmt.Sprintf("pool:%x", s.pool.Chains()[0].Key)
	dir := mountPoint(t)
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"unknown engine":   {[]string{"--engine", "warp", file, dir}, 2, `engine "warp" is not known, have daxfs, erofs-dax, erofs`},
		"no directory":     {[]string{file}, 2, "want IMAGE DIR"},
		"bad offset":       {[]string{"--offset", "100", file, dir}, 2, "want a multiple of 4096"},
		"offset behind":    {[]string{"--offset", "1073741824", file, dir}, 2, "at most"},
		"layer":            {[]string{of["layer"], dir}, 1, "a layer cannot be mounted"},
		"chain":            {[]string{chain, dir}, 1, "no such image or layer"},
		"damaged":          {[]string{damaged, dir}, 1, "corrupt"},
		"unsuitable":       {[]string{"--engine", "daxfs", "--engine", "erofs-dax", file, dir}, 1, "has no physical address"},
		"missing":          {[]string{file + ".none", dir}, 1, "no such file"},
		"nowhere to mount": {[]string{file, dir + "/none"}, 1, "no such file"},
		"bad memory":       {[]string{"phys:0x1000,size=2MiB", dir}, 1, "multiple of 2 MiB"},
		"the kernel's own": {[]string{"phys:0x1000000,size=2MiB", dir}, 1, "System RAM"},
	} {
		out, errOut, code := s.ctl(append([]string{"image", "mount"}, c.args...)...)
		if code != c.code || !strings.Contains(errOut, c.want) || out != "" {
			t.Errorf("%s: status %d, want %d\n%s%s, want %q", name, code, c.code, out, errOut, c.want)
		}
	}
	if at := testutil.MountsBelow(t, dir); len(at) != 0 {
		t.Errorf("mounted: %v", at)
	}
}
