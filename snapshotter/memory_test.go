package snapshotter_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

const memoryVar = "DAXFS_TEST_MEMORY_ROOT"

// TestImportMemory imports a layer of 1 GiB in a process of its own, whose
// resident memory must stay below 100 MB at all times.
func TestImportMemory(t *testing.T) {
	if root := os.Getenv(memoryVar); root != "" {
		importOnly(t, root)
		return
	}
	testutil.Root(t)
	if testing.Short() {
		t.Skip("writes 1 GiB")
	}
	root := t.TempDir()
	defer testutil.UnmountBelow(t, root)
	cmd := exec.Command(os.Args[0], "-test.run", "^TestImportMemory$", "-test.v")
	cmd.Env = append(os.Environ(), memoryVar+"="+root)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m := regexp.MustCompile(`peak (\d+) kB`).FindSubmatch(out)
	if m == nil {
		t.Fatalf("no figure in\n%s", out)
	}
	peak, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("resident memory peaked at %d kB", peak)
	if limit := int64(100 << 20 >> 10); peak > limit && !raceEnabled {
		t.Errorf("resident memory peaked at %d kB, want at most %d", peak, limit)
	}
}

// importOnly is the other process.
func importOnly(t *testing.T, root string) {
	r, err := open(t, root)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	mounts, err := r.Prepare(ctx, "c", "")
	if err != nil {
		t.Fatal(err)
	}
	random := rand.NewChaCha8([32]byte{2})
	left := int64(1 << 30)
	for i := 0; left > 0; i++ {
		// 20,000 files of 10 kB on average, the rest in large ones.
		size := int64(i%20) * 1024
		if i >= 20000 {
			size = min(left, 200<<20)
		}
		dir := filepath.Join(mounts[0].Source, fmt.Sprint("d", i/10))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(filepath.Join(dir, fmt.Sprint("file-with-a-name-", i)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(f, random, size); err != nil {
			t.Fatal(err)
		}
		f.Close()
		left -= size
	}
	if err := r.Commit(ctx, "base", "c"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Prepare(ctx, "container", "base"); err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			fmt.Printf("peak %s\n", strings.TrimSpace(v))
		}
	}
}
