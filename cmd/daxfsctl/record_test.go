package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/convert"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// recordSite is a daemon's root with mounted images, but without a daemon.
type recordSite struct {
	t    *testing.T
	root string
	conf string
}

func newRecordSite(t *testing.T) *recordSite {
	t.Helper()
	testutil.Root(t)
	s := &recordSite{t: t, root: t.TempDir()}
	s.conf = filepath.Join(s.root, "daxfs.toml")
	if err := os.WriteFile(s.conf, fmt.Appendf(nil, "root = %q\n", s.root), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { testutil.UnmountBelow(t, s.root) })
	return s
}

// image mounts an image of these files, whose contents are their names, where
// the daemon would.
func (s *recordSite) image(key string, files ...string) (dir string) {
	s.t.Helper()
	src := s.t.TempDir()
	for _, f := range files {
		content := []byte(f)
		if strings.HasSuffix(f, "empty") {
			content = nil
		}
		p := filepath.Join(src, f)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			s.t.Fatal(err)
		}
		if err := os.WriteFile(p, content, 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
	f, err := os.Create(filepath.Join(s.root, key+".img"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	b, err := mkdaxfs.NewBuilder(f, mkdaxfs.BuildOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	defer shut(b)
	tree, err := convert.FromDir(s.t.Context(), src, b, convert.DirOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := b.Finish(s.t.Context(), tree); err != nil {
		s.t.Fatal(err)
	}
	dir = filepath.Join(s.root, "images", key, "fs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	if code, _, errOut := s.run("image", "mount", "--engine", "erofs", f.Name(), dir); code != 0 {
		s.t.Fatalf("mount: %s", errOut)
	}
	return dir
}

// overlay is the shell command that mounts an overlay over dir at the new
// directory name.
func (s *recordSite) overlay(dir, name string) (at, command string) {
	at = filepath.Join(s.root, name)
	upper := at + ".upper"
	for _, d := range []string{at, upper, upper + "/u", upper + "/w"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := unix.Mount("tmpfs", upper, "tmpfs", 0, ""); err != nil {
		s.t.Fatal(err)
	}
	return at, fmt.Sprintf("mkdir %[1]s/u %[1]s/w && mount -t overlay o -o lowerdir=%[2]s,upperdir=%[1]s/u,workdir=%[1]s/w %[3]s", upper, dir, at)
}

func (s *recordSite) run(args ...string) (code int, stdout, stderr string) {
	var out, errOut bytes.Buffer
	code = run(context.Background(), append([]string{"daxfsctl", "--config", s.conf}, args...), &out, &errOut)
	return code, out.String(), errOut.String()
}

func TestRecord(t *testing.T) {
	s := newRecordSite(t)
	dir := s.image("aa11", "etc/a", "etc/b", "etc/c", "etc/d", "etc/empty", "bin/odd\nname", "bin/unused")
	at, mount := s.overlay(dir, "container")
	script := mount + fmt.Sprintf(`
		cd %s
		cat etc/b etc/empty etc/a > /dev/null
		echo x > etc/new; cat etc/new > /dev/null
		rm etc/c; echo x > etc/c; cat etc/c > /dev/null
		cat bin/odd* etc/b > /dev/null
		cat etc/d > /dev/null; rm etc/d
		echo said; exit 3`, at)
	const want = "/etc/b\n/etc/a\n\"/bin/odd\\nname\"\n/etc/d\n"
	code, out, errOut := s.run("record", "--", "sh", "-c", script)
	if code != 3 || out != want {
		t.Errorf("exit status %d, list %q, want 3 and %q\n%s", code, out, want, errOut)
	}
	// What the command prints to standard output is not in the list.
	if want := "said\ndaxfsctl: recorded 4 files of image aa11, 27 B\n"; errOut != want {
		t.Errorf("standard error %q, want %q", errOut, want)
	}
	if err := unix.Unmount(at, 0); err != nil {
		t.Errorf("recording keeps the file system in use: %v", err)
	}
}

// Files that are opened where the image itself is mounted, or a part of it.
func TestRecordWithoutOverlay(t *testing.T) {
	s := newRecordSite(t)
	dir := s.image("aa11", "etc/a", "etc/sub/b", "c")
	bound := filepath.Join(s.root, "bound")
	if err := os.Mkdir(bound, 0o755); err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(s.root, "list")
	script := fmt.Sprintf("cat %[1]s/c; mount --bind %[1]s/etc %[2]s; cat %[2]s/sub/b; chroot %[1]s /none; unshare -m sh -c 'mount --bind %[1]s %[2]s; cat %[2]s/etc/a'", dir, bound)
	for _, which := range [][]string{{"--image", "aa"}, {"--mount", dir}, {}} {
		args := append(append([]string{"record", "-o", list, "--json"}, which...), "--", "sh", "-c", script)
		code, out, errOut := s.run(args...)
		got, err := os.ReadFile(list)
		if want := "/c\n/etc/sub/b\n/etc/a\n"; code != 0 || err != nil || string(got) != want {
			t.Errorf("%q: exit status %d, list %q %v, want %q\n%s", which, code, got, err, want, errOut)
		}
		var res recordingJSON
		if err := json.Unmarshal([]byte(out), &res); err != nil {
			t.Fatal(err)
		}
		name := "aa11"
		if slices.Contains(which, "--mount") {
			name = dir
		}
		if len(res.Images) != 1 || res.Images[0] != (recordedImage{name, 3, 15}) || res.Files != 3 || res.Output != list || res.Unknown != 0 || res.Lost || res.Late != nil {
			t.Errorf("%q: %+v", which, res)
		}
		testutil.UnmountBelow(t, bound)
	}
}

// One of several images.
func TestRecordImages(t *testing.T) {
	s := newRecordSite(t)
	first, second := s.image("aa11", "a", "same"), s.image("bb22", "b", "same")
	script := fmt.Sprintf("cat %[1]s/same %[2]s/same %[2]s/b %[1]s/a > /dev/null", first, second)
	if code, out, errOut := s.run("record", "--image", "pool:bb", "--", "sh", "-c", script); code != 0 || out != "/same\n/b\n" {
		t.Errorf("exit status %d, list %q\n%s", code, out, errOut)
	}
	code, out, errOut := s.run("record", "--", "sh", "-c", script)
	if code != 0 || out != "/same\n/b\n/a\n" || !strings.Contains(errOut, "warning: files of 2 images are in the list") {
		t.Errorf("exit status %d, list %q\n%s", code, out, errOut)
	}
}

// Whether the first files may be missing is known.
func TestRecordLate(t *testing.T) {
	s := newRecordSite(t)
	r, err := newRecorder(func(dir string) (string, bool) { return "it", strings.HasPrefix(dir, s.root) })
	if err != nil {
		t.Fatal(err)
	}
	defer shut(r)
	// Others on this machine mount things too.
	r.since = func(string) (uint64, bool) { return 0, false }
	scan := func() {
		t.Helper()
		changed, err := r.mounts.changed()
		if err == nil && !changed {
			t.Error("the mount table has not changed")
		}
		if err == nil {
			err = r.scan(true)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	mount := func(command string) {
		t.Helper()
		if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	dir := s.image("aa", "a")
	scan()
	_, overlay := s.overlay(dir, "in-time")
	mount(overlay)
	scan()
	if len(r.late) != 0 {
		t.Errorf("late %q: the image was watched before anything was mounted above it", r.late)
	}
	if r.overlays {
		return // there it takes a process in the overlay
	}
	dir = s.image("bb", "b")
	_, overlay = s.overlay(dir, "late")
	mount(overlay)
	scan()
	if len(r.late) != 1 {
		t.Errorf("late %q: something was mounted above the image before it was watched", r.late)
	}
	// The same for a mount that has gone again.
	if _, ok := mountsSince(dir); !ok {
		t.Log("this kernel does not number mounts for good")
		return
	}
	r.late, r.since = nil, mountsSince
	dir = s.image("cc", "c")
	at, overlay := s.overlay(dir, "gone")
	mount(overlay + "; umount " + at)
	scan()
	if len(r.late) != 1 {
		t.Errorf("late %q: something was mounted above the image for a moment before it was watched", r.late)
	}
}

// An image that is mounted while the command runs is recorded from its first
// file on, again after it was mounted anew.
func TestRecordMountedLater(t *testing.T) {
	s := newRecordSite(t)
	dir := s.image("aa11", "a", "b", "c")
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	at, overlay := s.overlay(dir, "container")
	// Between the daemon's mounting and the container's there is more time than
	// recording needs to see the first. Here the mark of the file system tells.
	mount := fmt.Sprintf("mount -t erofs -o ro,loop %s/aa11.img %s; until grep -q 'fanotify sdev:' /proc/$PPID/fdinfo/*; do :; done; ", s.root, dir)
	script := mount + overlay + fmt.Sprintf("; cat %[1]s/b; umount %[1]s; umount %[2]s; %[3]s cat %[2]s/a", at, dir, mount)
	code, out, errOut := s.run("record", "--", "sh", "-ec", script)
	if code != 0 || out != "/b\n/a\n" {
		t.Errorf("exit status %d, list %q\n%s", code, out, errOut)
	}
}

func TestRecordErrors(t *testing.T) {
	s := newRecordSite(t)
	dir := s.image("aa11", "a")
	list := filepath.Join(s.root, "list")
	if err := os.WriteFile(list, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadDir(s.root)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args string
		code int
		want string
	}{
		{"record", 2, "record: want -- COMMAND"},
		{"record --image a --mount / -- true", 2, "--image and --mount do not go together"},
		{"record --image xyz -- true", 2, "--image xyz: want the beginning of a key"},
		{"record --image= -- true", 2, "want the beginning of a key"},
		{"record --mount / -- true", 1, "/: no image is mounted there"},
		{"record --mount /nothing -- true", 1, "no such file or directory"},
		{"record -o /dev/null -- true", 1, "output /dev/null: not a regular file"},
		{"record -o /nothing/list -- true", 1, "create /nothing/list: no such file or directory"},
		{"record -o " + list + " -- /nothing", 1, "/nothing: no such file or directory"},
		{"record -o " + list + " -- true", 1, "no file of an image was used while the command ran, no list was written"},
		{"record -o " + list + " -- false", 1, "no file of an image was used"},
		{"record -o " + list + " -- sh -c kill${IFS}-TERM${IFS}$$", 143, "no file of an image was used"},
		{"record --image bb -o " + list + " -- cat " + dir + "/a", 1, "no file of an image was used"},
	} {
		code, out, errOut := s.run(strings.Fields(tt.args)...)
		if code != tt.code || !strings.Contains(errOut, tt.want) {
			t.Errorf("%s: exit status %d, %q, want %d and %q", tt.args, code, errOut, tt.code, tt.want)
		}
		if strings.Contains(out, "/a") {
			t.Errorf("%s: %q", tt.args, out)
		}
	}
	if got, err := os.ReadFile(list); string(got) != "old" {
		t.Errorf("the list of before is %q %v now", got, err)
	}
	after, err := os.ReadDir(s.root)
	if err != nil || len(before) != len(after) {
		t.Errorf("%v before, %v now, %v", before, after, err)
	}
}

// Without root there is no fanotify on whole file systems.
func TestRecordUnprivileged(t *testing.T) {
	s := newRecordSite(t)
	bin := filepath.Join(s.root, "daxfsctl")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(testutil.Tool(t, "setpriv"), "--bounding-set=-sys_admin", bin, "--config", s.conf, "record", "--", "echo", "ran")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "operation not permitted: recording needs root") || strings.Contains(string(out), "ran") {
		t.Errorf("%v: %s", err, out)
	}
}
