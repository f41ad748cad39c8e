package snapshotter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/convert"
	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// Commit reads the upper directory of an active snapshot into the pool as a
// layer and gives it a name. The name appears only when the layer is
// published; what a failure or crash leaves of the layer is freed.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	var base snapshots.Info
	for _, o := range opts {
		if err := o(&base); err != nil {
			return err
		}
	}
	if err := refuseOwnLabels(base.Labels); err != nil {
		return err
	}
	s.collecting.RLock()
	defer s.released(ctx)

	var sn *snapshot
	if err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		if sn, err = get(ctx, key); err != nil {
			return err
		}
		if _, _, _, err := storage.GetInfo(ctx, name); err == nil {
			return fmt.Errorf("snapshot %q: %w", name, errdefs.ErrAlreadyExists)
		}
		return nil
	}); err != nil {
		return fmt.Errorf("commit snapshot %q: %w", key, err)
	}
	if sn.info.Kind != snapshots.KindActive {
		return fmt.Errorf("commit snapshot %q: it is not active: %w", key, errdefs.ErrFailedPrecondition)
	}
	layerKey, isReady, err := ready(sn.info)
	var rec *daxmem.Record
	var unpin func()
	switch {
	case err != nil:
	case isReady:
		rec, unpin, err = s.pinLayer(layerKey)
	default:
		rec, unpin, err = s.importUpper(ctx, sn)
		if errors.Is(err, daxmem.ErrNotFound) {
			// The layer was there, unused, and made room for another in the
			// moment before it could be pinned.
			rec, unpin, err = s.importUpper(ctx, sn)
		}
	}
	if err != nil {
		return fmt.Errorf("commit snapshot %q: %w", key, err)
	}
	defer unpin()
	layer := snapshots.WithLabels(map[string]string{LabelLayer: hexKey(rec.Key)})
	if err := s.refer(ctx, func(ctx context.Context) error {
		_, err := storage.CommitActive(ctx, key, name, s.layerUsage(rec), append(opts, withLabelsOver(layer))...)
		return err
	}); err != nil {
		return fmt.Errorf("commit snapshot %q: %w", key, err)
	}
	s.images.unuse(ctx, sn.id)
	s.removeUpper(ctx, sn.id)
	s.keepLayer(ctx, rec.Key)
	s.publishChain(ctx, name, cmp.Or(base.Parent, sn.info.Parent), sn, rec.Key)
	return nil
}

// withLabelsOver adds labels to those that earlier options set.
func withLabelsOver(o snapshots.Opt) snapshots.Opt {
	return func(info *snapshots.Info) error {
		labels := info.Labels
		info.Labels = nil
		if err := o(info); err != nil {
			return err
		}
		for k, v := range labels {
			if _, ok := info.Labels[k]; !ok {
				info.Labels[k] = v
			}
		}
		return nil
	}
}

// importUpper publishes an upper directory as a layer, pinned.
func (s *Snapshotter) importUpper(ctx context.Context, sn *snapshot) (*daxmem.Record, func(), error) {
	var since time.Time
	if isUnpack(sn.info) {
		// The snapshot's directory was complete before anything was unpacked
		// into it, and has its time from the same clock.
		var st unix.Stat_t
		if err := unix.Stat(s.dir(sn.id), &st); err != nil {
			return nil, nil, err
		}
		since = time.Unix(st.Mtim.Sec, st.Mtim.Nsec)
	}
	if s.pool == nil {
		return nil, nil, fmt.Errorf("this kernel only reads the pool %s, and has none of its own to unpack into: %w", s.images.shared.Region().Path(), errdefs.ErrFailedPrecondition)
	}
	start := time.Now()
	rec, err := importDir(ctx, s.pool, s.upper(sn.id), since, key{})
	if err != nil {
		return nil, nil, err
	}
	log.G(ctx).WithField("key", sn.info.Name).WithField("layer", key(rec.Key)).WithField("entries", rec.Entries).
		WithField("bytes", rec.DataBytes).WithField("took", time.Since(start)).Info("layer imported")
	return s.pool.Pin(daxmem.KindLayer, rec.Key)
}

// importDir publishes an upper directory as a layer. since is from before it was
// unpacked into, zero if it was not. want is as for importLayer.
func importDir(ctx context.Context, pool *daxmem.Pool, dir string, since time.Time, want key) (*daxmem.Record, error) {
	return importLayer(ctx, pool, want, func(store convert.Store) (*mkdaxfs.Tree, error) {
		return convert.FromDir(ctx, dir, store, convert.DirOptions{Upper: true, ImplicitSince: since})
	})
}

// layerUsage is a committed snapshot's usage: space of its layer in the pool
// as if it were alone there.
func (s *Snapshotter) layerUsage(rec *daxmem.Record) snapshots.Usage {
	return snapshots.Usage{Size: rec.Size + int64(rec.DataBytes), Inodes: int64(rec.Entries) + 1}
}

// removeUpper removes the directories of a snapshot that was committed. A
// container that still runs on them keeps them until Cleanup.
func (s *Snapshotter) removeUpper(ctx context.Context, id string) {
	used, err := upperInUse(s.upper(id))
	if err != nil || used {
		log.G(ctx).WithError(err).WithField("id", id).Info("upper directory of a committed snapshot is still mounted, kept for now")
		return
	}
	if err := os.RemoveAll(s.dir(id)); err != nil {
		log.G(ctx).WithError(err).WithField("id", id).Warn("remove upper directory of a committed snapshot")
	}
}

func hexKey(k [32]byte) string { return key(k).String() }
