package engines

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/integration/vm"
	"github.com/daxfs/containerd-daxfs/integration/vm/engines/inside"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

const (
	mib = 1 << 20
	gib = 1 << 30

	poolSize = 256 * mib
)

// build builds programs for guests into a directory of the test's: packages of
// commands, and the tests of package inside as "inside.test".
func build(t *testing.T, packages ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, p := range packages {
		args := []string{"build", "-o", dir + "/", p}
		if p == "./inside" {
			args = []string{"test", "-c", "-o", filepath.Join(dir, "inside.test"), p}
		}
		cmd := exec.Command("go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", p, err, out)
		}
	}
	return dir
}

// What engines and regions do on each kernel.
func TestGuests(t *testing.T) {
	testutil.VM(t)
	testutil.Tool(t, "dmsetup")
	binary := filepath.Join(build(t, "./inside"), "inside.test")
	vm.EachKernel(t, func(t *testing.T, k vm.Kernel) {
		if testing.Short() && k.Name != "6.12" {
			t.Skip("one kernel is enough in short")
		}
		pool := vm.TempPool(t, poolSize)
		for _, c := range []struct {
			name, location, run string
			machine             vm.Machine
		}{
			{"pmem", "/dev/pmem0", "^TestPmem", vm.Machine{NdPmem: true}},
			{"pmem with module", "/dev/pmem0", "^TestPmemWithModule$", vm.Machine{NdPmem: true, Daxfs: true}},
			{"phys", "", "^TestPhys|^TestDmaBuf", vm.Machine{Daxfs: true}},
		} {
			t.Run(c.name, func(t *testing.T) {
				c.machine.Kernel, c.machine.Pool, c.machine.Memory = k, pool, 2*gib
				g := vm.Start(t, c.machine)
				location := c.location
				if location == "" {
					location = fmt.Sprintf("phys:%#x,size=%d", g.PoolAddress(), int64(poolSize))
				}
				skip := "^$"
				if !c.machine.Daxfs {
					skip = "WithModule"
				}
				runInside(t, g, location, binary, "-test.v", "-test.run", c.run, "-test.skip", skip)
			})
		}
	})
}

// runInside runs tests of package inside in a guest.
func runInside(t *testing.T, g *vm.Guest, location, binary string, args ...string) {
	t.Helper()
	var out bytes.Buffer
	res, err := g.Run(t.Context(), vm.Command{
		Args: append([]string{binary}, args...),
		Env:  []string{inside.LocationVar + "=" + location, fmt.Sprintf("%s=%#x", inside.AddressVar, g.PoolAddress())},
		// As it comes: a guest that dies has said something before.
		Stdout: &out, Stderr: &out,
	})
	if err != nil || res.Code != 0 {
		t.Errorf("%v\n%s", err, out.Bytes())
		return
	}
	passed := regexp.MustCompile(`(?m)^--- PASS: \S+`).FindAll(out.Bytes(), -1)
	if len(passed) == 0 {
		t.Errorf("no test ran:\n%s", out.Bytes())
	}
	t.Logf("%d tests passed in guest %s:\n%s", len(passed), g.Kernel.Name, bytes.Join(passed, []byte("\n")))
	for _, s := range regexp.MustCompile(`(?m)^--- SKIP: [^\n]*\n[^\n]*`).FindAll(out.Bytes(), -1) {
		t.Logf("%s", s)
	}
}

// Regions that are neither a file nor pmem nor a bare range.
func TestRegions(t *testing.T) {
	testutil.VM(t)
	binary := filepath.Join(build(t, "./inside"), "inside.test")
	vm.EachKernel(t, func(t *testing.T, k vm.Kernel) {
		if testing.Short() && k.Name != "6.12" {
			t.Skip("one kernel is enough in short")
		}
		pool := vm.TempPool(t, poolSize)
		t.Run("names, descriptors, ivshmem", func(t *testing.T) {
			g := vm.Start(t, vm.Machine{
				Kernel: k, Ivshmem: pool, Daxfs: true, Memory: 2 * gib,
				Append: fmt.Sprintf("memmap=%d$%#x", inside.ReservedSize, inside.ReservedAt),
			})
			runInside(t, g, fmt.Sprintf("phys:Reserved,size=%d", inside.ReservedSize), binary, "-test.v", "-test.run", "^TestNamedPhys$")
			if k.Name == "6.1" {
				t.Log("Debian's 6.1 has neither udmabuf nor DMA heaps")
			} else {
				runInside(t, g, "memfd:size=64MiB", binary, "-test.v", "-test.run", "^TestMemfd")
				runInside(t, g, "dma-heap:system,size=64MiB", binary, "-test.v", "-test.run", "^TestDmaHeap")
			}
			address, err := g.IvshmemDevice(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			device := "ivshmem:" + address
			runInside(t, g, device, binary, "-test.v", "-test.run", "^TestIvshmem", "-test.skip", "Gone")
			runInside(t, g, device, binary, "-test.v", "-test.run", "^TestIvshmemGone")
			// The machine has the memory that the guest wrote.
			f, err := os.Open(pool)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			b := make([]byte, len(inside.Marker))
			if _, err := f.ReadAt(b, poolSize-inside.MarkerFromEnd); err != nil || string(b) != inside.Marker {
				t.Errorf("the machine sees %q, %v", b, err)
			}
		})
		t.Run("devdax", func(t *testing.T) {
			g := vm.Start(t, vm.Machine{Kernel: k, Pool: pool, Daxfs: true, Memory: 2 * gib, Modules: []string{"dax_pmem", "device_dax"}})
			for _, align := range []int{2 * mib, 4096} {
				device, err := g.MakeDevdax(t.Context(), 0, align)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%s in units of %d", device, align)
				runInside(t, g, device, binary, "-test.v", "-test.run", "^TestDevdax")
				sys := "/sys/bus/dax/devices/" + filepath.Base(device)
				location := "phys:" + strings.TrimSpace(g.MustRun(t, "cat", sys+"/resource")) + ",size=" + strings.TrimSpace(g.MustRun(t, "cat", sys+"/size"))
				g.MustRun(t, "sh", "-e", "-c", "cd /sys/bus/nd/drivers/dax_pmem; for d in dax*; do echo $d > unbind; echo > /sys/bus/nd/devices/$d/namespace; done")
				runInside(t, g, location, binary, "-test.v", "-test.run", "^TestAfterDevdax$")
			}
		})
	})
}
