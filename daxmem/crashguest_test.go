package daxmem

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/daxfs/containerd-daxfs/integration/vm"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

// inGuestEnv tells a story's process that its whole machine is to die.
const inGuestEnv = "DAXMEM_CRASH_GUEST"

// shortInGuest are the steps at which a guest dies with -short: one of each of
// publish, remove, claim, pin and takeover.
var shortInGuest = []crashStep{
	{stepPayloadWritten, "publish"}, {stepSpacePunched, "remove"}, {stepSeatClaimed, "read"}, {stepPinSet, "read"}, {stepCatalogFenced, "take over"},
}

// TestCrashTableInGuest is TestCrashTable with a guest that dies in place of a
// process: it has the pool's memory as a physical range, and ends at the step as
// by a reset. This process, another kernel at the same memory, judges what is
// left. A step that is in several rows is taken once.
func TestCrashTableInGuest(t *testing.T) {
	testutil.VM(t)
	kernel, err := vm.FindKernel(t.Context(), "6.12")
	if err != nil {
		t.Fatal(err)
	}
	steps := shortInGuest
	if !testing.Short() {
		steps = nil
		for _, row := range crashTable {
			for _, c := range row.steps {
				// Memory does not grow.
				if c.step != stepRegionGrown && !slices.Contains(steps, c) {
					steps = append(steps, c)
				}
			}
		}
	}
	start := time.Now()
	for _, c := range steps {
		t.Run(c.story+"/"+c.step, func(t *testing.T) {
			crashAt(t, c, func(t *testing.T, story, at, path string) { guestDies(t, kernel, story, at, path) })
		})
	}
	t.Logf("%d guests died in %v", len(steps), time.Since(start).Round(time.Second))
}

// guestDies runs a story in a guest until the guest ends at a step.
func guestDies(t *testing.T, k vm.Kernel, story, at, path string) {
	t.Helper()
	g := vm.Start(t, vm.Machine{Kernel: k, Pool: path, Memory: 512 * mib})
	ctx, cancel := context.WithTimeout(bg, 3*time.Minute)
	defer cancel()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	location := fmt.Sprintf("%s:%#x,size=%d", KindPhys, g.PoolAddress(), info.Size())
	var out bytes.Buffer
	res, err := g.Run(ctx, vm.Command{
		Args: []string{os.Args[0], "-test.run=^TestCrashChild$", "-test.timeout=2m"},
		Env:  []string{crashEnv + "=" + strings.Join([]string{story, at, location}, "|"), inGuestEnv + "=yes"},
		// As it comes: nothing comes after the end.
		Stdout: &out, Stderr: &out,
	})
	if err == nil || ctx.Err() != nil {
		t.Fatalf("the guest did not end at %q: %v, %+v\n%s", at, err, res, out.Bytes())
	}
}
