package cri

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// privateEnv is set in the process that has namespaces of its own.
const privateEnv = "DAXFS_TEST_CRI_PRIVATE"

// private runs the test f in mount, network and process namespaces of its own:
// it starts this test binary once more for the test t alone. All that f leaves
// behind ends with them, but cgroups, which are removed.
func private(t *testing.T, f func(t *testing.T)) {
	if dir := os.Getenv(privateEnv); dir != "" {
		furnish(t, dir)
		f(t)
		return
	}
	// t.TempDir's name is too long for the unix sockets below it.
	dir, err := os.MkdirTemp("", "dxcri")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o711); err != nil { // user namespaces go through it
		t.Fatal(err)
	}
	args := []string{
		"--mount", "--propagation", "slave", "--net", "--pid", "--fork", "--mount-proc", "--kill-child",
		// Process 1 adopts what daemons leave, and must wait for it. Descriptors
		// that whoever started us has left open would count as leaks of shims.
		"bash", "-c", `
for fd in /proc/$$/fd/*; do
	fd=${fd##*/}
	[ "$fd" -le 2 ] || eval "exec $fd>&-"
done
"$@"
exit $?`, "init",
		os.Args[0], "-test.v", "-test.run=^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$",
	}
	if deadline, ok := t.Deadline(); ok {
		args = append(args, fmt.Sprint("-test.timeout=", time.Until(deadline.Add(-10*time.Second))))
	}
	var out bytes.Buffer
	cmd := exec.Command("unshare", args...)
	cmd.Env = append(os.Environ(), privateEnv+"="+dir, "TMPDIR="+dir)
	cmd.Stdout, cmd.Stderr = &out, &out
	if testing.Verbose() {
		cmd.Stdout = io.MultiWriter(&out, os.Stderr)
		cmd.Stderr = cmd.Stdout
	}
	before := cgroups()
	t.Cleanup(func() {
		for _, dir := range cgroups() {
			if !slices.Contains(before, dir) {
				removeCgroup(dir)
			}
		}
	})
	// Without this process nobody would end it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		t.Errorf("in namespaces of its own: %v", err)
		if !testing.Verbose() {
			t.Logf("%s", out.Bytes())
		}
	} else if !bytes.Contains(out.Bytes(), []byte("--- PASS: "+t.Name()+" ")) {
		t.Errorf("it did not run in namespaces of its own:\n%s", out.Bytes())
	}
}

// furnish makes the new namespaces fit to live in: loopback, and places of their
// own where containerd, CNI plugins and the suite write to fixed paths.
func furnish(t *testing.T, dir string) {
	t.Helper()
	for _, d := range []string{"lib", "lib/containerd-test", "lib/cni", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o711); err != nil {
			t.Fatal(err)
		}
	}
	const script = `
set -eu
ip link set lo up
# Pods get a copy of resolv.conf, which may be a link into /run.
resolv=$(readlink -f /etc/resolv.conf || true)
cat /etc/resolv.conf >"$1/resolv.conf" || true
mount -t tmpfs tmpfs /run
case $resolv in
/run/*) mkdir -p "${resolv%/*}"; cp "$1/resolv.conf" "$resolv" ;;
esac
mount --bind "$1/lib" /var/lib`
	if out, err := exec.Command("bash", "-c", script, "furnish", dir).CombinedOutput(); err != nil {
		t.Fatalf("furnish namespaces: %v\n%s", err, out)
	}
}

// cgroups returns the cgroups that containers of the suite's namespaces are in.
func cgroups() (dirs []string) {
	for _, ns := range namespaces {
		for _, pattern := range []string{"/sys/fs/cgroup/" + ns, "/sys/fs/cgroup/*/" + ns} {
			found, _ := filepath.Glob(pattern)
			dirs = append(dirs, found...)
		}
	}
	return dirs
}

// removeCgroup removes a cgroup and those in it, if no process is in them.
func removeCgroup(dir string) {
	below, _ := filepath.Glob(dir + "/*/cgroup.procs")
	for _, procs := range below {
		removeCgroup(filepath.Dir(procs))
	}
	_ = os.Remove(dir) // the kernel refuses what is in use
}
