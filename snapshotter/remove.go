package snapshotter

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/daxfs/containerd-daxfs/daxmem"
)

// Remove forgets a snapshot, and frees what nothing else needs: directories,
// the image's mount, layers and images in the pool.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	frees, err := s.drop(ctx, key)
	if err != nil {
		return fmt.Errorf("remove snapshot %q: %w", key, err)
	}
	// A container's end frees nothing in the pool: its image stays as long as
	// the committed snapshot of its chain.
	if frees || s.pending.Load() {
		s.tryCollect(ctx)
	}
	return nil
}

// drop is Remove without collecting, and reports whether there may be something to
// collect. The metadata goes first: what fails after it is logged and found again
// by Cleanup.
func (s *Snapshotter) drop(ctx context.Context, key string) (frees bool, _ error) {
	var id string
	if err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, info, _, err := storage.GetInfo(ctx, key)
		if err != nil {
			return err
		}
		_, isReady, err := ready(info)
		frees = info.Kind == snapshots.KindCommitted || isReady || err != nil
		id, _, err = storage.Remove(ctx, key)
		return err
	}); err != nil {
		return false, err
	}
	s.images.unuse(ctx, id)
	if err := os.RemoveAll(s.dir(id)); err != nil {
		log.G(ctx).WithError(err).WithField("key", key).Warn("remove snapshot directory")
	}
	return frees, nil
}

// cleanupWait is how long Cleanup waits for imports that run. What it could
// not free then is freed when they end.
const cleanupWait = 10 * time.Second

// Cleanup frees what failed or interrupted calls left.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	deadline := time.Now().Add(cleanupWait)
	for !s.collecting.TryLock() {
		if time.Now().After(deadline) {
			s.pending.Store(true)
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	err := s.cleanDirectories(ctx)
	if err == nil {
		err = s.collect(ctx)
	}
	s.collecting.Unlock()
	if s.pending.Load() {
		s.tryCollect(ctx) // a removal found this in its way
	}
	return err
}

// released ends a call that held collecting shared, and makes up for a
// collection that had to wait for it.
func (s *Snapshotter) released(ctx context.Context) {
	s.collecting.RUnlock()
	if s.pending.Load() || s.crowded() {
		s.tryCollect(context.WithoutCancel(ctx))
	}
}

// tryCollect collects now, or leaves it to the calls that are in the way. One of
// them may be a collection that has looked already: it looks again.
func (s *Snapshotter) tryCollect(ctx context.Context) {
	s.pending.Store(true)
	for s.pending.Load() && s.collecting.TryLock() {
		err := s.collect(ctx)
		s.collecting.Unlock()
		if err != nil {
			log.G(ctx).WithError(err).Warn("free unused layers and images")
			return
		}
	}
}

// collect frees the layers and images that no snapshot needs, apart from those
// that are kept. collecting is held exclusively.
func (s *Snapshotter) collect(ctx context.Context) error {
	s.pending.Store(false)
	s.referring.Lock()
	defer s.referring.Unlock()
	live, err := Live(ctx, s.ms)
	if err != nil {
		return err
	}
	crowded := s.crowded()
	s.images.sweep(ctx, func(img *image) bool {
		return !crowded && live.Has(daxmem.KindImage, img.key) && s.images.lingers(img)
	})
	s.keepLayers(ctx, live)
	if s.pool == nil {
		return nil
	}
	wanted := live.Has
	if s.keep.on() {
		kept, err := s.keepUnused(ctx, live)
		if err != nil {
			return fmt.Errorf("collect: %w", err)
		}
		wanted = func(kind daxmem.Kind, k [32]byte) bool { return live.Has(kind, k) || kept.Has(kind, k) }
	}
	report, err := s.pool.Collect(ctx, wanted, false)
	if err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	s.spill.wake()
	for _, r := range report.Removed {
		log.G(ctx).WithField("record", r.Name()).WithField("bytes", r.Size).Info("freed")
	}
	return nil
}

// LiveSet are the records that snapshots refer to.
type LiveSet struct{ layers, images, chains map[[32]byte]struct{} }

// Has reports whether a record is one of them.
func (l *LiveSet) Has(kind daxmem.Kind, k [32]byte) bool {
	set := l.layers
	switch kind {
	case daxmem.KindImage:
		set = l.images
	case daxmem.KindChain:
		set = l.chains
	}
	_, ok := set[k]
	return ok
}

// Live returns the layers and images that the snapshots of a metadata store
// refer to. A damaged snapshot refers to nothing: its layer's key is lost.
func Live(ctx context.Context, ms *storage.MetaStore) (*LiveSet, error) {
	live := &LiveSet{make(map[[32]byte]struct{}), make(map[[32]byte]struct{}), make(map[[32]byte]struct{})}
	err := ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		err := storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			if k, ok, _ := ready(info); ok {
				live.layers[k] = struct{}{}
			}
			if info.Kind != snapshots.KindCommitted {
				return nil
			}
			k, err := layerOf(info)
			if err != nil {
				log.G(ctx).WithError(err).Warn("snapshot refers to no layer")
				return nil
			}
			live.layers[k] = struct{}{}
			for _, id := range chainNames(info) {
				live.chains[id] = struct{}{}
			}
			if c, err := chainOf(ctx, info.Name); err == nil {
				live.images[c.key()] = struct{}{}
			}
			return nil
		})
		if errdefs.IsNotFound(err) {
			return nil // no snapshot yet
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("walk snapshots: %w", err)
	}
	return live, nil
}

// cleanDirectories removes directories without a snapshot, and upper
// directories of committed ones that nothing uses. collecting is held
// exclusively.
func (s *Snapshotter) cleanDirectories(ctx context.Context) error {
	var ids map[string]string
	committed := make(map[string]bool)
	if err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		if ids, err = storage.IDMap(ctx); err != nil {
			return err
		}
		for id, name := range ids {
			if _, info, _, err := storage.GetInfo(ctx, name); err == nil && info.Kind == snapshots.KindCommitted {
				committed[id] = true
			}
		}
		return nil
	}); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("clean snapshot directories: %w", err)
	}
	entries, err := os.ReadDir(filepath.Join(s.root, "snapshots"))
	if err != nil {
		return fmt.Errorf("clean snapshot directories: %w", err)
	}
	for _, e := range entries {
		if committed[e.Name()] {
			s.removeUpper(ctx, e.Name())
			continue
		}
		if _, ok := ids[e.Name()]; ok {
			continue
		}
		log.G(ctx).WithField("directory", e.Name()).Info("remove directory without a snapshot")
		if err := os.RemoveAll(s.dir(e.Name())); err != nil {
			log.G(ctx).WithError(err).WithField("directory", e.Name()).Warn("remove directory without a snapshot")
		}
	}
	return nil
}
