package snapshotter

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/continuity"
	"github.com/containerd/log"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/engine"
)

// images mounts each image once and keeps it as long as a snapshot uses it.
//
// The pool must not free an image while the kernel may read it, and the kernel
// may do so after the mount point is gone: an overlay keeps its lower
// superblock. So an image is pinned in the pool from before its mount until
// its superblock is gone from sysfs, and that is written down beside the mount
// point for a daemon that comes later.
type images struct {
	dir    string
	own    *store            // this kernel's pool, or nil
	pool   *daxmem.Pool      // own's
	shared *store            // another kernel's, or nil
	spill  *store            // copies of own's layers on disk, or nil
	linger time.Duration     // how long an image stays mounted that nothing uses
	bring  func(k key) error // makes sure that own has a layer, wherever it is
	ask    asker

	mu    sync.Mutex
	byKey map[key]*image
	users map[string]*image // by the snapshot's id
}

type image struct {
	key key

	mu     sync.Mutex // serialises making, mounting and unmounting
	mount  *mountRecord
	shown  atomic.Pointer[mountRecord] // mount, for those who only look
	idle   time.Time                   // since when nothing uses it
	leave  []*mountRecord              // unmounted, but the kernel may still have them
	unpin  func()                      // set while mount or leave is
	users  int                         // how many of images.users; changed under both locks
	target string
}

// pinned adds a pin of the pool, to be released with the others.
func (img *image) pinned(unpin func()) {
	others := img.unpin
	img.unpin = func() {
		unpin()
		if others != nil {
			others()
		}
	}
}

// mountRecord is what is written to images/KEY/mount.json.
type mountRecord struct {
	engine.Mount
	Pool   string `json:"pool"`   // UUID
	Offset int64  `json:"offset"` // of the image in the pool
	Boot   string `json:"boot"`   // boot id of the kernel that has the mount
}

func newImages(dir string) *images {
	return &images{dir: dir, byKey: make(map[key]*image), users: make(map[string]*image)}
}

// stores are the pools that there are; another kernel's, whose images cost
// nothing, first.
func (im *images) stores() (all []*store) {
	for _, st := range []*store{im.shared, im.own} {
		if st != nil {
			all = append(all, st)
		}
	}
	return all
}

// store returns the pool with that UUID, or nil.
func (im *images) store(id string) *store {
	for _, st := range im.stores() {
		if st.UUID().String() == id {
			return st
		}
	}
	return nil
}

// Each image has a directory of its own with the mount point and its record:
// containerd clones the directory above a lower directory, with all mounts in
// it, for a container with mapped ids (core/mount, prepareIDMappedOverlay).
func (im *images) home(k key) string   { return filepath.Join(im.dir, k.String()) }
func (im *images) target(k key) string { return filepath.Join(im.home(k), "fs") }
func (im *images) record(k key) string { return filepath.Join(im.home(k), "mount.json") }

// get returns the entry of an image, locked.
func (im *images) get(k key) *image {
	for {
		im.mu.Lock()
		img := im.byKey[k]
		if img == nil {
			img = &image{key: k, target: im.target(k)}
			im.byKey[k] = img
		}
		im.mu.Unlock()
		img.mu.Lock()
		im.mu.Lock()
		same := im.byKey[k] == img
		im.mu.Unlock()
		if same {
			return img
		}
		img.mu.Unlock() // dropped meanwhile
	}
}

// mounted returns how an image is mounted, or nil.
func (im *images) mounted(k key) *mountRecord {
	im.mu.Lock()
	img := im.byKey[k]
	im.mu.Unlock()
	if img == nil {
		return nil
	}
	// Who has the image locked may be waiting for a layer.
	return img.shown.Load()
}

// setMount notes how the image is mounted, nil for not. img is locked.
func (img *image) setMount(m *mountRecord) {
	img.mount = m
	img.shown.Store(m)
}

// use makes the snapshot with the given id, on that parent, a user of its
// chain's image, makes and mounts the image if need be, and returns where it is mounted.
func (im *images) use(ctx context.Context, id string, c chain, parent string) (string, error) {
	img := im.get(c.key())
	defer img.mu.Unlock()
	if img.mount != nil && !engine.Mounted(img.target) {
		log.G(ctx).WithField("image", img.key).Warn("image was unmounted by somebody else, mounting it again")
		img.leave = append(img.leave, img.mount)
		img.setMount(nil)
	}
	if img.mount == nil {
		if err := im.mount(ctx, img, c, parent); err != nil {
			im.forget(img)
			return "", err
		}
	}
	im.addUser(img, id)
	return img.target, nil
}

// addUser makes a snapshot a user of an image, which is locked.
func (im *images) addUser(img *image, id string) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.users[id] == nil {
		im.users[id] = img
		img.users++
	}
}

func (im *images) mount(ctx context.Context, img *image, c chain, parent string) error {
	st, rec, unpin, err := im.find(ctx, c, parent)
	if err != nil {
		return err
	}
	img.pinned(unpin)
	if err := os.MkdirAll(img.target, 0o700); err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	m, err := st.engine.Mount(ctx, st.source(rec), img.target)
	if err != nil {
		return err
	}
	img.setMount(&mountRecord{Mount: *m, Pool: st.UUID().String(), Offset: rec.Offset, Boot: bootID()})
	if err := im.save(img); err != nil {
		// Without the record a later daemon could not tell when the image is
		// free again.
		im.unmount(ctx, img)
		return err
	}
	log.G(ctx).WithField("image", img.key).WithField("engine", m.Engine).WithField("method", m.Method).
		WithField("offset", rec.Offset).Info("image mounted")
	return nil
}

// save writes the records of an image's mounts, or removes the file if there
// are none.
func (im *images) save(img *image) error {
	var all []*mountRecord
	if img.mount != nil {
		all = append(all, img.mount)
	}
	all = append(all, img.leave...)
	path := im.record(img.key)
	if len(all) == 0 {
		if err := os.Remove(path); err != nil && !isGone(err) {
			return fmt.Errorf("remove mount record: %w", err)
		}
		return nil
	}
	b, err := json.Marshal(all)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(im.home(img.key), 0o700); err != nil {
		return fmt.Errorf("write mount record: %w", err)
	}
	if err := continuity.AtomicWriteFile(path, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write mount record: %w", err)
	}
	return nil
}

// unmount takes an image's mount point away; the superblock may stay.
func (im *images) unmount(ctx context.Context, img *image) {
	if img.mount == nil {
		return
	}
	if err := engine.Unmount(&img.mount.Mount); err != nil {
		log.G(ctx).WithError(err).WithField("image", img.key).Warn("unmount image")
	}
	img.leave = append(img.leave, img.mount)
	img.setMount(nil)
}

// unuse ends the use of an image by a snapshot. After the last one it stays mounted
// for a while: the next container finds its files in memory. unuse does not wait
// for other images: they may be waiting for a layer.
func (im *images) unuse(ctx context.Context, id string) {
	im.mu.Lock()
	img := im.users[id]
	im.mu.Unlock()
	if img == nil {
		return
	}
	img.mu.Lock()
	defer img.mu.Unlock()
	im.mu.Lock()
	used := im.users[id] == img
	if used {
		delete(im.users, id)
		img.users--
	}
	im.mu.Unlock()
	if used {
		img.idle = time.Now()
		im.settle(ctx, img, im.linger > 0)
	}
}

// settle unmounts an image without users, if it is not to be kept, and lets go of
// the pool's pin when the kernel is done with it. img is locked.
func (im *images) settle(ctx context.Context, img *image, keep bool) {
	if img.users == 0 && !keep {
		im.unmount(ctx, img)
	}
	before := len(img.leave)
	img.leave = slices.DeleteFunc(img.leave, func(m *mountRecord) bool { return m.Gone() })
	if img.mount == nil && len(img.leave) > 0 {
		log.G(ctx).WithField("image", img.key).WithField("superblocks", img.leave[0].Superblocks).Info("image is unmounted, but still in use by the kernel")
	}
	if before > 0 || img.mount == nil {
		if err := im.save(img); err != nil {
			log.G(ctx).WithError(err).WithField("image", img.key).Warn("update mount record")
		}
	}
	im.forget(img)
}

// forget drops an entry that holds nothing. img is locked.
func (im *images) forget(img *image) {
	if img.users > 0 || img.mount != nil || len(img.leave) > 0 {
		return
	}
	if img.unpin != nil {
		img.unpin()
		img.unpin = nil
	}
	// Empty directories, or not there. What is in the way is left alone.
	os.Remove(img.target)
	os.Remove(im.home(img.key))
	im.mu.Lock()
	if im.byKey[img.key] == img {
		delete(im.byKey, img.key)
	}
	im.mu.Unlock()
}

// sweep unmounts images that nothing uses, but for those that are to be kept, and
// looks again whether the kernel is done with those that are unmounted.
func (im *images) sweep(ctx context.Context, keep func(*image) bool) {
	for _, img := range im.all() {
		img.mu.Lock()
		im.settle(ctx, img, keep(img))
		img.mu.Unlock()
	}
}

// sweepIdle is sweep without those images that somebody is at, who may be waiting
// for what calls this.
func (im *images) sweepIdle(ctx context.Context, keep func(*image) bool) {
	for _, img := range im.all() {
		if !img.mu.TryLock() {
			continue
		}
		im.settle(ctx, img, keep(img))
		img.mu.Unlock()
	}
}

// lingers reports whether it is too early to unmount an image that nothing uses.
func (im *images) lingers(img *image) bool { return time.Since(img.idle) < im.linger }

// none is no image.
func none(*image) bool { return false }

// expire unmounts what has lingered long enough, until ctx ends.
func (im *images) expire(ctx context.Context) {
	tick := time.NewTicker(max(im.linger/8, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			im.sweepIdle(ctx, im.lingers)
		}
	}
}

func (im *images) all() []*image {
	im.mu.Lock()
	defer im.mu.Unlock()
	out := make([]*image, 0, len(im.byKey))
	for _, img := range im.byKey {
		out = append(out, img)
	}
	return out
}
