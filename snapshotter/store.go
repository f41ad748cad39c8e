package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/google/uuid"

	"github.com/daxfs/containerd-daxfs/convert"
	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/internal/engine"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// catalog is what a pool of this kernel and one of another have in common:
// *daxmem.Pool and *daxmem.Reader.
type catalog interface {
	UUID() uuid.UUID
	Region() daxmem.Region
	Size() int64
	SelfContained() bool
	Layer(key [32]byte) (*daxmem.Record, error)
	Chain(id [32]byte) (*daxmem.Record, error)
	Pin(kind daxmem.Kind, key [32]byte) (*daxmem.Record, func(), error)
	PinAt(off int64) (*daxmem.Record, func(), error)
	ReadSegment(rec *daxmem.Record) ([]byte, error)
	ReleaseLeft() (int, error)
}

var (
	_ catalog = (*daxmem.Pool)(nil)
	_ catalog = (*daxmem.Reader)(nil)
)

// store is a pool with the engine that mounts its images.
type store struct {
	catalog
	engine engine.Engine
}

// source is an image of the store as engines mount it.
func (s *store) source(rec *daxmem.Record) engine.Source {
	return engine.Source{Region: s.Region(), Offset: rec.Offset, Size: s.Size() - rec.Offset}
}

// tree decodes a layer index, pinned. ErrLayerLost: the store does not have it,
// or not sound.
func (s *store) tree(k key) (*mkdaxfs.Tree, func(), error) {
	rec, unpin, err := s.Pin(daxmem.KindLayer, k)
	if err != nil {
		if errdefs.IsNotFound(err) {
			err = fmt.Errorf("layer %s: %w", k, ErrLayerLost)
		}
		return nil, nil, err
	}
	tree, err := s.decode(rec)
	if err != nil {
		unpin()
		return nil, nil, fmt.Errorf("layer %s: %w", k, err)
	}
	return tree, unpin, nil
}

func (s *store) decode(rec *daxmem.Record) (*mkdaxfs.Tree, error) {
	b, err := s.ReadSegment(rec)
	if err != nil {
		if disk.IsBad(err) || errors.Is(err, errdefs.ErrDataLoss) {
			err = fmt.Errorf("%w: %w", err, ErrLayerLost)
		}
		return nil, err
	}
	// The image's bounds are those of the region behind the segment.
	img, err := mkdaxfs.Open(segmentReader(b), s.Size()-rec.Offset)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrLayerLost)
	}
	tree, err := img.Tree(rec.Offset)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrLayerLost)
	}
	return tree, nil
}

// segmentReader reads the bytes of a segment; there are none behind it.
type segmentReader []byte

func (s segmentReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(s)) {
		return 0, io.EOF
	}
	n := copy(p, s[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// copyLayer brings a layer of another kernel's pool into this kernel's own.
func copyLayer(ctx context.Context, from *store, to *daxmem.Pool, k key) error {
	if _, err := to.Layer(k); err == nil {
		return nil
	}
	tree, unpin, err := from.tree(k)
	if err != nil {
		return err
	}
	defer unpin()
	if _, err := importLayer(ctx, to, k, func(store convert.Store) (*mkdaxfs.Tree, error) {
		return tree, copyFiles(ctx, from, store, tree)
	}); err != nil {
		return fmt.Errorf("copy layer %s: %w", k, err)
	}
	return nil
}

// copyFiles puts the contents of a tree's files, which are in from, into a store.
func copyFiles(ctx context.Context, from *store, to convert.Store, tree *mkdaxfs.Tree) error {
	seen := make(map[*mkdaxfs.Node]bool)
	return tree.Nodes(func(n *mkdaxfs.Node) error {
		if !n.IsRegular() || n.Size == 0 || seen[n] {
			return nil
		}
		seen[n] = true
		e, err := to.Put(ctx, io.NewSectionReader(from.Region(), n.Extent.Offset, n.Size), n.Size)
		if err != nil {
			return err
		}
		if e.Digest != n.Extent.Digest {
			return fmt.Errorf("file of %d bytes at %d: digest %x, want %x: %w", n.Size, n.Extent.Offset, e.Digest[:8], n.Extent.Digest[:8], ErrLayerLost)
		}
		n.Extent = e
		return nil
	})
}

// moveLayers brings layers that snapshots need from a former pool.
func (s *Snapshotter) moveLayers(ctx context.Context, former *daxmem.Pool) error {
	live, err := Live(ctx, s.ms)
	if err != nil {
		return err
	}
	from, n := &store{catalog: former}, 0
	for k := range live.layers {
		if s.images.hasLayer(k) == nil {
			continue
		}
		err := copyLayer(ctx, from, s.pool, k)
		if errors.Is(err, ErrLayerLost) {
			log.G(ctx).WithError(err).Warn("layer is not in the former pool either")
			continue
		}
		if err != nil {
			return err
		}
		n++
	}
	if n > 0 {
		log.G(ctx).WithField("layers", n).WithField("from", former.Region().Path()).Info("layers moved from the former pool")
	}
	return nil
}
