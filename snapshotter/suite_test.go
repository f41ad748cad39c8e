package snapshotter_test

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/log"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/engine"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

const renameVar = "DAXFS_TEST_SUITE_RENAME"

// TestSuiteRename runs the suite's Rename case, which fails for every
// snapshotter on plain overlay mounts, containerd's overlayfs included:
// overlayfs without redirect_dir does not rename directories of the lower
// layer, and layers cannot express a redirect.
func TestSuiteRename(t *testing.T) {
	testutil.Root(t)
	cmd := exec.Command(os.Args[0], "-test.run", "^TestSuite$/^Rename$")
	cmd.Env = append(os.Environ(), renameVar+"=1")
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Error("passes now: take it back into TestSuite")
	}
	if !strings.Contains(string(out), "invalid cross-device link") {
		t.Errorf("fails with something else than EXDEV:\n%s", out)
	}
}

func TestMain(m *testing.M) {
	flag.Parse()
	if !testing.Verbose() {
		_ = log.SetLevel("warn") // keeps benchmark results in one line
	}
	if os.Geteuid() == 0 {
		// containerd's suite skips itself without its own flag.
		_ = flag.Set("test.root", "true")
	}
	if os.Getenv(renameVar) == "" {
		_ = flag.Set("test.skip", "^TestSuite(SelfContained)?$/^Rename$") // TestSuiteRename runs it
	}
	os.Exit(m.Run())
}

// rig is a snapshotter with all it stands on.
type rig struct {
	*snapshotter.Snapshotter
	root string
	pool *daxmem.Pool
}

func open(t testing.TB, root string) (*rig, error) {
	t.Helper()
	return openWith(t, root, daxmem.Options{})
}

// openWith is open with options for a pool that is not there yet.
func openWith(t testing.TB, root string, opts daxmem.Options) (*rig, error) {
	t.Helper()
	ctx := context.Background()
	opts.MaxSize = cmp.Or(opts.MaxSize, 4<<30)
	pool, err := daxmem.OpenOrCreate(ctx, filepath.Join(root, "pool"), opts)
	if err != nil {
		return nil, err
	}
	e, _, err := engine.Select(ctx, nil, snapshotter.EnginePool(pool))
	if err != nil {
		return nil, errors.Join(err, pool.Close())
	}
	sn, err := snapshotter.New(ctx, snapshotter.Options{Root: root, Pool: pool, Engine: e})
	if err != nil {
		return nil, errors.Join(err, pool.Close())
	}
	return &rig{sn, root, pool}, nil
}

func (r *rig) Close() error { return errors.Join(r.Snapshotter.Close(), r.pool.Close()) }

// start opens a rig in a new directory and removes all of it at the end.
func start(t testing.TB) *rig {
	t.Helper()
	return startWith(t, daxmem.Options{})
}

func startWith(t testing.TB, opts daxmem.Options) *rig {
	t.Helper()
	testutil.Root(t)
	r, err := openWith(t, t.TempDir(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil && !errors.Is(err, daxmem.ErrClosed) {
			t.Error(err)
		}
		testutil.UnmountBelow(t, r.root)
	})
	return r
}

// TestSuite runs containerd's own suite, but for its Rename case.
func TestSuite(t *testing.T) { testSuite(t, daxmem.Options{}) }

// TestSuiteSelfContained runs it with images that share nothing.
func TestSuiteSelfContained(t *testing.T) { testSuite(t, daxmem.Options{SelfContained: true}) }

func testSuite(t *testing.T, opts daxmem.Options) {
	testutil.Root(t)
	testsuite.SnapshotterSuite(t, "daxfs", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		r, err := openWith(t, root, opts)
		if err != nil {
			return nil, nil, err
		}
		return r.Snapshotter, func() error {
			err := r.Close()
			testutil.UnmountBelow(t, root)
			return err
		}, nil
	})
}
