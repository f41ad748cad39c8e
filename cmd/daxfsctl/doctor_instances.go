package main

import (
	"fmt"

	"github.com/daxfs/containerd-daxfs/internal/instances"
)

// instances says whether an orchestrator can tell which kernels are gone: the one
// that the configuration names, or one that is here and not named.
func (d *doctor) instances() {
	o, err := d.cfg.Share.Orchestrator()
	if err != nil {
		d.add("instances", fail, oneLine(err), "correct share.instances")
		return
	}
	configured := o != nil
	if !configured {
		o = &instances.Multikernel{Dir: d.multikernel}
	}
	list, err := o.List(d.ctx)
	running := 0
	for _, s := range list {
		if s.State == instances.Running {
			running++
		}
	}
	found := fmt.Sprintf("%v: %s, %d running", o, plural(len(list), "instance"), running)
	switch {
	case configured && err != nil:
		d.add("instances", fail, oneLine(err)+": nobody is taken for gone", "mount it, or leave share.instances out")
	case configured:
		d.add("instances", ok, found+"; seats of those that are gone are evicted", "")
	case err != nil:
		d.add("instances", ok, "no orchestrator: who is gone is said by daxfsctl lease evict", "")
	default:
		d.add("instances", ok, found+"; not asked: share.instances = \"multikernel\" evicts the seats of those that are gone", "")
	}
}
