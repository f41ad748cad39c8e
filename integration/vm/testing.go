package vm

import (
	"context"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

// EachKernel runs the test on every kernel, as subtests named after them.
func EachKernel(t *testing.T, test func(t *testing.T, k Kernel)) {
	t.Helper()
	testutil.VM(t)
	kernels, err := Kernels(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range kernels {
		t.Run(k.Name, func(t *testing.T) { test(t, k) })
	}
}

// Start boots a guest that lives until the test ends. The test fails if the
// guest's kernel reports trouble by then; if the test failed, the end of the
// kernel's log is shown.
func Start(t testing.TB, m Machine) *Guest {
	t.Helper()
	testutil.VM(t)
	g, err := Boot(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !g.over() {
			if err := g.Close(); err != nil {
				t.Error(err)
			}
		}
		if lines := g.Trouble(); len(lines) > 0 {
			t.Errorf("kernel %s reported:\n%s", g.Kernel.Release, strings.Join(lines, "\n"))
		}
		if t.Failed() {
			t.Logf("end of the log of kernel %s:\n%s", g.Kernel.Release, tail(g.Console()))
		}
	})
	return g
}

// MustRun runs a command that has to end with status 0 and returns what it
// wrote to standard output.
func (g *Guest) MustRun(t testing.TB, args ...string) string {
	t.Helper()
	// A test's clean-up runs commands too, when the test's context has ended.
	r, err := g.Run(context.WithoutCancel(t.Context()), Command{Args: args})
	if err != nil {
		t.Fatal(err)
	}
	if r.Code != 0 {
		t.Fatalf("%q in guest %s: exit status %d\n%s%s", args, g.Kernel.Name, r.Code, r.Stdout, r.Stderr)
	}
	return string(r.Stdout)
}

// TempPool is NewPool for the length of a test.
func TempPool(t testing.TB, size int64) (path string) {
	t.Helper()
	path, closePool, err := NewPool(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closePool() })
	return path
}
