package snapshotter

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/daxfs/containerd-daxfs/convert"
	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// Unpack takes one layer: of an active snapshot, or one that the pool has lost.
type Unpack struct {
	s    *Snapshotter
	into string // for messages
	want key    // that has to come out, or zero
	// What a snapshot's labels say, as far as they do: the layer below, and the
	// diffID that containerd expects.
	below, diffID string
	// done is called with the published layer, which is pinned.
	done func(ctx context.Context, layer *daxmem.Record) error
}

// Unpack returns what takes the layer of the snapshot that mounts belong to.
// NotImplemented: they are not those of a snapshot that was prepared to be unpacked
// into here. FailedPrecondition: it has its layer.
func (s *Snapshotter) Unpack(ctx context.Context, mounts []mount.Mount) (*Unpack, error) {
	id, ok := s.unpackID(mounts)
	if !ok || s.pool == nil {
		return nil, fmt.Errorf("mounts are not those of a layer to be unpacked: %w", errdefs.ErrNotImplemented)
	}
	var name string
	var info snapshots.Info
	if err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		all, err := storage.IDMap(ctx)
		if err != nil {
			return fmt.Errorf("find snapshot %s: %w", id, err)
		}
		if name, ok = all[id]; !ok {
			return fmt.Errorf("snapshot with directory %s: %w", id, errdefs.ErrNotFound)
		}
		info, err = empty(ctx, id, name)
		return err
	}); err != nil {
		return nil, err
	}
	below, want := cmp.Or(info.Parent, info.Labels[labelParent]), info.Labels[snapshots.LabelSnapshotDiffID]
	return &Unpack{s: s, into: fmt.Sprintf("snapshot %q", name), below: below, diffID: want, done: func(ctx context.Context, layer *daxmem.Record) error {
		return s.applied(ctx, id, name, layer)
	}}, nil
}

// applied notes that a snapshot will be committed as a layer, which is pinned.
func (s *Snapshotter) applied(ctx context.Context, id, name string, layer *daxmem.Record) error {
	if err := s.refer(ctx, func(ctx context.Context) error {
		info, err := empty(ctx, id, name)
		if err != nil {
			return err
		}
		if info.Labels == nil {
			info.Labels = make(map[string]string)
		}
		info.Labels[labelApplied] = hexKey(layer.Key)
		_, err = storage.UpdateInfo(ctx, info, "labels."+labelApplied)
		return err
	}); err != nil {
		return err
	}
	s.keepLayer(ctx, layer.Key)
	return nil
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
func empty(ctx context.Context, id, name string) (snapshots.Info, error) {
	now, info, _, err := storage.GetInfo(ctx, name)
	switch {
	case err != nil:
	case now != id:
		err = fmt.Errorf("snapshot %q was made anew: %w", name, errdefs.ErrNotFound)
	case info.Kind != snapshots.KindActive || !isUnpack(info):
		err = fmt.Errorf("snapshot %q takes no layer: %w", name, errdefs.ErrFailedPrecondition)
	case info.Labels[labelApplied] != "":
		err = fmt.Errorf("snapshot %q has its layer: %w", name, errdefs.ErrFailedPrecondition)
	}
	return info, err
}

// Apply reads one layer, a tar stream, compressed or not (convert.FromStream), to
// its end; file contents go into the pool as they come. It returns digest and
// length of the uncompressed stream: whoever expects another diffID removes the
// snapshot, which can be committed otherwise. After an error nothing is left of the
// layer, and a read of the blob may be under way still.
//
// InvalidArgument: no layer, a damaged one, or one with what this file system
// cannot hold. OutOfRange: the stream is longer than the pool. ResourceExhausted:
// the pool is full.
func (u *Unpack) Apply(ctx context.Context, blob io.Reader) (diffID digest.Digest, size int64, err error) {
	diff := newMeasured()
	if err := u.apply(ctx, func(store convert.Store) (*mkdaxfs.Tree, error) {
		tree, warnings, err := convert.FromStream(ctx, blob, diff, store, convert.TarOptions{
			Verified: true, Lenient: true,
			// Nothing but repetitions and padding could make a longer one fit: a bomb.
			MaxSize: u.s.pool.Region().Size(),
		})
		for _, w := range warnings {
			log.G(ctx).WithField("into", u.into).WithField("path", w.Path).WithField("reason", w.Reason).Warn("left out of a layer")
		}
		return tree, err
	}); err != nil {
		return "", 0, fmt.Errorf("unpack into %s: %w", u.into, err)
	}
	return diff.digest(), diff.size, nil
}

// measured hashes and counts what is written to it.
type measured struct {
	hash.Hash
	size int64
}

func newMeasured() *measured { return &measured{Hash: sha256.New()} }

func (m *measured) Write(p []byte) (int, error) {
	m.size += int64(len(p))
	return m.Hash.Write(p)
}

func (m *measured) digest() digest.Digest { return digest.NewDigest(digest.SHA256, m.Hash) }

// apply publishes the layer that read makes.
func (u *Unpack) apply(ctx context.Context, read func(store convert.Store) (*mkdaxfs.Tree, error)) error {
	start := time.Now()
	u.s.collecting.RLock()
	defer u.s.released(ctx)
	rec, err := importLayer(ctx, u.s.pool, u.want, read)
	if err != nil {
		return err
	}
	return u.finish(ctx, rec, start)
}

// finish gives the published layer to whom it was unpacked for.
func (u *Unpack) finish(ctx context.Context, rec *daxmem.Record, start time.Time) error {
	_, unpin, err := u.s.pool.Pin(daxmem.KindLayer, rec.Key)
	if errdefs.IsNotFound(err) {
		// It was there, unused, and made room for another one in this moment. The
		// stream cannot be read again.
		return fmt.Errorf("layer %s was removed meanwhile, unpack it again: %w", key(rec.Key), errdefs.ErrUnavailable)
	}
	if err != nil {
		return err
	}
	defer unpin()
	if err := u.done(ctx, rec); err != nil {
		return err
	}
	log.G(ctx).WithField("into", u.into).WithField("layer", key(rec.Key)).WithField("entries", rec.Entries).
		WithField("bytes", rec.DataBytes).WithField("took", time.Since(start)).Info("layer unpacked into the pool")
	return nil
}
