package vm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// source says where a kernel comes from.
type source struct {
	suite  string // Debian suite of the kernel
	base   string // Debian release of the compiler
	sparse bool   // the release's sparse understands the kernel's headers
}

// sources are in the order of their kernels' age. trixie's sparse 0.6.4 stops
// at __typeof_unqual__ in the headers of Linux 7.
var sources = []source{
	{suite: "bookworm", base: "bookworm", sparse: true},
	{suite: "bookworm-backports", base: "bookworm", sparse: true},
	{suite: "trixie-backports", base: "trixie"},
}

// packages is what a chroot holds besides the kernel: what kbuild and DKMS run.
var packages = []string{
	"base-files", "dash", "coreutils", "findutils", "diffutils", "grep", "sed", "mawk", "xz-utils",
	"kmod", "make", "gcc", "libc6-dev", "sparse", "dkms", "bash",
}

// finish is run in a fresh chroot, in which no package's own script has run.
// Modules are stored plain, so that they go into an initrd as they are; those
// of hardware that no guest has are most of their volume.
const finish = `set -e
[ -e /bin/sh ] || ln -s dash /bin/sh
[ -e /usr/bin/awk ] || ln -s mawk /usr/bin/awk
cd /lib/modules/*
rm -rf kernel/sound kernel/drivers/gpu kernel/drivers/media kernel/drivers/staging \
	kernel/drivers/infiniband kernel/drivers/net/ethernet kernel/drivers/net/wireless
find . -name '*.ko.xz' -print0 | xargs -0 -r -n 100 xz -d
depmod "${PWD##*/}"
`

// fetch returns the chroot, which it makes unless it is there. Several
// processes may call it at once.
func (s source) fetch(ctx context.Context) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	// A changed recipe makes a new chroot.
	recipe := sha256.Sum256([]byte(fmt.Sprint(s, packages, finish, vmlinux)))
	root := filepath.Join(cache, fmt.Sprintf("%s.%x", s.suite, recipe[:4]))
	unlock, err := lock(ctx, filepath.Join(cache, ".lock-"+s.suite))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(root); err == nil {
		return root, nil
	}

	if os.Geteuid() != 0 {
		return "", fmt.Errorf("needs root, runs as uid %d", os.Geteuid())
	}
	// Whoever held the lock before is gone, and what is half made is nobody's.
	// Chroots of other recipes stay: guests may be using them.
	tmp := root + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	if err := s.bootstrap(ctx, tmp); err != nil {
		return "", err
	}
	cmd := chroot(ctx, tmp, "/bin/dash", "-c", finish)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("finish %s: %w: %s", tmp, err, out)
	}
	if err := extractKernel(ctx, tmp); err != nil {
		return "", err
	}
	return root, os.Rename(tmp, root)
}

// bootstrap unpacks the packages into dir without running any of their scripts.
func (s source) bootstrap(ctx context.Context, dir string) error {
	mirror, err := DebianMirror(ctx)
	if err != nil {
		return err
	}
	lines := fmt.Sprintf("deb %s %s main\n", mirror, s.base)
	if s.suite != s.base {
		lines += fmt.Sprintf("deb %s %s main\n", mirror, s.suite)
	}
	include := append([]string{
		"linux-image-amd64/" + s.suite, "linux-headers-amd64/" + s.suite,
	}, packages...)
	cmd := isolated(ctx, "/proc", "mmdebstrap", "--quiet", "--mode=root", "--variant=extract",
		"--architectures=amd64", "--include="+strings.Join(include, ","), s.base, dir, "-")
	cmd.Stdin = strings.NewReader(lines)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mmdebstrap %s: %w: %s", s.base, err, out)
	}
	return nil
}

// DebianMirror is the mirror that this machine's apt uses. It is known by its
// index, which a machine may not have yet.
func DebianMirror(ctx context.Context) (string, error) {
	for _, update := range []bool{false, true} {
		if update {
			if out, err := exec.CommandContext(ctx, "apt-get", "update", "-qq").CombinedOutput(); err != nil {
				return "", fmt.Errorf("apt-get update: %w: %s", err, out)
			}
		}
		out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI)",
			"Created-By: Packages", "Origin: Debian", "Label: Debian").Output()
		if err != nil {
			return "", fmt.Errorf("ask apt for its mirror of Debian: %w", err)
		}
		if line, _, _ := bytes.Cut(out, []byte("\n")); len(line) > 0 {
			return strings.TrimSuffix(string(line), "/"), nil
		}
	}
	return "", errors.New("apt knows no mirror of Debian")
}

// chroot runs a command in a chroot of our making, with a /proc, which objtool
// wants.
func chroot(ctx context.Context, root string, args ...string) *exec.Cmd {
	cmd := isolated(ctx, filepath.Join(root, "proc"), append([]string{"chroot", root}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	return cmd
}

// isolated runs a command in namespaces of processes and mounts of its own: none
// of either is left when it ends, when ctx does, or when this process does.
func isolated(ctx context.Context, proc string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "unshare", append([]string{
		"--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child", "--mount-proc=" + proc}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// cacheDir is .cache/vm of the repository that the working directory is in.
func cacheDir() (string, error) {
	root, err := repository()
	return filepath.Join(root, ".cache/vm"), err
}

// repository is the nearest directory with a go.mod, from the working directory
// up: tests run in their package's directory.
func repository() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod in %s or above", wd)
		}
	}
}

// lock takes an exclusive lock that ends with the process at the latest.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}
