package lab

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

// DaemonEnv names the environment variable that replaces the daemon under test:
// "standin" for integration/cmd/standin, or the path of a binary.
const DaemonEnv = "DAXFS_TEST_DAEMON"

// Require skips the test unless it runs as root and script/setup.sh has
// installed containerd and what belongs to it, or fails it where
// DAXFS_TEST_REQUIRE asks for "root" or "containerd".
func Require(t testing.TB) {
	t.Helper()
	testutil.Root(t)
	if b, err := os.ReadFile("/proc/self/mountinfo"); err == nil && !bytes.Contains(b, []byte(" - cgroup")) {
		testutil.Missing(t, "containerd", "no cgroups are mounted, which runc needs; run script/with-cgroups.sh go test …")
	}
	for _, name := range []string{"containerd", "ctr", "containerd-shim-runc-v2", "runc"} {
		if _, err := os.Stat(tool(name)); err != nil {
			testutil.Missing(t, "containerd", "%s is not in .cache/bin; run script/setup.sh", name)
		}
	}
}

// RepoRoot is the directory that holds go.mod.
func RepoRoot() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

// CacheDir is where downloaded and made things are kept between runs.
func CacheDir() string { return filepath.Join(RepoRoot(), ".cache") }

// tool returns the path of something that script/setup.sh installed.
func tool(name string) string { return filepath.Join(CacheDir(), "bin", name) }

// Built are the binaries of this repository that labs use.
type Built struct{ Daemon, Daxfsctl, CtrDaxfs, Standin, Sweep, MkImages, TestProg string }

var build = sync.OnceValues(func() (*Built, error) {
	dir := filepath.Join(CacheDir(), "test-bin")
	b := &Built{
		Daxfsctl: filepath.Join(dir, "daxfsctl"),
		CtrDaxfs: filepath.Join(dir, "ctr-daxfs"),
		Sweep:    filepath.Join(dir, "sweep"),
		MkImages: filepath.Join(dir, "mkimages"),
		TestProg: filepath.Join(dir, "testprog"),
		Standin:  filepath.Join(dir, "standin"),
	}
	packages := []string{"./cmd/daxfsctl", "./cmd/ctr-daxfs", "./integration/cmd/sweep", "./integration/cmd/mkimages", "./integration/cmd/standin"}
	switch d := os.Getenv(DaemonEnv); d {
	case "":
		b.Daemon = filepath.Join(dir, "containerd-daxfs-grpc")
		packages = append(packages, "./cmd/containerd-daxfs-grpc")
	case "standin":
		b.Daemon = b.Standin
	default:
		b.Daemon = d
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := goBuild(os.Environ(), append([]string{"-o", dir + "/"}, packages...)...); err != nil {
		return nil, err
	}
	// Static: it runs in images that hold nothing else.
	env := append(os.Environ(), "CGO_ENABLED=0")
	return b, goBuild(env, "-trimpath", "-ldflags=-s -w", "-o", b.TestProg, "./integration/testprog")
})

// Build builds the binaries of this repository that tests run, once per test
// binary. They are built without the race detector whatever the tests have.
func Build(t testing.TB) *Built {
	t.Helper()
	b, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Standin reports whether the daemon under test is the stand-in, which has no
// pool and no image mounts.
func Standin() bool { return os.Getenv(DaemonEnv) == "standin" }

// lockDir keeps other test binaries, which "go test" runs at the same time, from
// building into the same directory. What they run from there is not written
// again: it is up to date.
func lockDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

func goBuild(env []string, args ...string) error {
	cmd := exec.Command("go", append([]string{"build"}, args...)...)
	cmd.Dir, cmd.Env = RepoRoot(), env
	if out, err := cmd.CombinedOutput(); err != nil {
		return &buildError{err, string(out)}
	}
	return nil
}

type buildError struct {
	err error
	out string
}

func (e *buildError) Error() string { return "go build: " + e.err.Error() + "\n" + e.out }
