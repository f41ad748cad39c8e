package process

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/daxfs/containerd-daxfs/integration/vm"
	"github.com/daxfs/containerd-daxfs/integration/vm/process/inside"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

// buildInside builds the tests that run inside.
func buildInside(t *testing.T, dir string) string {
	t.Helper()
	binary := filepath.Join(dir, "inside.test")
	cmd := exec.Command("go", "test", "-c", "-o", binary, "./inside")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build package inside: %v\n%s", err, out)
	}
	return binary
}

// tools are what the tests use outside and inside.
func tools(t *testing.T) {
	t.Helper()
	for _, name := range []string{"gcc", "gdb", "getfacl", "mke2fs"} {
		testutil.Tool(t, name)
	}
}

// TestErofs runs the tests on this machine and the EROFS view.
func TestErofs(t *testing.T) {
	testutil.Root(t)
	tools(t)
	dir := t.TempDir()
	pool, err := os.OpenFile(vm.TempPool(t, poolSize), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	c := makeImages(t, pool, dir)
	c.FS, c.Kernel = "erofs", "host"
	config := filepath.Join(dir, "config.json")
	if err := c.Write(config); err != nil {
		t.Fatal(err)
	}
	runInside(t, hostRunner{buildInside(t, dir), config})
}

// hostRunner runs the tests on this machine.
type hostRunner struct{ binary, config string }

func (r hostRunner) run(_ *testing.T, args ...string) ([]byte, error) {
	cmd := exec.Command(r.binary, args...)
	cmd.Env = append(os.Environ(), inside.ConfigEnv+"="+r.config)
	return cmd.CombinedOutput()
}

func (hostRunner) trouble(string) []string { return nil } // its log is not ours
