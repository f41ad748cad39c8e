package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// Prepare makes a writable snapshot on a committed parent, or on nothing.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindActive, key, parent, opts)
}

// View makes a read-only snapshot of a committed parent, or of nothing.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindView, key, parent, opts)
}

// Mounts returns the mounts of an active or view snapshot. It mounts the image
// if it is not mounted, as after a reboot.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	sn, err := s.read(ctx, key)
	if err != nil {
		return nil, err
	}
	if sn.info.Kind == snapshots.KindCommitted {
		return nil, fmt.Errorf("snapshot %q is committed, it has no mounts: %w", key, errdefs.ErrFailedPrecondition)
	}
	// It may have to bring back a lost layer, and make the image, with the image
	// locked, and a collection waits for that lock.
	s.collecting.RLock()
	defer s.released(ctx)
	return s.mounts(ctx, sn)
}

func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) (_ []mount.Mount, retErr error) {
	var base snapshots.Info
	for _, o := range opts {
		if err := o(&base); err != nil {
			return nil, err
		}
	}
	if err := refuseOwnLabels(base.Labels); err != nil {
		return nil, err
	}
	// Until the snapshot is in the metadata nothing says that its image, or its
	// layer, is in use.
	s.collecting.RLock()
	defer s.released(ctx)
	if kind == snapshots.KindActive && base.Labels[labelTarget] != "" {
		committed, mounts, err := s.adoptChain(ctx, key, parent, opts)
		if err != nil {
			return nil, err
		}
		if committed {
			return nil, fmt.Errorf("snapshot %q: the layer is in the pool: %w", base.Labels[labelTarget], errdefs.ErrAlreadyExists)
		}
		if mounts != nil {
			return mounts, nil
		}
	}

	tmp, err := s.stage(kind)
	if err != nil {
		return nil, err
	}
	defer func() {
		if tmp != "" {
			os.RemoveAll(tmp)
		}
	}()
	var sn *snapshot
	if err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		made, err := storage.CreateSnapshot(ctx, kind, key, parent, opts...)
		if err != nil {
			return fmt.Errorf("create snapshot %q: %w", key, err)
		}
		if sn, err = get(ctx, key); err != nil {
			return err
		}
		if err := os.Rename(tmp, s.dir(made.ID)); err != nil {
			return fmt.Errorf("create snapshot %q: %w", key, err)
		}
		tmp = s.dir(made.ID) // removed if the transaction fails
		return nil
	}); err != nil {
		return nil, err
	}
	tmp = ""
	mounts, err := s.mounts(ctx, sn)
	if err == nil && kind == snapshots.KindActive {
		err = s.fillUpper(sn)
	}
	if err != nil {
		ctx := context.WithoutCancel(ctx)
		if _, rerr := s.drop(ctx, key); rerr != nil {
			log.G(ctx).WithError(rerr).WithField("key", key).Warn("remove snapshot that could not be mounted")
		}
		return nil, err
	}
	return mounts, nil
}

// is reports whether the snapshot called key still has the given id.
func (s *Snapshotter) is(ctx context.Context, key, id string) (same bool) {
	_ = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		now, _, _, err := storage.GetInfo(ctx, key)
		same = err == nil && now == id
		return err
	})
	return same
}

// stage makes the directories of a snapshot under a name that no snapshot has.
func (s *Snapshotter) stage(kind snapshots.Kind) (string, error) {
	return stageIn(filepath.Join(s.root, "snapshots"), kind)
}

func stageIn(parent string, kind snapshots.Kind) (string, error) {
	tmp, err := os.MkdirTemp(parent, "new-")
	if err != nil {
		return "", fmt.Errorf("make snapshot directory: %w", err)
	}
	err = os.Mkdir(filepath.Join(tmp, "fs"), 0o755)
	if err == nil && kind == snapshots.KindActive {
		err = os.Mkdir(filepath.Join(tmp, "work"), 0o711)
	}
	if err == nil {
		err = sameTime(tmp, filepath.Join(tmp, "fs"))
	}
	if err != nil {
		return "", fmt.Errorf("make snapshot directory: %w", errors.Join(err, os.RemoveAll(tmp)))
	}
	return tmp, nil
}

// sameTime gives a snapshot's directory the time of the one that is unpacked
// into: Commit takes it for the time before which nothing was unpacked, and the
// clock may have moved on between the two.
func sameTime(dir, of string) error {
	fi, err := os.Stat(of)
	if err != nil {
		return err
	}
	return os.Chtimes(dir, time.Time{}, fi.ModTime())
}

// unpackMounts are for unpacking a layer into a snapshot's directory, without
// lowerdir: containerd's differ writes into upperdir only, and for an overlay it
// writes whiteouts as overlayfs wants them. A bind mount would lose them, and a
// lower directory would cost an image for every layer.
func unpackMounts(dir string, options []string) []mount.Mount {
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: append(options,
		"workdir="+filepath.Join(dir, "work"), "upperdir="+filepath.Join(dir, "fs"))}}
}

// mounts makes sure that the image is mounted and says how to mount the
// snapshot.
func (s *Snapshotter) mounts(ctx context.Context, sn *snapshot) ([]mount.Mount, error) {
	active := sn.info.Kind == snapshots.KindActive
	mapping := idmapOptions(sn.info.Labels)
	if _, is, err := staged(sn.info); is || err != nil {
		return stagedMounts(s.upper(sn.id)), err
	}
	if active && isUnpack(sn.info) {
		return unpackMounts(s.dir(sn.id), mapping), nil
	}
	if len(sn.chain) == 0 {
		mode := "rw"
		if !active {
			mode = "ro"
		}
		return []mount.Mount{{Type: "bind", Source: s.upper(sn.id), Options: append(mapping, mode, "rbind")}}, nil
	}
	lower, err := s.images.use(ctx, sn.id, sn.chain, sn.info.Parent)
	if err != nil {
		return nil, fmt.Errorf("mount image of snapshot %q: %w", sn.info.Name, err)
	}
	// A Remove between reading the metadata and here has missed this user.
	if !s.is(ctx, sn.info.Name, sn.id) {
		s.images.unuse(ctx, sn.id)
		return nil, fmt.Errorf("snapshot %q was removed meanwhile: %w", sn.info.Name, errdefs.ErrNotFound)
	}
	if !active {
		return []mount.Mount{{Type: "bind", Source: lower, Options: append(mapping, "ro", "rbind")}}, nil
	}
	options := append(mapping, "workdir="+s.work(sn.id), "upperdir="+s.upper(sn.id), "lowerdir="+lower)
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: append(options, overlayOptions()...)}}, nil
}
