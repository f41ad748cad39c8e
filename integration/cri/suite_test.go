package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	ctrdns "github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/daxfs/containerd-daxfs/integration/lab"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

// suite is the name of its binary in .cache/bin.
const suite = "cri-integration.test"

// fullEnv asks for all of the suite's tests, and for overlayfs too: minutes.
const fullEnv = "DAXFS_TEST_CRI"

func full() bool { return os.Getenv(fullEnv) == "full" }

// The suite passes with our snapshotter and differ as the default of CRI and of
// containerd's client. Afterwards no other snapshotter has anything, the pool is
// sound, and it is empty when the images are removed.
func TestSuite(t *testing.T) {
	require(t)
	private(t, func(t *testing.T) {
		l := newLab(t, lab.Daxfs)
		run(t, l, lab.Daxfs)
		if out, err := l.Daxfsctl("pool", "check", "--data"); err != nil {
			t.Errorf("after the suite: %v\n%s", err, out)
		}
		for _, ns := range namespaces {
			ctx := ctrdns.WithNamespace(t.Context(), ns)
			if s := l.Snapshots(ctx, lab.Overlayfs); len(s) != 0 {
				t.Errorf("namespace %s has snapshots of overlayfs: %q", ns, s)
			}
		}
		removeAll(t, l)
	})
}

// The same tests pass on overlayfs: what is asked of us is asked of a machine
// that can give it.
func TestSuiteOnOverlayfs(t *testing.T) {
	if !full() {
		t.Skip("make cri runs it")
	}
	require(t)
	private(t, func(t *testing.T) { run(t, newLab(t, lab.Overlayfs), lab.Overlayfs) })
}

func require(t *testing.T) {
	t.Helper()
	lab.Require(t)
	for _, name := range []string{suite, "containerd-shim-runc-fp-v1", "cni-bridge-fp", "bridge", "host-local", "loopback"} {
		if _, err := os.Stat(filepath.Join(lab.CacheDir(), "bin", name)); err != nil {
			testutil.Missing(t, "containerd", "%s is not in .cache/bin; run script/setup.sh", name)
		}
	}
	for _, name := range []string{"busybox", "ip", "lsof", "pidof", "pkill", "strace", "unshare"} {
		testutil.Tool(t, name)
	}
}

// run runs the suite's tests in a lab, again those that had bad luck, and checks
// what came of them.
func run(t *testing.T, l *lab.Lab, snapshotter string) {
	t.Helper()
	asked := plan(t, list(t, l, snapshotter), full())
	r := runSuite(t, l, snapshotter, asked)
	for range 4 {
		var again []string
		for name := range raced {
			if r[name] == "fail" {
				again = append(again, name)
			}
		}
		if len(again) == 0 {
			break
		}
		t.Logf("once more: %q", again)
		maps.DeleteFunc(r, func(name, _ string) bool {
			top, _, _ := strings.Cut(name, "/")
			return slices.Contains(again, top)
		})
		maps.Copy(r, runSuite(t, l, snapshotter, again))
	}
	for _, p := range r.problems(asked) {
		t.Error(p)
	}
	t.Logf("%d tests and subtests passed, %d skipped: %q", len(r.names("pass")), len(r.names("skip")), r.names("skip"))
}

// removeAll removes all images and waits until the pool is empty.
func removeAll(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, ns := range namespaces {
		ctx := ctrdns.WithNamespace(t.Context(), ns)
		store := l.Client().ImageService()
		list, err := store.List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, img := range list {
			if err := store.Delete(ctx, img.Name, images.SynchronousDelete()); err != nil {
				t.Errorf("namespace %s: remove image: %v", ns, err)
			}
		}
		if s := l.Snapshots(ctx, lab.Daxfs); len(s) != 0 {
			t.Errorf("namespace %s, without images, has snapshots %q", ns, s)
		}
	}
	// The daemon frees what snapshots leave in the background.
	var pool struct {
		Records []struct{ Kind, Key string }
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		out, err := l.Daxfsctl("pool", "ls", "--json")
		if err == nil {
			err = json.Unmarshal([]byte(out), &pool)
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(pool.Records) == 0 {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the pool, without images, has %v", pool.Records)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// results are what became of the suite's tests and subtests, by name: "pass",
// "fail" or "skip".
type results map[string]string

// names returns those of r with a result, sorted.
func (r results) names(result string) []string {
	var names []string
	for name, res := range r {
		if res == result {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// runSuite runs the named tests of the suite, and logs what the failed ones
// say. containerd is started again when the suite has ended it.
func runSuite(t *testing.T, l *lab.Lab, snapshotter string, tests []string) results {
	t.Helper()
	cmd := suiteCommand(t, l, snapshotter, "-test.v=test2json", "-test.run=^("+strings.Join(tests, "|")+")$")
	// What it writes gets the form of "go test -json".
	cmd.Args = append([]string{"go", "tool", "test2json"}, cmd.Args...)
	path, err := exec.LookPath("go")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Path = path
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	got := results{}
	read := make(chan error)
	go func() { read <- got.read(t, out) }()
	for reading := true; reading; {
		select {
		case err := <-read:
			if err != nil {
				t.Errorf("read the suite's results: %v", err)
			}
			reading = false
		case <-l.ContainerdEnded():
			// The suite looks once a second whether it is gone, before it waits
			// for the next one.
			time.Sleep(2500 * time.Millisecond)
			l.StartContainerd()
		}
	}
	// Its status says no more than the results.
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Error(err)
	}
	return got
}

// read takes the events of test2json until they end. What is no event goes to
// the log.
func (r results) read(t *testing.T, events io.Reader) error {
	said := map[string]*strings.Builder{}
	for d := json.NewDecoder(events); ; {
		var e struct{ Action, Test, Output string }
		if err := d.Decode(&e); err == io.EOF {
			return nil
		} else if err != nil {
			rest, _ := io.ReadAll(io.MultiReader(d.Buffered(), events))
			return fmt.Errorf("%w: %s", err, rest)
		}
		switch e.Action {
		case "output":
			if said[e.Test] == nil {
				said[e.Test] = &strings.Builder{}
			}
			said[e.Test].WriteString(e.Output)
		case "pass", "fail", "skip":
			// The empty name is the suite's, which fails if a test does, but
			// also if it cannot reach containerd.
			if e.Action == "fail" && (e.Test != "" || len(r) == 0) && said[e.Test] != nil {
				t.Logf("%s", said[e.Test])
			}
			if e.Test != "" {
				r[e.Test] = e.Action
				if testing.Verbose() && !strings.Contains(e.Test, "/") {
					t.Log(e.Action, e.Test)
				}
			}
		}
	}
}

// suiteCommand runs the suite's binary with more arguments.
func suiteCommand(t *testing.T, l *lab.Lab, snapshotter string, args ...string) *exec.Cmd {
	t.Helper()
	bin := filepath.Join(lab.CacheDir(), "bin")
	cmd := exec.Command(filepath.Join(bin, suite), append([]string{
		"--cri-endpoint=unix://" + l.Endpoint(),
		"--image-list=" + imageList(t, l),
		"--containerd-bin=containerd",
		"--build-dir=" + bin,
	}, args...)...)
	cmd.Env = append(os.Environ(),
		"PATH="+docker(t)+":"+bin+":"+os.Getenv("PATH"),
		"CONTAINERD_ADDRESS="+l.Endpoint(), "CONTAINERD_SNAPSHOTTER="+snapshotter)
	cmd.Dir = t.TempDir()
	return cmd
}

// list returns the suite's tests.
func list(t *testing.T, l *lab.Lab, snapshotter string) []string {
	t.Helper()
	out, err := suiteCommand(t, l, snapshotter, "-test.list=^Test").Output()
	if err != nil {
		t.Fatalf("list the suite's tests: %v\n%s", err, out)
	}
	return slices.DeleteFunc(strings.Fields(string(out)), func(s string) bool { return !strings.HasPrefix(s, "Test") })
}
