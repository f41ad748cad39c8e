package inside

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// container is a root file system that programs run in, as a container engine
// would set it up.
type container struct {
	root  string
	upper string
}

// debianContainer is a container on the Debian image, with its upper directory
// on tmpfs.
func debianContainer(t *testing.T, options string) container {
	t.Helper()
	dir := scratch(t)
	c := container{mountOverlay(t, mountDaxfs(t, ImageDebian, options), dir, ""), filepath.Join(dir, "upper")}
	must(t, unix.Mount("proc", filepath.Join(c.root, "proc"), "proc", 0, ""))
	t.Cleanup(func() { unmount(t, filepath.Join(c.root, "proc")) })
	must(t, unix.Mount("tmpfs", filepath.Join(c.root, "dev"), "tmpfs", 0, ""))
	t.Cleanup(func() { unmount(t, filepath.Join(c.root, "dev")) })
	must(t, unix.Mknod(filepath.Join(c.root, "dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	return c
}

// command is a program in the container.
func (c container) command(args ...string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	// Looked up inside, not here.
	cmd.Path, cmd.Err = args[0], nil
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: c.root, Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	return cmd
}

func (c container) sh(t *testing.T, script string) string {
	t.Helper()
	out, err := c.command("/bin/sh", "-euc", script).CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

// TestDebian: a real distribution works from an image.
func TestDebian(t *testing.T) {
	daxfsOnly(t)
	for _, options := range []string{"", "nopages"} {
		t.Run("options="+options, func(t *testing.T) {
			c := debianContainer(t, options)
			for _, e := range []struct{ script, want string }{
				{"echo $((6 * 7)); grep -c . /etc/debian_version", "42\n1"},
				{`perl -e 'use POSIX; print join(" ", map { $_ * $_ } 1 .. 5), " ", POSIX::floor(2.7), "\n"'`, "1 4 9 16 25 2"},
				{"dpkg-query -W -f '${Package} ${Status}\n' bash dpkg", "bash install ok installed\ndpkg install ok installed"},
				{"find /etc /usr/bin -name passwd | sort", "/etc/pam.d/passwd\n/etc/passwd\n/usr/bin/passwd"},
				{"stat -c %a /usr/bin/passwd /tmp", "4755\n1777"},
				{"getcap /app/tool-renamed", "/app/tool-renamed cap_net_raw=ep"},
				{"python3 /srv/app/main.py", "346"},
			} {
				if got := c.sh(t, e.script); got != e.want {
					t.Errorf("%s: %q, want %q", e.script, got, e.want)
				}
			}
			// Byte code is not stale: nothing was compiled again.
			if out := c.sh(t, "find / -xdev -newer /proc/1/cmdline -name '*.pyc'"); out != "" {
				t.Errorf("compiled again: %s", out)
			}
			// Contents are what the packages say. Documentation is not installed.
			c.sh(t, `cd /; for p in coreutils bash dpkg perl-base libpython3.11-minimal; do
				cat var/lib/dpkg/info/$p.md5sums var/lib/dpkg/info/$p:amd64.md5sums 2>/proc/1/fd/1 || true
			done | grep -E '^[0-9a-f]{32}  ' | grep -vE '  usr/share/(doc|man|info|locale|bug|lintian)/' >/tmp/sums
			test $(grep -c . /tmp/sums) -gt 100
			md5sum -c --quiet /tmp/sums`)
			// Work on it.
			c.sh(t, `echo x >>/etc/passwd; rm -rf /usr/share/perl5 /usr/share/zoneinfo; mkdir /usr/share/perl5
				test -z "$(ls /usr/share/perl5)"; mv /etc/apt /etc/apt.old; ls /etc/apt.old/sources.list.d
				cp -a /usr/lib/python3 /var/python3; diff -r /usr/lib/python3 /var/python3; chown -R 1000 /srv`)
		})
	}
}

// TestFramesInContainers: programs and libraries of containers on one image are
// the pool's own memory in each of their processes.
func TestFramesInContainers(t *testing.T) {
	daxfsOnly(t)
	first := debianContainer(t, "")
	image := manifest(t, ImageDebian)
	pool := &mounted{view: view{image: ImageDebian}, Manifest: image}
	for i, c := range []container{first, debianContainer(t, ""), first} {
		cmd := c.command("/usr/bin/perl", "-e", `$| = 1; print "ready\n"; <STDIN>;`)
		s := start(t, cmd)
		if l := s.line(); l != "ready" {
			t.Fatalf("perl says %q", l)
		}
		for _, rel := range []string{"usr/bin/perl", "usr/lib/x86_64-linux-gnu/libc.so.6", "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"} {
			n := 0
			for _, r := range maps(t, s.pid(), "/"+filepath.Base(rel)) {
				if r.perms != "r-xp" {
					continue
				}
				for j, pfn := range frames(t, s.pid(), r.start, r.pages()) {
					if pfn != 0 {
						n++
						pool.wantFrames(t, rel, int(r.off)/pageSize+j, []uint64{pfn})
					}
				}
			}
			if n == 0 {
				t.Errorf("process %d: no page of the text of %s is there", i, rel)
			}
		}
		s.end()
	}
}

// TestContainersLeaveNothing: containers come and go, and so does the image.
func TestContainersLeaveNothing(t *testing.T) {
	daxfsOnly(t)
	t.Run("containers", func(t *testing.T) {
		for i := range 3 {
			c := debianContainer(t, "")
			if got := c.sh(t, fmt.Sprintf("echo %d >/etc/number; cat /etc/number", i)); got != fmt.Sprint(i) {
				t.Errorf("container %d: %q", i, got)
			}
			if _, err := os.Stat(filepath.Join(c.upper, "etc/number")); err != nil {
				t.Error(err)
			}
		}
	})
	wantRegions(t, 0)
	if e := entries(t); len(e) != 0 {
		t.Errorf("/sys/fs/daxfs has %q afterwards", e)
	}
}
