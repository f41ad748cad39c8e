package snapshotter

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/daxfs/containerd-daxfs/convert"
	"github.com/daxfs/containerd-daxfs/daxmem"
)

// Unpack is an active snapshot that takes one layer.
type Unpack struct {
	s       *Snapshotter
	id, key string
}

// Unpack returns the snapshot that mounts belong to. NotImplemented: they are not
// those of a snapshot that was prepared to be unpacked into here.
func (s *Snapshotter) Unpack(ctx context.Context, mounts []mount.Mount) (*Unpack, error) {
	id, ok := s.unpackID(mounts)
	if !ok || s.pool == nil {
		return nil, fmt.Errorf("mounts are not those of a layer to be unpacked: %w", errdefs.ErrNotImplemented)
	}
	u := &Unpack{s: s, id: id}
	return u, s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		all, err := storage.IDMap(ctx)
		if err != nil {
			return fmt.Errorf("find snapshot %s: %w", id, err)
		}
		if u.key, ok = all[id]; !ok {
			return fmt.Errorf("snapshot with directory %s: %w", id, errdefs.ErrNotFound)
		}
		_, err = u.empty(ctx)
		return err
	})
}

// unpackID finds the directory in the mounts that Prepare gives to an unpack.
func (s *Snapshotter) unpackID(mounts []mount.Mount) (id string, ok bool) {
	if len(mounts) != 1 || mounts[0].Type != "overlay" {
		return "", false
	}
	for _, o := range mounts[0].Options {
		if strings.HasPrefix(o, "lowerdir=") {
			return "", false // a container's
		}
		if dir, is := strings.CutPrefix(o, "upperdir="); is {
			id = filepath.Base(filepath.Dir(dir))
			ok = dir == s.upper(id)
		}
	}
	return id, ok
}

// empty returns the snapshot if nothing was unpacked into it yet. It needs a
// transaction.
func (u *Unpack) empty(ctx context.Context) (info snapshots.Info, err error) {
	id, info, _, err := storage.GetInfo(ctx, u.key)
	switch {
	case err != nil:
	case id != u.id:
		err = fmt.Errorf("snapshot %q was made anew: %w", u.key, errdefs.ErrNotFound)
	case info.Kind != snapshots.KindActive || !isUnpack(info):
		err = fmt.Errorf("snapshot %q takes no layer: %w", u.key, errdefs.ErrFailedPrecondition)
	case info.Labels[labelApplied] != "":
		err = fmt.Errorf("snapshot %q has its layer: %w", u.key, errdefs.ErrFailedPrecondition)
	}
	return info, err
}

// Apply reads one layer, an uncompressed tar stream, to its end; file contents go
// into the pool as they come. The snapshot can be committed then. After an error
// nothing is left of the layer.
//
// The stream's digest is the caller's business, who removes the snapshot if it is
// not the diffID.
func (u *Unpack) Apply(ctx context.Context, r io.Reader) error {
	s, start := u.s, time.Now()
	s.collecting.RLock()
	defer s.released(ctx)
	imp, err := s.pool.NewImport(ctx)
	if err != nil {
		return err
	}
	defer imp.Abort() // nothing is left to abort after a publication
	store := &importStore{imp: imp}
	tree, warnings, err := convert.FromTar(ctx, r, store, convert.TarOptions{Verified: true, Lenient: true})
	if err != nil {
		return fmt.Errorf("unpack into snapshot %q: %w", u.key, err)
	}
	for _, w := range warnings {
		log.G(ctx).WithField("key", u.key).WithField("path", w.Path).WithField("reason", w.Reason).Warn("left out of a layer")
	}
	rec, err := publishLayer(ctx, s.pool, imp, tree, store.bytes, key{})
	if err != nil {
		return fmt.Errorf("unpack into snapshot %q: %w", u.key, err)
	}
	if err := u.applied(ctx, rec); err != nil {
		return fmt.Errorf("unpack into snapshot %q: %w", u.key, err)
	}
	log.G(ctx).WithField("key", u.key).WithField("layer", key(rec.Key)).WithField("entries", rec.Entries).
		WithField("bytes", rec.DataBytes).WithField("took", time.Since(start)).Info("layer unpacked into the pool")
	return nil
}

// info returns the snapshot if nothing was unpacked into it yet.
func (u *Unpack) info(ctx context.Context) (info snapshots.Info, err error) {
	err = u.s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		info, err = u.empty(ctx)
		return err
	})
	return info, err
}

// applied makes a layer that was published the one that the snapshot will be
// committed as.
func (u *Unpack) applied(ctx context.Context, rec *daxmem.Record) error {
	_, unpin, err := u.s.pool.Pin(daxmem.KindLayer, rec.Key)
	if err != nil {
		return err
	}
	defer unpin()
	if err := u.s.refer(ctx, func(ctx context.Context) error {
		info, err := u.empty(ctx)
		if err != nil {
			return err
		}
		if info.Labels == nil {
			info.Labels = make(map[string]string)
		}
		info.Labels[labelApplied] = hexKey(rec.Key)
		_, err = storage.UpdateInfo(ctx, info, "labels."+labelApplied)
		return err
	}); err != nil {
		return err
	}
	u.s.keepLayer(ctx, rec.Key)
	return nil
}
