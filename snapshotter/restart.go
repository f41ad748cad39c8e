package snapshotter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/moby/sys/mountinfo"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/engine"
)

// recover puts the directory in order at start. Nothing that a snapshot needs
// is touched; images that are not mounted are mounted when asked for.
func (s *Snapshotter) recover(ctx context.Context) error {
	users, err := s.activeChains(ctx)
	if err != nil {
		return err
	}
	if err := s.images.adopt(ctx, users); err != nil {
		return err
	}
	if err := s.cleanDirectories(ctx); err != nil {
		return err
	}
	if err := os.RemoveAll(s.unpackDir()); err != nil {
		return fmt.Errorf("remove layers that were being unpacked again: %w", err)
	}
	live, err := Live(ctx, s.ms)
	if err != nil {
		return err
	}
	s.keepLayers(ctx, live)
	// By now all that is needed has been pinned again.
	for _, st := range s.images.stores() {
		if n, err := st.ReleaseLeft(); err != nil {
			return err
		} else if n > 0 {
			log.G(ctx).WithField("pool", st.Region().Path()).WithField("pins", n).Info("pins of an earlier daemon released")
		}
	}
	return s.collect(ctx)
}

// activeChains returns, for each chain that active or view snapshots stand
// on, their ids. Damaged snapshots are reported and left out.
func (s *Snapshotter) activeChains(ctx context.Context) (map[key][]string, error) {
	users := make(map[key][]string)
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			if info.Kind == snapshots.KindCommitted {
				k, err := layerOf(info)
				if err == nil {
					err = s.images.hasLayer(k)
				}
				if errors.Is(err, ErrLayerLost) && s.content {
					return nil // rehydrate reports it if it cannot be applied again
				}
				if err != nil {
					log.G(ctx).WithError(err).WithField("key", info.Name).Error("snapshot is damaged and put aside")
				}
				return nil
			}
			if info.Parent == "" || info.Kind == snapshots.KindActive && isUnpack(info) {
				return nil
			}
			sn, err := get(ctx, info.Name)
			if err != nil {
				log.G(ctx).WithError(err).WithField("key", info.Name).Error("snapshot is damaged and put aside")
				return nil
			}
			k := sn.chain.key()
			users[k] = append(users[k], sn.id)
			return nil
		})
	})
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("read snapshots: %w", err)
	}
	return users, nil
}

// adopt takes over the mounts that an earlier daemon left: those that
// snapshots use stay as they are, the others are unmounted. Images that the
// kernel still has are pinned.
func (im *images) adopt(ctx context.Context, users map[key][]string) error {
	at, err := mountsBelow(im.dir)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(im.dir)
	if err != nil {
		return fmt.Errorf("read mount points: %w", err)
	}
	for _, e := range entries {
		k, err := parseKey(e.Name())
		if err != nil {
			log.G(ctx).WithField("name", e.Name()).Warn("unknown file among the mount points, left alone")
			continue
		}
		img := im.get(k)
		im.adoptOne(ctx, img, at[img.target], users[k])
		im.settle(ctx, img, false)
		img.mu.Unlock()
	}
	return nil
}

// adoptOne rebuilds the entry of one image. mounts is how many file systems
// are stacked on its mount point.
func (im *images) adoptOne(ctx context.Context, img *image, mounts int, users []string) {
	logger := log.G(ctx).WithField("image", img.key)
	var records []*mountRecord
	b, err := os.ReadFile(im.record(img.key))
	if err == nil {
		err = json.Unmarshal(b, &records)
	}
	if err != nil && !isGone(err) {
		logger.WithError(err).Error("mount record is damaged and put aside")
	}
	boot := bootID()
	for _, r := range records {
		if r == nil || r.Boot != boot {
			continue // that kernel is gone
		}
		r.Target = img.target
		sound := im.pinAgain(img, r)
		if sound && mounts == 1 && img.mount == nil && len(users) > 0 {
			img.setMount(r)
			continue
		}
		img.leave = append(img.leave, r)
	}
	if img.mount != nil {
		for _, id := range users {
			im.addUser(img, id)
		}
		logger.WithField("users", len(users)).Info("mounted image taken over")
		return
	}
	for range mounts {
		r := &mountRecord{Mount: engine.Mount{Target: img.target}, Boot: boot}
		if err := engine.Unmount(&r.Mount); err != nil {
			logger.WithError(err).Warn("unmount image")
			continue
		}
		logger.Info("stale mount of image removed")
		if len(records) == 0 {
			img.leave = append(img.leave, r)
		}
	}
}

// pinAgain pins what a kernel was found to have mounted, and reports whether it
// is still the image that its pool has under that key.
func (im *images) pinAgain(img *image, r *mountRecord) (sound bool) {
	st := im.store(r.Pool)
	if st == nil {
		return false
	}
	rec, unpin, err := st.Pin(daxmem.KindImage, img.key)
	if err == nil && rec.Offset == r.Offset {
		img.pinned(unpin)
		return true
	}
	if err == nil {
		unpin()
	}
	// Put aside as damaged, or removed, but a kernel may be reading it.
	if _, unpin, err := st.PinAt(r.Offset); err == nil {
		img.pinned(unpin)
	}
	return false
}

// hasLayer reports ErrLayerLost for a layer that no pool has, nor the spill.
func (im *images) hasLayer(k key) error {
	for _, st := range append(im.stores(), im.spill) {
		if st == nil {
			continue
		}
		if _, err := st.Layer(k); !errdefs.IsNotFound(err) {
			return err
		}
	}
	return fmt.Errorf("layer %s: %w", k, ErrLayerLost)
}

// mountsBelow counts the mounts on each directory in dir.
func mountsBelow(dir string) (map[string]int, error) {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return nil, fmt.Errorf("read mounts below %s: %w", dir, err)
	}
	at := make(map[string]int)
	for _, i := range infos {
		at[i.Mountpoint]++
	}
	return at, nil
}

// upperInUse reports whether an overlay in this mount namespace has path as
// its upper directory.
func upperInUse(path string) (bool, error) {
	infos, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("overlay"))
	if err != nil {
		return false, fmt.Errorf("read mounts: %w", err)
	}
	for _, i := range infos {
		for _, o := range strings.Split(i.VFSOptions, ",") {
			if o == "upperdir="+path {
				return true, nil
			}
		}
	}
	return false, nil
}

// bootID identifies the running kernel.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		// Without it every record looks like another boot's: mounts are then
		// taken from mountinfo alone.
		return ""
	}
	return strings.TrimSpace(string(b))
}
