package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"sync"
	"sync/atomic"
	"time"

	"github.com/daxfs/containerd-daxfs/integration/lab"
	"github.com/daxfs/containerd-daxfs/integration/report"
)

// startSample is one "ctr run --rm … true", from the start of ctr to its end.
type startSample struct {
	Peer   string        `json:"peer"`
	Round  int           `json:"round"`
	AtOnce int           `json:"at_once"` // as many in all
	Took   time.Duration `json:"took"`
}

// measureStart runs containers of an image that is there, one by one with the
// peers in turn, and many at once.
func (b *bench) measureStart(ctx context.Context, raw *report.Raw) error {
	chosen := peersNamed(reference, ours)
	l := b.lab(chosen[0], modes[0])
	nctx := namespace(ctx, l, "bench")
	layout, err := b.layout(b.started)
	if err != nil {
		return err
	}
	l.Registry.Add(b.started, layout.Dir)
	var serial atomic.Int64
	run := func(p peer) (time.Duration, error) {
		id := fmt.Sprintf("start%d", serial.Add(1))
		start := time.Now()
		_, err := l.Ctr(nctx, "run", "--rm", "--snapshotter", p.snapshotter,
			"--runc-root", l.Dir+"/runc", "--fifo-dir", l.Dir+"/fifo", l.Ref(b.started), id, "true")
		return time.Since(start), err
	}
	for _, p := range chosen {
		if _, err := l.Pull(nctx, b.started, p.snapshotter, lab.Transfer); err != nil {
			return err
		}
		if _, err := run(p); err != nil { // what is done once for an image
			return err
		}
	}
	settle()
	for round := range b.rounds {
		for i := range b.starts {
			for _, p := range rotate(chosen, i) {
				took, err := run(p)
				if err != nil {
					return err
				}
				if err := raw.Add(startSample{p.name, round, 1, took}); err != nil {
					return err
				}
			}
		}
		for _, p := range rotate(chosen, round) {
			took, errs := make([]time.Duration, b.atOnce), make([]error, b.atOnce)
			var all sync.WaitGroup
			for i := range took {
				all.Go(func() { took[i], errs[i] = run(p) })
			}
			all.Wait()
			if err := errors.Join(errs...); err != nil {
				return err
			}
			for _, t := range took {
				if err := raw.Add(startSample{p.name, round, b.atOnce, t}); err != nil {
					return err
				}
			}
			log.Printf("%d at once: %s, median %.2f s", b.atOnce, p.name, report.SpreadOf(seconds(took)).Median)
		}
	}
	for _, p := range chosen {
		if err := b.forget(nctx, l, p, b.started); err != nil {
			return err
		}
	}
	return nil
}

func seconds(ds []time.Duration) []float64 {
	var s []float64
	for _, d := range ds {
		s = append(s, d.Seconds())
	}
	return s
}
