package instances

import (
	"context"
	"fmt"

	"github.com/daxfs/containerd-daxfs/daxmem"
)

// confirmations is how many looks in a row have to say that an instance does not
// run.
const confirmations = 2

// Watcher finds the kernels at a pool that are gone. It remembers what it has
// seen, so one is used for all looks. It is not safe for concurrent use.
type Watcher struct {
	orchestrator Orchestrator
	// seen are the seats that were held while their instance was Running, with
	// the number of looks since that found it not running.
	seen map[life]int
}

// life is one use of a seat: another holder has another generation.
type life struct {
	seat       int
	generation uint64
}

// NewWatcher returns a watcher that has seen nothing.
func NewWatcher(o Orchestrator) *Watcher {
	return &Watcher{orchestrator: o, seen: make(map[life]int)}
}

// Gone is a seat whose kernel is gone, and what the orchestrator said.
type Gone struct {
	*daxmem.Seat
	Status Status
}

// Look returns the seats whose kernels are gone, to be evicted by number and
// generation. That is a seat with the name of an instance that was Running at a
// look while the seat was held in this life, and at the last two looks Stopped or
// Absent. Never judged are seats without a name, of this kernel's boot, damaged
// ones, and any when this kernel has no seat. With an error nothing is known, and
// the looks in a row begin again.
//
// seats lists the pool's seats. The orchestrator is asked after that: a kernel
// that has the seat then and does not run later will not run again, since an
// instance that starts again is another boot, with another generation.
func (w *Watcher) Look(ctx context.Context, seats func() ([]*daxmem.Seat, error)) ([]Gone, error) {
	all, err := seats()
	var list List
	if err == nil {
		list, err = w.orchestrator.List(ctx)
	}
	if err != nil {
		for l := range w.seen {
			w.seen[l] = 0
		}
		return nil, fmt.Errorf("find instances that are gone: %w", err)
	}
	seen := make(map[life]int)
	var out []Gone
	for _, s := range judged(all) {
		l := life{s.Number, s.Generation}
		looks, known := w.seen[l]
		status := list.Of(s.Instance)
		switch {
		case status.State == Running:
			seen[l] = 0
		case known && status.State == Unclear:
			seen[l] = 0
		case known:
			seen[l] = looks + 1
			if seen[l] >= confirmations {
				out = append(out, Gone{s, status})
			}
		}
	}
	w.seen = seen
	return out, nil
}

// judged are the seats of which an orchestrator can say anything.
func judged(all []*daxmem.Seat) (out []*daxmem.Seat) {
	var boot [16]byte
	for _, s := range all {
		if s.Mine {
			boot = s.Boot
		}
	}
	if boot == [16]byte{} {
		return nil
	}
	for _, s := range all {
		if s.Held && s.Damaged == "" && s.Instance != "" && s.Boot != boot {
			out = append(out, s)
		}
	}
	return out
}
