package images

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
)

// suite is the Debian release of the images; the host may run another one.
const suite = "bookworm"

// makeDebian: minbase without documentation and translations, then what people
// do in the next lines of a Dockerfile.
func makeDebian(ctx context.Context, m *maker) error {
	tar := filepath.Join(m.work, "base.tar")
	if err := Bootstrap(ctx, tar); err != nil {
		return err
	}
	layer, err := m.addLayer(Gzip, func(w io.Writer) error {
		f, err := os.Open(tar)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
	if err != nil {
		return err
	}
	m.layers = append(m.layers, layer)

	return m.build(ctx, []step{
		{Zstd, `apt-get install -y -qq --no-install-recommends ca-certificates attr acl libcap2-bin >/dev/null`},
		// What a Dockerfile's RUN lines do: users, modes of lower files and
		// directories, removals, replaced types, links.
		{Gzip, `
useradd -u 4242 -m app
chown -R app:app /srv
chmod 2775 /srv
chmod 1777 /opt
rm -rf /usr/share/zoneinfo/right /usr/share/zoneinfo/posix /usr/share/bug /var/log/*.log
rm /etc/issue && mkdir /etc/issue && echo inside >/etc/issue/file
rm -rf /usr/share/common-licenses/* && ln -s nowhere /usr/share/common-licenses/GPL
ln /usr/bin/setpriv /usr/local/bin/setpriv-link
mkdir -p /app/data && seq 1 200000 >/app/data/numbers
cp /usr/bin/bash /app/tool && setcap cap_net_raw+ep /app/tool
setfattr -n user.note -v "not kept by a diff" /app/data/numbers`},
		{Gzip, `
rm -rf /app/data && mkdir /app/data && echo one >/app/data/only
mv /app/tool /app/tool-renamed
touch -d 1999-12-31T23:59:59Z /app/data/only
rm /usr/local/bin/setpriv-link`},
	}, []string{"/bin/bash"})
}

// Bootstrap makes a minbase Debian without documentation and translations, with
// the packages in addition, as the tar or directory target. It needs root,
// mmdebstrap and a Debian mirror.
func Bootstrap(ctx context.Context, target string, packages ...string) error {
	args := []string{
		"--quiet", "--variant=minbase", "--mode=root",
		"--dpkgopt=path-exclude=/usr/share/doc/*",
		"--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/info/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*",
	}
	if len(packages) > 0 {
		args = append(args, "--include="+strings.Join(packages, ","))
	}
	args = append(args, suite, target)
	// A machine that has a mirror configured for this release wants it used.
	const sources = "/etc/apt/sources.list.d/debian.sources"
	if b, err := os.ReadFile(sources); err == nil && bytes.Contains(b, []byte("Suites: "+suite+" ")) {
		args = append(args, sources)
	}
	return command(ctx, "mmdebstrap", args...)
}

// makePython: an interpreter, then compiled libraries, then an application with
// byte code that goes stale when mtimes change.
func makePython(ctx context.Context, m *maker) error {
	return m.build(ctx, []step{
		{Gzip, `apt-get install -y -qq --no-install-recommends python3 >/dev/null`},
		{Zstd, `apt-get install -y -qq --no-install-recommends python3-numpy >/dev/null`},
		{Gzip, `
mkdir /srv/app
for i in $(seq 1 300); do echo "def f(): return $i" >/srv/app/mod$i.py; done
cat >/srv/app/main.py <<END
import sys, numpy
sys.path.insert(0, '/srv/app')
import mod1, mod300
print(int(numpy.arange(10).sum()) + mod1.f() + mod300.f())
END
python3 -m compileall -q /srv/app
rm -rf /usr/lib/python3/dist-packages/numpy/doc`},
	}, []string{"python3", "/srv/app/main.py"})
}

// step is one layer: the changes that a shell script makes as root in a chroot.
type step struct {
	compression Compression
	script      string
}

// build runs the steps and makes an image of m's layers.
func (m *maker) build(ctx context.Context, steps []step, cmd []string) error {
	if err := m.run(ctx, steps); err != nil {
		return err
	}
	return m.finish(m.layers, cmd, nil)
}

// run unpacks m's layers, runs the steps one on top of the other, and stores
// each one's changes as a layer. Like containerd's own diff it cuts mtimes to
// seconds and keeps no xattr but security.capability.
func (m *maker) run(ctx context.Context, steps []step) error {
	lower := filepath.Join(m.work, "root")
	if err := os.Mkdir(lower, 0o755); err != nil {
		return err
	}
	for _, layer := range m.layers {
		if err := m.unpack(ctx, layer, lower); err != nil {
			return err
		}
	}
	lowers := []string{lower}
	for i, s := range steps {
		layer, upper, err := m.runStep(ctx, i, s, lowers)
		if err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
		m.layers = append(m.layers, layer)
		lowers = append([]string{upper}, lowers...)
	}
	return nil
}

func (m *maker) unpack(ctx context.Context, layer Layer, root string) error {
	r, err := m.Open(layer)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = archive.Apply(ctx, root, r)
	return err
}

func (m *maker) runStep(ctx context.Context, i int, s step, lowers []string) (_ Layer, upper string, err error) {
	dir := func(name string) string { return filepath.Join(m.work, fmt.Sprintf("%s%d", name, i)) }
	upper = dir("upper")
	for _, d := range []string{upper, dir("ovl"), dir("merged"), dir("before")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return Layer{}, "", err
		}
	}
	lowerdir := "lowerdir=" + strings.Join(lowers, ":")
	before := mount.Mount{Type: "bind", Source: lowers[0], Options: []string{"rbind", "ro"}}
	if len(lowers) > 1 {
		before = mount.Mount{Type: "overlay", Source: "overlay", Options: []string{lowerdir}}
	}
	merged := mount.Mount{Type: "overlay", Source: "overlay",
		Options: []string{lowerdir, "upperdir=" + upper, "workdir=" + dir("ovl")}}
	for _, mnt := range []struct {
		m  mount.Mount
		at string
	}{{before, dir("before")}, {merged, dir("merged")}} {
		if err := mnt.m.Mount(mnt.at); err != nil {
			return Layer{}, "", err
		}
		defer func() {
			if uerr := mount.UnmountAll(mnt.at, 0); err == nil {
				err = uerr
			}
		}()
	}
	if err := m.chroot(ctx, dir("merged"), s.script); err != nil {
		return Layer{}, "", err
	}
	layer, err := m.addLayer(s.compression, func(w io.Writer) error {
		return archive.WriteDiff(ctx, w, dir("before"), dir("merged"))
	})
	return layer, upper, err
}

// chroot runs a script in root with the host's name resolution and package
// caches from outside, so that they leave no trace in the layer. Its mounts
// live in a mount namespace of their own and go away with it.
func (m *maker) chroot(ctx context.Context, root, script string) error {
	apt := filepath.Join(m.cache.Dir, "apt")
	for _, d := range []string{apt + "/cache/archives/partial", apt + "/lists/partial"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	const outer = `
set -eu
root=$1 apt=$2 script=$3
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mount --bind "$apt/cache" "$root/var/cache/apt"
mount --bind "$apt/lists" "$root/var/lib/apt/lists"
for f in hosts resolv.conf; do
	[ -e "$root/etc/$f" ] || { : >"$root/etc/$f"; made="${made:-} $f"; }
	mount --bind "/etc/$f" "$root/etc/$f"
done
case $script in *apt-get*) chroot "$root" apt-get update -qq ;; esac
chroot "$root" /bin/sh -euc "$script"
for f in ${made:-}; do umount "$root/etc/$f"; rm "$root/etc/$f"; done`
	return command(ctx, "env", "-i",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8",
		"http_proxy="+os.Getenv("http_proxy"), "https_proxy="+os.Getenv("https_proxy"),
		"unshare", "--mount", "--propagation", "slave", "sh", "-c", outer, "sh", root, apt, script)
}

// command runs a program and puts what it said into the error.
func command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	// What the program has started must end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		if len(out) > 4000 {
			out = out[len(out)-4000:]
		}
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}
