package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sync/errgroup"
)

// How long rehydrate waits for a source that cannot be asked: containerd may
// start after this daemon. Each time twice as long as before.
const (
	rehydrateWait    = time.Second
	rehydrateMaxWait = 10 * time.Second
)

// rehydrators is how many layers are brought at once: decompressing one takes
// one processor, and containers that start want some too.
var rehydrators = min(4, runtime.GOMAXPROCS(0))

// rehydrate brings layers back that snapshots need and the pool has lost, as
// memory is lost in a reboot: those that containers stand on first. Who needs
// one before its turn gets it at once (bring). It ends when all are there or
// known to be lost, or with ctx.
func (s *Snapshotter) rehydrate(ctx context.Context) {
	// A crash may have come between a layer and its name.
	if _, err := s.publishChains(ctx, func(chainRecord) bool { return true }); err != nil {
		log.G(ctx).WithError(err).Error("publish chains of layers in the pool")
	}
	for wait := rehydrateWait; ; wait = min(2*wait, rehydrateMaxWait) {
		err := s.rehydrateLost(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		// Once is enough for the log; the last of a series says what came of it.
		l := log.G(ctx).WithError(err).WithField("again_in", wait)
		if wait == rehydrateWait {
			l.Warn("lost layers cannot be brought back yet")
		} else {
			l.Debug("lost layers cannot be brought back yet")
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// rehydrateLost brings all lost layers once. Unavailable: some were not to be
// had at the moment. Those that are nowhere are reported.
func (s *Snapshotter) rehydrateLost(ctx context.Context) error {
	start := time.Now()
	layers, err := s.wantedLayers(ctx)
	if err != nil {
		return err
	}
	lost := slices.DeleteFunc(layers, func(k key) bool { _, err := s.pool.Layer(k); return err == nil })
	if len(lost) == 0 {
		return nil
	}
	var brought, gone atomic.Int64
	var later atomic.Pointer[error]
	var g errgroup.Group
	g.SetLimit(rehydrators)
	for _, k := range lost {
		g.Go(func() error {
			// What has to wait waits with what comes after it, so that those that
			// containers need are first the next time too.
			if ctx.Err() != nil || later.Load() != nil && !s.spill.has(k) {
				return nil
			}
			err := s.bring(k)
			switch {
			case err == nil:
				brought.Add(1)
			case ctx.Err() != nil:
			case errdefs.IsUnavailable(err):
				later.Store(&err)
			default:
				gone.Add(1)
				log.G(ctx).WithError(err).WithField("layer", k).Error("bring back lost layer")
			}
			return nil
		})
	}
	_ = g.Wait() // each has its own say
	if brought.Load() > 0 {
		// Damaged records go whose place is taken.
		s.tryCollect(ctx)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	l := log.G(ctx).WithField("layers", len(lost)).WithField("brought", brought.Load()).WithField("lost", gone.Load()).WithField("took", time.Since(start))
	if err := later.Load(); err != nil {
		l.Debug("lost layers brought back in part")
		return *err
	}
	l.Info("lost layers brought back")
	return nil
}

// bring makes sure that the pool has a layer. Callers that want the same one get
// it together; what one has begun is not ended by its giving up, only by Close.
// ErrLayerLost: no source has it.
func (s *Snapshotter) bring(k key) error {
	if _, err := s.pool.Layer(k); err == nil {
		return nil
	}
	_, err, _ := s.bringing.Do(string(k[:]), func() (any, error) { return nil, s.bringNow(s.running, k) })
	return err
}

func (s *Snapshotter) bringNow(ctx context.Context, k key) error {
	if _, err := s.pool.Layer(k); err == nil {
		return nil // somebody was done with it in this moment
	}
	err := fmt.Errorf("layer %s: %w", k, ErrLayerLost)
	for _, from := range s.sources {
		start := time.Now()
		if err = from.bring(ctx, k); err == nil {
			log.G(ctx).WithField("layer", k).WithField("from", from).WithField("took", time.Since(start)).Info("layer brought into the pool")
			break
		}
		if !errors.Is(err, ErrLayerLost) {
			break
		}
	}
	if err != nil {
		return err
	}
	s.spill.wake()
	s.collecting.RLock()
	defer s.released(ctx)
	s.keepLayer(ctx, k)
	n, err := s.publishChains(ctx, func(c chainRecord) bool { return c.layer == k })
	if err != nil {
		log.G(ctx).WithError(err).WithField("layer", k).Error("publish chains of a layer")
	}
	if n == 0 {
		s.pending.Store(true) // the last snapshot may have gone meanwhile
	}
	return nil
}

// bringChain brings back what the pool has lost of a chain, with its record.
// NotFound: no snapshot is that chain.
func (s *Snapshotter) bringChain(ctx context.Context, id [32]byte) error {
	chains, err := s.committedChains(ctx)
	if err != nil {
		return err
	}
	byID := make(map[[32]byte]chainRecord)
	for _, c := range chains {
		byID[c.id] = c
	}
	needed := make(map[[32]byte]bool)
	for at := id; at != [32]byte{} && !needed[at]; at = byID[at].below {
		c, ok := byID[at]
		if !ok {
			return fmt.Errorf("chain sha256:%x: %w", at, errdefs.ErrNotFound)
		}
		if err := s.bring(c.layer); err != nil {
			return err
		}
		needed[at] = true
	}
	// Who has brought a layer may not have come to this yet.
	if _, err := s.publishChains(ctx, func(c chainRecord) bool { return needed[c.id] }); err != nil {
		return err
	}
	_, err = s.pool.Chain(id)
	return err
}

// chainRecord is what a chain record says, and the diffID of its layer if that is
// known and another name, or zero.
type chainRecord struct{ id, layer, below, diffID [32]byte }

// publishChains lets other kernels find the layers of committed snapshots that
// are in the pool. It returns how many snapshots were meant.
func (s *Snapshotter) publishChains(ctx context.Context, which func(chainRecord) bool) (n int, _ error) {
	chains, err := s.committedChains(ctx)
	if err != nil {
		return 0, err
	}
	for _, c := range chains {
		if !which(c) {
			continue
		}
		n++
		names := []chainRecord{c}
		if c.diffID != [32]byte{} {
			names = append(names, chainRecord{id: c.diffID, layer: c.layer})
		}
		for _, c := range names {
			if _, err := s.pool.Chain(c.id); err == nil {
				continue
			}
			if _, err := s.pool.PublishChain(ctx, c.id, c.layer, c.below); err != nil && !errdefs.IsNotFound(err) {
				log.G(ctx).WithError(err).WithField("chain", key(c.id)).Warn("publish chain")
			}
		}
	}
	return n, nil
}

// committedChains lists the chains that committed snapshots are, once for each
// snapshot.
func (s *Snapshotter) committedChains(ctx context.Context) (chains []chainRecord, _ error) {
	err := s.walk(ctx, func(_ context.Context, info snapshots.Info) {
		if info.Kind != snapshots.KindCommitted {
			return
		}
		k, err := layerOf(info)
		if err != nil {
			return // recover has reported it
		}
		id, ok := chainID(info.Name)
		below, okBelow := chainID(info.Parent)
		if ok && (info.Parent == "" || okBelow) {
			alone, _ := diffID(info.Labels, id, below)
			chains = append(chains, chainRecord{id, k, below, alone})
		}
	})
	return chains, err
}

// wantedLayers lists the layers of all snapshots, those that active ones and
// views stand on first.
func (s *Snapshotter) wantedLayers(ctx context.Context) (layers chain, _ error) {
	var first, rest chain
	err := s.walk(ctx, func(ctx context.Context, info snapshots.Info) {
		if k, ok, _ := ready(info); ok {
			first = append(first, k)
		}
		if info.Kind != snapshots.KindCommitted {
			if c, err := chainOf(ctx, info.Parent); err == nil {
				first = append(first, c...)
			}
		} else if k, err := layerOf(info); err == nil {
			rest = append(rest, k)
		}
	})
	seen := make(map[key]bool)
	for _, k := range append(first, rest...) {
		if !seen[k] {
			seen[k] = true
			layers = append(layers, k)
		}
	}
	return layers, err
}

// walk calls fn for every snapshot, in a transaction.
func (s *Snapshotter) walk(ctx context.Context, fn func(ctx context.Context, info snapshots.Info)) error {
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			fn(ctx, info)
			return nil
		})
	})
	if err != nil && !errdefs.IsNotFound(err) { // before the first snapshot
		return fmt.Errorf("walk snapshots: %w", err)
	}
	return nil
}
