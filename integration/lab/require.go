package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// RequireEnv names the environment variable that lists, with commas, what must
// be there: a test that needs something in the list fails where it would
// otherwise be skipped.
const RequireEnv = "DAXFS_TEST_REQUIRE"

// DaemonEnv names the environment variable that replaces the daemon under test:
// "standin" for integration/cmd/standin, or the path of a binary.
const DaemonEnv = "DAXFS_TEST_DAEMON"

// Require skips the test unless this machine has what is named, or fails it if
// that is listed in DAXFS_TEST_REQUIRE. Known names:
//
//	root        uid 0
//	containerd  what script/setup.sh puts into .cache/bin, and root
func Require(t testing.TB, needs ...string) {
	t.Helper()
	for _, need := range needs {
		why := missing(need)
		if why == "" {
			continue
		}
		if required(os.Getenv(RequireEnv), need) {
			t.Fatalf("%s=%s asks for %s: %s", RequireEnv, os.Getenv(RequireEnv), need, why)
		}
		t.Skipf("needs %s: %s", need, why)
	}
}

func required(list, need string) bool {
	for _, r := range strings.Split(list, ",") {
		if strings.TrimSpace(r) == need {
			return true
		}
	}
	return false
}

// missing returns why a need is not met, or "".
func missing(need string) string {
	switch need {
	case "root":
		if os.Geteuid() != 0 {
			return "not root"
		}
	case "containerd":
		if os.Geteuid() != 0 {
			return "not root"
		}
		for _, name := range []string{"containerd", "ctr", "containerd-shim-runc-v2", "runc"} {
			if _, err := os.Stat(filepath.Join(CacheDir(), "bin", name)); err != nil {
				return name + " is not in .cache/bin; run script/setup.sh"
			}
		}
	default:
		return "no such requirement is known"
	}
	return ""
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
type Built struct{ Daemon, Standin, Sweep, MkImages, TestProg string }

var build = sync.OnceValues(func() (*Built, error) {
	dir := filepath.Join(CacheDir(), "test-bin")
	b := &Built{
		Sweep:    filepath.Join(dir, "sweep"),
		MkImages: filepath.Join(dir, "mkimages"),
		TestProg: filepath.Join(dir, "testprog"),
		Standin:  filepath.Join(dir, "standin"),
	}
	packages := []string{"./integration/cmd/sweep", "./integration/cmd/mkimages", "./integration/cmd/standin"}
	switch d := os.Getenv(DaemonEnv); d {
	case "":
		b.Daemon = filepath.Join(dir, "containerd-daxfs-grpc")
		packages = append(packages, "./cmd/containerd-daxfs-grpc")
	case "standin":
		b.Daemon = b.Standin
	default:
		b.Daemon = d
	}
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
