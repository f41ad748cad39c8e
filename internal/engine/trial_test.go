package engine

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// device is a region at an address; nothing is read from it.
type device struct {
	Region
	kind, path string
}

func (d device) Kind() string    { return d.kind }
func (d device) Path() string    { return d.path }
func (d device) Address() uint64 { return 0x140000000 }
func (d device) Size() int64     { return 1 << 30 }

// What the memory's driver does not let go of can be had in another way, which
// the remedy says as the configuration has it.
func TestRemedyForBusy(t *testing.T) {
	busy := fmt.Errorf("mount: %w", &os.PathError{Op: "mount", Path: "/x", Err: unix.EBUSY})
	for _, c := range []struct {
		r    device
		want []string
	}{
		{device{nil, "devdax", "/dev/dax1.0"}, []string{"-a 4096", `pool.path = "phys:0x140000000,size=1073741824"`, "echo dax1.0 > /sys/bus/dax/drivers/device_dax/unbind"}},
		{device{nil, "pmem", "/dev/pmem0"}, []string{`pool.path = "phys:0x140000000,size=1073741824"`, "nd_pmem/unbind"}},
		{device{nil, "phys", "phys:0x140000000,size=1GiB"}, []string{"unbind the driver"}},
	} {
		got := remedyFor(busy, c.r)
		for _, w := range c.want {
			if !strings.Contains(got, w) {
				t.Errorf("%s: %q does not say %q", c.r.kind, got, w)
			}
		}
	}
}
