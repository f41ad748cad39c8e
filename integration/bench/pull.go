package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"slices"
	"time"

	"github.com/daxfs/containerd-daxfs/integration/lab"
	"github.com/daxfs/containerd-daxfs/integration/report"
)

// Where the registry's files are when a pull begins. containerd and the pool
// have nothing of the image in either case.
const (
	cold = "cold" // on the disk
	warm = "warm" // in the page cache
)

// pullSample is one pull, or why there is none.
type pullSample struct {
	cell
	Round int `json:"round"`
	sizes
	Pull    time.Duration `json:"pull"`    // until the image is unpacked
	Mounted time.Duration `json:"mounted"` // until a container's root file system is mounted too
	Run     time.Duration `json:"run"`     // then, a container that runs true, from its creation to its removal
	usage                 // until mounted
	Missing string        `json:"missing,omitempty"` // why the peer was not measured
}

// cell is what a number of a table is about.
type cell struct {
	Image string `json:"image,omitempty"`
	Mode  string `json:"mode,omitempty"`
	Cache string `json:"cache,omitempty"`
	Peer  string `json:"peer"`
}

// measurePull pulls each image with each peer in turn, in each mode, from a cold
// and a warm registry.
func (b *bench) measurePull(ctx context.Context, raw *report.Raw) error {
	for name, why := range b.missing {
		log.Printf("%s is not measured: %s", name, why)
		if err := raw.Add(pullSample{cell: cell{Peer: name}, Missing: why}); err != nil {
			return err
		}
	}
	chosen := slices.DeleteFunc(peersNamed(b.peers...), func(p peer) bool { return b.missing[p.snapshotter] != "" })
	for _, image := range b.images {
		sizes, err := b.sizes(image)
		if err != nil {
			return err
		}
		for round := range b.rounds {
			for _, cache := range []string{cold, warm} {
				if cache == cold && !slices.Contains(b.cold, image) {
					continue
				}
				for _, m := range modes {
					for _, p := range rotate(chosen, round) {
						if m.unpacks > 1 && !p.parallel || p.only != nil && (cache == cold || !slices.Contains(p.only, image)) {
							continue
						}
						s := pullSample{cell: cell{image, m.name, cache, p.name}, Round: round, sizes: sizes}
						if err := b.pull(ctx, p, m, &s); err != nil {
							return fmt.Errorf("pull %s with %s: %w", image, p.name, err)
						}
						log.Printf("%s, %s, %s: %s in %.2f s", image, m.name, cache, p.name, s.Mounted.Seconds())
						if err := raw.Add(s); err != nil {
							return err
						}
					}
				}
			}
		}
	}
	return nil
}

// rotate has another one begin in each round.
func rotate[T any](all []T, round int) []T {
	if len(all) == 0 {
		return nil
	}
	n := round % len(all)
	return append(slices.Clone(all[n:]), all[:n]...)
}

// pull measures one pull and removes the image again.
func (b *bench) pull(ctx context.Context, p peer, m mode, s *pullSample) error {
	l := b.lab(p, m)
	layout, err := b.layout(s.Image)
	if err != nil {
		return err
	}
	l.Registry.Add(s.Image, layout.Dir)
	if err := cache(layout, s.Cache == warm); err != nil {
		return err
	}
	settle()
	nctx := namespace(ctx, l, "bench")

	leased, release, err := l.Client().WithLease(nctx)
	if err != nil {
		return err
	}
	meter, err := begin(l.Daemons())
	if err != nil {
		return err
	}
	start := time.Now()
	img, err := l.Pull(nctx, s.Image, p.snapshotter, lab.Transfer)
	s.Pull = time.Since(start)
	if err != nil {
		return err
	}
	remove, err := prepareContainer(leased, l, img, p.snapshotter)
	s.Mounted = time.Since(start)
	if err != nil {
		return err
	}
	if s.usage, err = meter.end(); err != nil {
		return err
	}
	if err := errors.Join(remove(), release(nctx)); err != nil {
		return err
	}
	start = time.Now()
	if out, err := l.Run(nctx, img, p.snapshotter, "true"); err != nil {
		return fmt.Errorf("run true: %w: %s", err, out)
	}
	s.Run = time.Since(start)
	return b.forget(nctx, l, p, s.Image)
}
