package vm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/daxfs/containerd-daxfs/integration/lab"
)

// What daxfsctl record sees of a container on each kernel: up to 6.4 overlayfs
// tells nobody of what it opens below, so the overlay has to be watched.
func TestRecord(t *testing.T) {
	EachKernel(t, func(t *testing.T, k Kernel) {
		dir := t.TempDir()
		for _, cmd := range []string{"daxfsctl", "mkdaxfs"} {
			if out, err := exec.Command("go", "build", "-o", dir+"/", "../../cmd/"+cmd).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
		prog, err := os.ReadFile(lab.Build(t).TestProg)
		if err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string][]byte{"testprog": prog, "etc/a": []byte("a"), "etc/b": []byte("b"), "etc/c": []byte("c"), "etc/d": []byte("d")} {
			p := filepath.Join(dir, "src", name)
			if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p, content, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := exec.Command(dir+"/mkdaxfs", "-d", dir+"/src", "-o", dir+"/image").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		g := Start(t, Machine{Kernel: k, Modules: []string{"overlay", "erofs", "loop"}})
		// A container is watched for as soon as its overlay is mounted. What
		// mounts it waits for the marks, two of them up to Linux 6.4.
		marks := 1
		if k.Name == "6.1" {
			marks = 2
		}
		got := g.MustRun(t, "sh", "-euc", fmt.Sprintf(`
			mount -t tmpfs tmpfs /mnt
			mkdir -p /mnt/images/aa/fs /mnt/u /mnt/w /mnt/m
			echo 'root = "/mnt"' > /mnt/conf
			mount -t erofs -o ro,loop %[1]s/image /mnt/images/aa/fs
			%[1]s/daxfsctl --config /mnt/conf record -- sh -euc '
				mount -t overlay o -o lowerdir=/mnt/images/aa/fs,upperdir=/mnt/u,workdir=/mnt/w /mnt/m
				until test $(cat /proc/$PPID/fdinfo/* 2>/dev/null | grep -c "fanotify sdev:") = %[2]d; do :; done
				cat /mnt/m/etc/b
				unshare -m sh -euc "mount --make-rprivate /; cd /mnt/m; mkdir old; pivot_root . old; exec /testprog write /new x"
				rm /mnt/m/etc/c; echo x > /mnt/m/etc/c; cat /mnt/m/etc/c
				cat /mnt/m/etc/a'`, dir, marks))
		if want := "/etc/b\n/testprog\n/etc/a\n"; got != want {
			t.Errorf("recorded %q, want %q", got, want)
		}
	})
}
