package vm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// DKMS builds and installs kmod as kmod/README.md says, and what it installs is
// what a modprobe of that kernel would load.
func TestDKMS(t *testing.T) {
	repo, err := repository()
	if err != nil {
		t.Fatal(err)
	}
	EachKernel(t, func(t *testing.T, k Kernel) {
		// A directory of the chroot's own, which other tests may be using.
		if err := os.MkdirAll(filepath.Join(k.Root, "build"), 0o755); err != nil {
			t.Fatal(err)
		}
		outside, err := os.MkdirTemp(filepath.Join(k.Root, "build"), "dkms-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(outside) })
		if err := os.CopyFS(filepath.Join(outside, "kmod"), os.DirFS(filepath.Join(repo, "kmod"))); err != nil {
			t.Fatal(err)
		}
		inside := strings.TrimPrefix(outside, k.Root)
		dkms := func(args ...string) string {
			t.Helper()
			args = append([]string{"/usr/sbin/dkms"}, args...)
			args = append(args, "-k", k.Release, "--dkmstree", inside+"/tree", "--sourcetree", inside+"/src", "--installtree", inside+"/installed", "--no-depmod")
			out, err := chroot(t.Context(), k.Root, args...).CombinedOutput()
			if err != nil {
				t.Fatalf("%q: %v\n%s", args, err, out)
			}
			return string(out)
		}
		for _, dir := range []string{"tree", "src", "installed/" + k.Release} {
			if err := os.MkdirAll(filepath.Join(outside, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		// Where DKMS looks for the headers.
		if err := os.Symlink("/lib/modules/"+k.Release+"/build", filepath.Join(outside, "installed", k.Release, "build")); err != nil {
			t.Fatal(err)
		}
		dkms("install", inside+"/kmod")
		if out := dkms("status"); !strings.Contains(out, "containerd-daxfs") || !strings.Contains(out, "installed") {
			t.Errorf("dkms status: %q", out)
		}
		var modules []string
		err = filepath.WalkDir(filepath.Join(outside, "installed"), func(path string, d os.DirEntry, err error) error {
			if err == nil && strings.HasPrefix(d.Name(), "daxfs.ko") {
				modules = append(modules, path)
			}
			return err
		})
		if err != nil || len(modules) != 1 {
			t.Fatalf("installed modules: %q, %v, want one", modules, err)
		}
		out, err := chroot(t.Context(), k.Root, "/sbin/modinfo", "-F", "vermagic", strings.TrimPrefix(modules[0], k.Root)).CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), k.Release+" ") {
			t.Errorf("modinfo of %s: %q, %v, want a module for %s", modules[0], out, err, k.Release)
		}
		dkms("remove", "containerd-daxfs/"+version(t, repo))
	})
}

// version is PACKAGE_VERSION of dkms.conf.
func version(t *testing.T, repo string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(repo, "kmod/dkms.conf"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), `PACKAGE_VERSION="`)
	version, _, ok2 := strings.Cut(rest, `"`)
	if !ok || !ok2 {
		t.Fatalf("no PACKAGE_VERSION in %s", b)
	}
	return version
}
