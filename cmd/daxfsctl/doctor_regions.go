package main

import (
	"fmt"
	"strings"

	"github.com/daxfs/containerd-daxfs/daxmem"
)

// regions lists the memory of this machine in which a pool could be, each with
// the line of the configuration that would use it.
func (d *doctor) regions() {
	found, err := daxmem.Detect(d.root)
	for _, f := range found {
		name := "region_" + f.Kind
		if f.Taken != "" {
			d.add(name, ok, fmt.Sprintf("%s cannot be used as it is: %s", f.Location, strings.ReplaceAll(f.Taken, "\n", "; ")), "")
			continue
		}
		d.add(name, ok, fmt.Sprintf("%s: pool.path = %q", f.Detail, f.Location), "")
	}
	if err != nil {
		d.add("regions", warn, "memory of other kinds is not known: "+oneLine(err), "run as root")
		return
	}
	if len(found) == 0 {
		d.add("regions", ok, "no memory that other kernels could share, and none to make it of: a pool in a file", "")
	}
}
