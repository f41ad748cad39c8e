package daxmem

import (
	"github.com/containerd/log"
)

// Outcome is how a kernel came by a chain of layers that it was to run.
type Outcome int

const (
	ChainFound    Outcome = iota // the pool had it
	ChainBrought                 // the pool's owner was asked, and brought it
	ChainUnpacked                // this kernel unpacks it for itself
	ChainMissed                  // it is an error, as configured

	outcomes = iota
)

// Counts are numbers of chains by Outcome, since the seat was claimed.
type Counts [outcomes]uint64

// Count adds one to a number in this kernel's seat, where everybody can see it.
func (r *Reader) Count(o Outcome) {
	at := r.sup.seat(r.seat.number) + seatCounts + int64(o)*8
	r.counting.Lock()
	defer r.counting.Unlock()
	n, err := r.seat.w.Load(at)
	if err == nil {
		err = r.seat.w.Store(at, n+1)
	}
	if err != nil {
		log.L.WithError(err).WithField("region", r.region.Path()).Warn("count chain")
	}
}

// readCounts reads those of a seat.
func readCounts(w Window, g *geometry, n int) (c Counts, err error) {
	for o := range c {
		if c[o], err = w.Load(g.seat(n) + seatCounts + int64(o)*8); err != nil {
			return c, windowError("read counts of a seat", err)
		}
	}
	return c, nil
}
