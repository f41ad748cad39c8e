// Package snapshotter is containerd's snapshots.Snapshotter over layer indexes
// and flattened images in a pool.
//
// A committed snapshot is one layer index; its key in the pool is a label of
// the snapshot (LabelLayer), written in the same transaction as its name. The
// chain of a snapshot is flattened into one image when the first container or
// view needs it, mounted once, and is the only lower directory of all of them.
// Active snapshots are ordinary overlay upper directories on disk.
//
// What containerd believes in is in metadata.db; everything else here can be
// found again from it: which images are in use from the active snapshots, what
// the pool may free from the committed ones. The data path has no daemon: all
// mounts are the kernel's own and outlive this process.
package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sync/singleflight"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/engine"
)

// Options of a snapshotter. All fields are needed.
type Options struct {
	// Root is the directory for metadata and the writable parts of active
	// snapshots. It must be on a file system that overlayfs takes as upper
	// directory.
	Root string
	// Pool keeps layers and images that this kernel unpacks; nil: it unpacks
	// none. It stays the caller's, who closes it after the snapshotter.
	Pool *daxmem.Pool
	// Engine mounts images of the pool's region.
	Engine engine.Engine

	// Shared is the pool of another kernel, or nil; it stays the caller's too.
	Shared       *daxmem.Reader
	SharedEngine engine.Engine
	// Missing says what to do about what Shared does not have, AskWait how long
	// its owner may take.
	Missing Missing
	AskWait time.Duration
	// ImageOf returns the name of an image that has a chain and is being pulled in
	// the namespace of ctx, as its owner can pull it; or NotFound. nil: only
	// labels tell.
	ImageOf func(ctx context.Context, chainID digest.Digest) (string, error)

	// Former is a pool that this kernel has used before, or nil: layers that
	// snapshots need and Pool does not have are copied from it by New, which is
	// all that it is used for.
	Former *daxmem.Pool

	// Keep says what Pool keeps that no snapshot needs.
	Keep Keep

	// Spill is a pool on disk that gets a copy of every layer of Pool that a
	// snapshot needs, in the background, and gives them back when Pool has lost
	// them, as memory does in a reboot; or nil. It stays the caller's.
	Spill *daxmem.Pool

	// Content is where lost layers of Pool are applied again from that Spill does
	// not have, in the background, those of containers first; or nil.
	Content Content

	// KeepMounted is how long an image stays mounted that no snapshot uses any
	// more, while its chain is there, with what the kernel has in memory of it. 0:
	// it is unmounted at once.
	KeepMounted time.Duration

	// Convert pulls an image, by its name, for other kernels, into Pool; nil:
	// they are refused.
	Convert func(ctx context.Context, name string) error
}

// Snapshotter implements snapshots.Snapshotter and snapshots.Cleaner.
type Snapshotter struct {
	root   string
	pool   *daxmem.Pool
	ms     *storage.MetaStore
	images *images

	// collecting is held shared by what makes things that nothing refers to
	// yet (a layer before its snapshot is committed), and exclusively by what
	// frees such things. An image is locked inside it. Who holds it shared may
	// take it again: nobody waits to have it exclusively, they only try.
	collecting sync.RWMutex
	pending    atomic.Bool // a collection had to be put off

	// referring is held shared while the metadata is made to refer to a layer
	// that is pinned, and exclusively from reading what it refers to until what
	// it does not has been removed. Inside collecting, if both are held.
	referring sync.RWMutex

	spill    *spill        // or nil
	sources  []layerSource // of layers that the pool does not have, best first
	content  bool          // one of them is containerd's content store
	bringing singleflight.Group
	keep     Keep
	usage    recency      // guarded by referring, held exclusively
	tried    atomic.Int64 // hundredths of a percent that were in use after the last eviction

	convert func(ctx context.Context, name string) error
	asking  sync.Mutex // for chains, one after the other

	// layers are pins, in shared pools, of what snapshots need.
	kept   sync.Mutex
	layers map[[32]byte]func()

	// background are goroutines, which end soon after running does.
	background sync.WaitGroup
	running    context.Context
	stop       context.CancelFunc // ends running
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// New opens or makes the snapshotter below opts.Root and puts in order what a
// crash or reboot left: mounts that nobody needs, directories without a
// snapshot, layers and images without a user. Such repairs are logged; only
// what makes any service impossible is an error.
func New(ctx context.Context, opts Options) (*Snapshotter, error) {
	for _, dir := range []string{opts.Root, filepath.Join(opts.Root, "snapshots"), filepath.Join(opts.Root, "images")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make directory of the snapshotter: %w", err)
		}
	}
	metadata := filepath.Join(opts.Root, "metadata.db")
	if err := opts.Keep.check(); err != nil {
		return nil, err
	}
	if err := refuseOrphans(metadata, filepath.Join(opts.Root, "snapshots")); err != nil {
		return nil, err
	}
	ms, err := openMetadata(ctx, metadata)
	if err != nil {
		return nil, fmt.Errorf("open snapshot metadata: %w", err)
	}
	s := &Snapshotter{root: opts.Root, pool: opts.Pool, ms: ms, convert: opts.Convert, keep: opts.Keep, layers: make(map[[32]byte]func())}
	s.running, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	s.images = newImages(filepath.Join(opts.Root, "images"))
	s.images.linger = opts.KeepMounted
	if opts.Pool != nil {
		s.images.own, s.images.pool, s.images.bring = &store{opts.Pool, opts.Engine}, opts.Pool, s.bring
		if opts.Spill != nil {
			s.spill = newSpill(opts.Spill)
			s.images.spill = s.spill.store
		}
	}
	if opts.Shared != nil {
		s.images.shared = &store{opts.Shared, opts.SharedEngine}
		s.images.ask = asker{opts.Shared, opts.Missing, opts.AskWait, opts.ImageOf}
	}
	s.findSources(opts.Content)
	if opts.Former != nil {
		if err := s.moveLayers(ctx, opts.Former); err != nil {
			return nil, errors.Join(err, ms.Close())
		}
	}
	if err := s.recover(ctx); err != nil {
		return nil, errors.Join(err, ms.Close())
	}
	if s.pool != nil && s.keep.on() {
		s.pool.SetReclaim(s.reclaim)
	}
	if s.images.linger > 0 {
		s.background.Go(func() { s.images.expire(s.running) })
	}
	if s.spill != nil {
		s.background.Go(func() { s.keepSpill(s.running) })
	}
	if s.spill != nil || s.content {
		s.background.Go(func() { s.rehydrate(s.running) })
	}
	return s, nil
}

// refuseOrphans reports metadata that is gone while directories of snapshots
// are there: with new, empty metadata they would all be removed as orphans, and
// what containers wrote with them.
func refuseOrphans(metadata, snapshots string) error {
	if _, err := os.Lstat(metadata); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	entries, err := os.ReadDir(snapshots)
	if err != nil || len(entries) == 0 {
		return err
	}
	return fmt.Errorf("%s is missing, but %s holds %d directories of snapshots: put it back, or remove them: %w",
		metadata, snapshots, len(entries), errdefs.ErrFailedPrecondition)
}

// metadataWait is how long New waits for another process to let go of the
// metadata. bbolt would wait for ever, deaf to signals.
const metadataWait = 5 * time.Second

// openMetadata opens the metadata now, not at first use.
func openMetadata(ctx context.Context, path string) (*storage.MetaStore, error) {
	ms, err := storage.NewMetaStore(path, func(o *bolt.Options) error {
		o.Timeout = metadataWait
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = ms.WithTransaction(ctx, false, func(context.Context) error { return nil })
	if errors.Is(err, bolterrors.ErrTimeout) {
		err = fmt.Errorf("%s: another process has it open, is there a second daemon with this root? %w", path, errdefs.ErrUnavailable)
	}
	if err != nil {
		return nil, errors.Join(err, ms.Close())
	}
	return ms, nil
}

// Close stops using the metadata, and unmounts images that nothing uses. Containers
// go on.
func (s *Snapshotter) Close() error {
	s.stop()
	s.background.Wait()
	if s.images.linger > 0 {
		s.images.sweepIdle(context.WithoutCancel(s.running), none)
	}
	if s.pool != nil {
		s.pool.SetReclaim(nil)
	}
	return s.ms.Close()
}

func (s *Snapshotter) dir(id string) string   { return filepath.Join(s.root, "snapshots", id) }
func (s *Snapshotter) upper(id string) string { return filepath.Join(s.dir(id), "fs") }
func (s *Snapshotter) work(id string) string  { return filepath.Join(s.dir(id), "work") }

// unpackDir is where layers are unpacked again that the pool has lost.
func (s *Snapshotter) unpackDir() string { return filepath.Join(s.root, "rehydrate") }

// snapshot is what the metadata says of one key.
type snapshot struct {
	id    string
	info  snapshots.Info
	usage snapshots.Usage
	// chain are the layers of the parents, lowest first.
	chain chain
}

// get reads a snapshot and its chain inside a transaction.
func get(ctx context.Context, key string) (*snapshot, error) {
	id, info, usage, err := storage.GetInfo(ctx, key)
	if err != nil {
		return nil, err
	}
	c, err := chainOf(ctx, info.Parent)
	if err != nil {
		return nil, fmt.Errorf("snapshot %q: %w", key, err)
	}
	return &snapshot{id: id, info: info, usage: usage, chain: c}, nil
}

func (s *Snapshotter) read(ctx context.Context, key string) (sn *snapshot, err error) {
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		sn, err = get(ctx, key)
		return err
	})
	return sn, err
}

// Stat returns the info of an active, view or committed snapshot.
func (s *Snapshotter) Stat(ctx context.Context, key string) (info snapshots.Info, err error) {
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		_, info, _, err = storage.GetInfo(ctx, key)
		if err != nil {
			return err
		}
		s.describe(ctx, &info)
		return nil
	})
	return info, err
}

// Update changes labels and returns those that clients can change. The
// snapshotter's own stay as they are.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (out snapshots.Info, err error) {
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, old, _, err := storage.GetInfo(ctx, info.Name)
		if err != nil {
			return err
		}
		if out, err = storage.UpdateInfo(ctx, info, fieldpaths...); err != nil {
			return err
		}
		if keepOwnLabels(&out, old) {
			if out, err = storage.UpdateInfo(ctx, out, "labels"); err != nil {
				return err
			}
		}
		maps.DeleteFunc(out.Labels, func(k, _ string) bool { return strings.HasPrefix(k, ownPrefix) })
		return nil
	})
	return out, err
}

// Usage returns what a snapshot takes: for an active one its upper directory
// on disk, for a committed one the space in the pool of its layer's files and
// index, before sharing with other layers.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	sn, err := s.read(ctx, key)
	if err != nil {
		return snapshots.Usage{}, err
	}
	if sn.info.Kind != snapshots.KindActive {
		return sn.usage, nil
	}
	du, err := fs.DiskUsage(ctx, s.upper(sn.id))
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("usage of snapshot %q: %w", key, err)
	}
	return snapshots.Usage(du), nil
}

// Walk calls fn for every snapshot that matches one of the filters.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	called := false
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			called = true
			s.describe(ctx, &info)
			return fn(ctx, info)
		}, filters...)
	})
	// Before the first snapshot there is no bucket. The service sends errors of
	// Walk without their class, so a client could not tell.
	if !called && errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// describe adds the labels that tell how a snapshot's image is mounted.
func (s *Snapshotter) describe(ctx context.Context, info *snapshots.Info) {
	if info.Kind == snapshots.KindCommitted || info.Parent == "" {
		return
	}
	c, err := chainOf(ctx, info.Parent)
	if err != nil {
		log.G(ctx).WithError(err).WithField("key", info.Name).Debug("snapshot has no usable chain")
		return
	}
	m := s.images.mounted(c.key())
	if m == nil {
		return
	}
	labels := map[string]string{LabelEngine: m.Engine + "/" + m.Method, LabelImage: c.key().String()}
	for k, v := range info.Labels {
		if _, own := labels[k]; !own {
			labels[k] = v
		}
	}
	info.Labels = labels
}

// isGone reports whether err says that something does not exist any more.
func isGone(err error) bool { return errdefs.IsNotFound(err) || errors.Is(err, os.ErrNotExist) }
