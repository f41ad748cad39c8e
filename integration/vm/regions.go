package vm

import (
	"context"
	"fmt"
	"strings"
)

// MakeDevdax makes a DAX device of the guest's n-th pmem region, as "ndctl
// create-namespace -m devdax -M mem -a ALIGN" does, by what the kernel has in
// sysfs, and returns its path. The guest needs the modules dax_pmem and
// device_dax.
func (g *Guest) MakeDevdax(ctx context.Context, n, align int) (device string, err error) {
	return g.script(ctx, fmt.Sprintf(`cd /sys/bus/nd/devices
		dax=$(cat region%d/dax_seed)
		echo %d > $dax/align
		cat /proc/sys/kernel/random/uuid > $dax/uuid
		echo ram > $dax/mode
		echo namespace%d.0 > $dax/namespace
		echo $dax > /sys/bus/nd/drivers/dax_pmem/bind
		for i in $(seq 100); do
			for device in $dax/dax[0-9]*; do [ -e /dev/${device##*/} ] && echo /dev/${device##*/} && exit 0; done
			sleep 0.1
		done
		exit 1`, n, align, n))
}

// IvshmemDevice returns the PCI address of the guest's ivshmem device.
func (g *Guest) IvshmemDevice(ctx context.Context) (address string, err error) {
	return g.script(ctx, "cd /sys/bus/pci/devices && basename $(dirname $(grep -lx 0x1110 */device))")
}

// script runs a shell script that has to succeed and returns the line that it
// wrote.
func (g *Guest) script(ctx context.Context, text string) (string, error) {
	r, err := g.Run(ctx, Command{Args: []string{"sh", "-e", "-c", text}})
	if err != nil {
		return "", err
	}
	if r.Code != 0 {
		return "", fmt.Errorf("%s in guest %s: exit status %d\n%s%s", text, g.Kernel.Name, r.Code, r.Stdout, r.Stderr)
	}
	return strings.TrimSpace(string(r.Stdout)), nil
}
