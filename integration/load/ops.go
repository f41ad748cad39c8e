package load

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/errdefs"
)

// Labels of an unpack's snapshots: the layer's chainID, by which it is asked for,
// and, where the parent is told only at Commit, that of the layer below.
const (
	labelTarget = "containerd.io/snapshot.ref"
	labelParent = "containerd.io/snapshot/parent-chain-id"
)

// prefix is what containerd's metadata puts before keys: namespace and number.
const prefix = "load/1/"

// committed is the name of a committed layer.
func committed(chainID string) string { return prefix + chainID }

// pull unpacks the layers of an image that are not there, as core/unpack of
// containerd does: one after the other, or, with parallel, all of them before the
// first is committed, which is when they get their parents.
func (l *Load) pull(ctx context.Context, sn snapshots.Snapshotter, img *Image, parallel bool) error {
	var unpacked []*unpack
	defer func() {
		for _, u := range unpacked {
			l.finished(u.key)
		}
	}()
	parent := ""
	for _, layer := range img.Layers {
		u := &unpack{layer: layer, parent: parent, parallel: parallel}
		parent = layer.ChainID
		_, err := sn.Stat(ctx, committed(layer.ChainID))
		if err == nil {
			continue
		}
		if !errdefs.IsNotFound(err) {
			return err
		}
		u.key = l.key("extract", " "+layer.ChainID)
		unpacked = append(unpacked, u)
		if err := u.prepare(ctx, sn); err != nil {
			return err
		}
		if !parallel {
			if err := u.commit(ctx, sn); err != nil {
				return err
			}
		}
	}
	for _, u := range unpacked {
		if parallel {
			if err := u.commit(ctx, sn); err != nil {
				return err
			}
		}
	}
	return nil
}

// unpack is that of one layer.
type unpack struct {
	layer    *Layer
	parent   string // chainID
	parallel bool
	key      string
	there    bool // is committed: the pool had it
}

func (u *unpack) labels() snapshots.Opt {
	labels := map[string]string{labelTarget: u.layer.ChainID}
	if u.parallel && u.parent != "" {
		labels[labelParent] = u.parent
	}
	return snapshots.WithLabels(labels)
}

// prepare makes the layer's snapshot and puts into it what the layer has, unless
// the snapshotter says that it is there.
func (u *unpack) prepare(ctx context.Context, sn snapshots.Snapshotter) error {
	on := ""
	if u.parent != "" && !u.parallel {
		on = committed(u.parent)
	}
	mounts, err := sn.Prepare(ctx, u.key, on, u.labels())
	if u.there = errdefs.IsAlreadyExists(err); u.there {
		return nil
	}
	if err != nil {
		return fmt.Errorf("prepare layer: %w", err)
	}
	if u.parallel && mounts[0].ReadOnly() {
		return nil
	}
	upper := ""
	for _, o := range mounts[0].Options {
		if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = dir
		}
	}
	if mounts[0].Type != "overlay" || upper == "" {
		return fmt.Errorf("mounts to unpack a layer into are %+v: %w", mounts, ErrWrong)
	}
	if _, err := archive.Apply(ctx, upper, bytes.NewReader(u.layer.Tar), archive.WithConvertWhiteout(archive.OverlayConvertWhiteout)); err != nil {
		return fmt.Errorf("unpack layer: %w", err)
	}
	return nil
}

func (u *unpack) commit(ctx context.Context, sn snapshots.Snapshotter) error {
	if u.there {
		return nil
	}
	opts := []snapshots.Opt{u.labels()}
	if u.parallel && u.parent != "" {
		opts = append(opts, snapshots.WithParent(committed(u.parent)))
	}
	err := sn.Commit(ctx, committed(u.layer.ChainID), u.key, opts...)
	if errdefs.IsAlreadyExists(err) {
		return sn.Remove(ctx, u.key)
	}
	return err
}

// run makes a container, compares all its files, runs its program, and removes
// it, or leaves it for later.
func (l *Load) run(ctx context.Context, sn snapshots.Snapshotter, img *Image, rnd *rand.Rand) error {
	key := l.key("container", "")
	mounts, err := sn.Prepare(ctx, key, committed(img.Top()))
	if err != nil {
		l.finished(key)
		return fmt.Errorf("prepare container: %w", err)
	}
	c, err := l.mount(key, img, mounts)
	if err != nil {
		l.finished(key)
		return err
	}
	if err := l.verify(c, rnd.IntN(3) == 0); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(c.root, "written"), []byte(key), 0o600); err != nil {
		return err
	}
	if rnd.IntN(2) == 0 && l.hold(c) {
		return nil
	}
	return l.end(ctx, sn, c)
}

// view looks at an image without a container.
func (l *Load) view(ctx context.Context, sn snapshots.Snapshotter, img *Image) error {
	key := l.key("view", "")
	mounts, err := sn.View(ctx, key, committed(img.Top()))
	if err != nil {
		l.finished(key)
		return fmt.Errorf("view: %w", err)
	}
	c, err := l.mount(key, img, mounts)
	if err != nil {
		l.finished(key)
		return err
	}
	if err := l.verify(c, false); err != nil {
		return err
	}
	return l.end(ctx, sn, c)
}

// end unmounts a container and removes its snapshot, which is left to collect
// if the daemon is gone.
func (l *Load) end(ctx context.Context, sn snapshots.Snapshotter, c *container) error {
	defer l.finished(c.key)
	if err := c.unmount(); err != nil {
		return err
	}
	return sn.Remove(ctx, c.key)
}

// remove is the end of an image's last reference: its layers, top first, as far
// as nothing stands on them.
func (l *Load) remove(ctx context.Context, sn snapshots.Snapshotter, img *Image) error {
	for i := len(img.Layers) - 1; i >= 0; i-- {
		err := sn.Remove(ctx, committed(img.Layers[i].ChainID))
		if errdefs.IsFailedPrecondition(err) {
			return nil // another image stands on it, or a container
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove layer: %w", err)
		}
	}
	return nil
}

// collect is containerd's garbage collection: snapshots that interrupted
// operations have left, and then Cleanup.
func (l *Load) collect(ctx context.Context, sn snapshots.Snapshotter) error {
	var left []string
	err := sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if info.Kind != snapshots.KindCommitted && !l.active[info.Name] {
			left = append(left, info.Name)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("walk: %w", err)
	}
	for _, key := range left {
		if err := sn.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove what was left: %w", err)
		}
	}
	if err := sn.(snapshots.Cleaner).Cleanup(ctx); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	return nil
}

// Release removes everything, when nobody works any more.
func (l *Load) Release(ctx context.Context, sn snapshots.Snapshotter) error {
	for {
		c := l.anyHeld()
		if c == nil {
			break
		}
		if err := l.end(ctx, sn, c); err != nil {
			return err
		}
	}
	for _, img := range l.images {
		if err := l.collect(ctx, sn); err != nil {
			return err
		}
		if err := l.remove(ctx, sn, img); err != nil {
			return err
		}
	}
	return l.collect(ctx, sn)
}

// Abandon unmounts everything, as the end of a kernel does.
func (l *Load) Abandon() error {
	for {
		c := l.anyHeld()
		if c == nil {
			return nil
		}
		if err := c.unmount(); err != nil {
			return err
		}
	}
}

// mount mounts a container's snapshot.
func (l *Load) mount(key string, img *Image, mounts []mount.Mount) (*container, error) {
	c := &container{key: key, img: img, mounts: mounts, root: filepath.Join(l.dir, filepath.Base(key))}
	if err := os.Mkdir(c.root, 0o700); err != nil {
		return nil, err
	}
	if err := mount.All(mounts, c.root); err != nil {
		return nil, &os.PathError{Op: "mount", Path: c.root, Err: err}
	}
	return c, nil
}
