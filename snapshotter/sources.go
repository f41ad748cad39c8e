package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/daxfs/containerd-daxfs/daxmem"
)

// layerSource gives layers to this kernel's pool that it does not have.
type layerSource interface {
	// String names the source in the log.
	String() string
	// bring publishes the layer in the pool. ErrLayerLost: the source does not
	// have it. Several layers may be brought at once, but each by one caller.
	bring(ctx context.Context, k key) error
}

// findSources puts together where layers can come from: memory, disk, and what
// has to be unpacked, in this order.
func (s *Snapshotter) findSources(content Content) {
	if s.pool == nil {
		return
	}
	if from := s.images.shared; from != nil {
		s.sources = append(s.sources, &copies{"the pool of another kernel", from, s.pool})
	}
	if from := s.images.spill; from != nil {
		s.sources = append(s.sources, &copies{"the spill", from, s.pool})
	}
	if content != nil {
		s.content = true
		s.sources = append(s.sources, &blobs{s, content})
	}
}

// copies are layers in another pool.
type copies struct {
	name string
	from *store
	to   *daxmem.Pool
}

func (c *copies) String() string { return c.name }

func (c *copies) bring(ctx context.Context, k key) error { return copyLayer(ctx, c.from, c.to, k) }

// Content is where layers are kept as blobs: containerd's content store. Both ways
// to unpack the layer on top of a chain end with ctx, and are called by several
// goroutines. NotFound: the layer's blob is not there; the message is for people
// and says of which image it is and how to get it. Unavailable: the content store
// cannot be asked for now.
type Content interface {
	// Apply reads the layer into u.
	Apply(ctx context.Context, chainID digest.Digest, u *Unpack) error
	// Walk has containerd's own differ unpack the layer into mounts, which are
	// those of an empty snapshot that an unpack has prepared, and leaves them to
	// the caller.
	Walk(ctx context.Context, chainID digest.Digest, mounts []mount.Mount) error
}

// blobs are layers that have to be unpacked again. containerd would not do it: it
// believes that their snapshots are there. What comes out must have the key that
// the snapshots name.
type blobs struct {
	s       *Snapshotter
	content Content
}

func (b *blobs) String() string { return "the content store" }

func (b *blobs) bring(ctx context.Context, k key) error {
	chains, err := b.s.committedChains(ctx)
	if err != nil {
		return err
	}
	// One layer can be on top of several chains: any image will do.
	var reasons []string
	tried := make(map[[32]byte]bool)
	for _, c := range chains {
		if c.layer != k || tried[c.id] {
			continue
		}
		tried[c.id] = true
		err := b.unpack(ctx, k, c.id)
		if err == nil {
			return nil
		}
		if !errdefs.IsNotFound(err) {
			return fmt.Errorf("layer %s: unpack chain sha256:%x: %w", k, c.id, err)
		}
		reasons = append(reasons, err.Error())
	}
	if len(reasons) == 0 {
		reasons = append(reasons, "no snapshot of it is named by a chainID")
	}
	// The class is that of a lost layer: NotFound would be taken for the
	// snapshot's parent by containerd.
	return fmt.Errorf("layer %s: %w: %s", k, ErrLayerLost, strings.Join(reasons, "; "))
}

// unpack publishes the layer k from the blob on top of a chain. NotFound: there
// is none.
//
// Our differ and containerd's make different layers of some archives: theirs
// ignores the entry of the root, for one. The snapshots do not say whose they are.
func (b *blobs) unpack(ctx context.Context, k key, chain [32]byte) error {
	id := sha256Digest(chain)
	err := b.content.Apply(ctx, id, &Unpack{
		s: b.s, into: fmt.Sprintf("lost layer %s", k), want: k,
		done: func(context.Context, *daxmem.Record) error { return nil },
	})
	if !errors.Is(err, errOtherLayer) {
		return err
	}
	log.G(ctx).WithError(err).WithField("layer", k).Debug("not a layer of our differ")
	return b.walk(ctx, k, id)
}

// walk is unpack by containerd's own differ, which gets a directory as an unpack's
// Prepare makes it.
func (b *blobs) walk(ctx context.Context, k key, chainID digest.Digest) error {
	// Not among those of snapshots: a collection removes what is nobody's there,
	// and should not have to wait for this.
	if err := os.MkdirAll(b.s.unpackDir(), 0o700); err != nil {
		return fmt.Errorf("make directory to unpack into: %w", err)
	}
	dir, err := stageIn(b.s.unpackDir(), snapshots.KindActive)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // what cannot be removed goes at the next start
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if err := b.content.Walk(ctx, chainID, unpackMounts(dir, nil)); err != nil {
		return err
	}
	_, err = importDir(ctx, b.s.pool, filepath.Join(dir, "fs"), fi.ModTime(), k)
	return err
}
