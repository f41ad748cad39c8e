package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sync/errgroup"

	"github.com/daxfs/containerd-daxfs/convert"
	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// ErrLayerLost is wrapped when a snapshot's layer is not in the pool, or not
// sound: the pool was lost or damaged.
var ErrLayerLost = fmt.Errorf("layer is not in the pool, remove the image and its containers and pull it again: %w", errdefs.ErrFailedPrecondition)

// flatten returns the image of a chain, making it from the layer indexes if
// the pool does not have it, pinned. No file data is read or moved, but in a
// pool of self-contained images.
func (im *images) flatten(ctx context.Context, c chain) (*daxmem.Record, func(), error) {
	k := c.key()
	if rec, unpin, err := im.pool.Pin(daxmem.KindImage, k); err == nil {
		return rec, unpin, nil
	} else if !errdefs.IsNotFound(err) {
		return nil, nil, err
	}
	start := time.Now()
	trees := make([]*mkdaxfs.Tree, len(c))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	var unpins = make([]func(), len(c))
	defer func() {
		for _, unpin := range unpins {
			if unpin != nil {
				unpin()
			}
		}
	}()
	for i, layer := range c {
		g.Go(func() (err error) {
			trees[i], unpins[i], err = im.layer(layer)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	tree, err := convert.Merge(trees)
	if err != nil {
		return nil, nil, fmt.Errorf("flatten chain %s: %w", k, err)
	}
	publish := im.publishShared
	if im.pool.SelfContained() {
		publish = im.publishSelfContained
	}
	rec, err := publish(ctx, c, tree)
	if err != nil {
		return nil, nil, fmt.Errorf("flatten chain %s: %w", k, err)
	}
	log.G(ctx).WithField("image", k).WithField("layers", len(c)).WithField("entries", rec.Entries).
		WithField("bytes", rec.Size).WithField("took", time.Since(start)).Info("chain flattened")
	return im.pool.Pin(daxmem.KindImage, k)
}

// publishShared puts a flattened tree into the pool as metadata alone: its
// files are the layers' extents.
func (im *images) publishShared(ctx context.Context, c chain, tree *mkdaxfs.Tree) (*daxmem.Record, error) {
	layers := make([][32]byte, len(c))
	for i := range c {
		layers[i] = c[i]
	}
	layout, err := mkdaxfs.NewLayout(tree, mkdaxfs.Options{Layers: layers})
	if err != nil {
		return nil, err
	}
	return im.pool.PublishImage(ctx, c.key(), layers, disk.BlockSize+layout.MetaSize(), func(off int64) ([]byte, error) {
		return emit(layout, inPool(im.pool, off))
	}, daxmem.RecordMeta{Entries: layout.Entries()})
}

// inPool is the place of a segment at off that may use all of the pool behind
// it.
func inPool(pool *daxmem.Pool, off int64) mkdaxfs.Place {
	return mkdaxfs.Place{Super: off, Meta: off + disk.BlockSize, End: pool.Size()}
}

// emit writes a layout as a segment, and proves it: no kernel and no later
// daemon gets bytes that were not checked.
func emit(l *mkdaxfs.Layout, at mkdaxfs.Place) ([]byte, error) {
	super, meta, err := l.Emit(at)
	if err != nil {
		return nil, err
	}
	if err := l.Verify(super, meta, at); err != nil {
		return nil, err
	}
	return append(super, meta...), nil
}

// layer decodes a layer index, pinned.
func (im *images) layer(k key) (*mkdaxfs.Tree, func(), error) {
	rec, unpin, err := im.pool.Pin(daxmem.KindLayer, k)
	if err != nil {
		if errdefs.IsNotFound(err) {
			err = fmt.Errorf("layer %s: %w", k, ErrLayerLost)
		}
		return nil, nil, err
	}
	tree, err := im.decode(rec)
	if err != nil {
		unpin()
		return nil, nil, fmt.Errorf("layer %s: %w", k, err)
	}
	return tree, unpin, nil
}

func (im *images) decode(rec *daxmem.Record) (*mkdaxfs.Tree, error) {
	b, err := im.pool.ReadSegment(rec)
	if err != nil {
		if disk.IsBad(err) || errors.Is(err, errdefs.ErrDataLoss) {
			err = fmt.Errorf("%w: %w", err, ErrLayerLost)
		}
		return nil, err
	}
	// The image's bounds are those of the region behind the segment.
	img, err := mkdaxfs.Open(segmentReader(b), im.pool.Size()-rec.Offset)
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
