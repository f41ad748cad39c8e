package snapshotter

import (
	"context"
	"fmt"
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

// find returns the image of a chain, that of the committed snapshot of that name,
// pinned, and the pool that has it. Another
// kernel's pool goes first: what is there costs nothing. What neither has is
// made: by the owner of the other, who is asked, or here.
func (im *images) find(ctx context.Context, c chain, name string) (*store, *daxmem.Record, func(), error) {
	k := c.key()
	for _, st := range im.stores() {
		rec, unpin, err := st.Pin(daxmem.KindImage, k)
		if err == nil {
			return st, rec, unpin, nil
		}
		if !errdefs.IsNotFound(err) {
			return nil, nil, nil, err
		}
	}
	asked := im.askFlatten(ctx, c, name)
	if asked == nil {
		rec, unpin, err := im.shared.Pin(daxmem.KindImage, k)
		return im.shared, rec, unpin, err
	}
	if im.own == nil || im.shared != nil && im.ask.missing == MissingFail {
		return nil, nil, nil, fmt.Errorf("image %s is not in the pool: %w", k, asked)
	}
	rec, unpin, err := im.flatten(ctx, c)
	if err != nil {
		return nil, nil, nil, err
	}
	return im.own, rec, unpin, nil
}

// askFlatten lets the owner of the other pool make the image, if all of the
// chain is there.
func (im *images) askFlatten(ctx context.Context, c chain, name string) error {
	if im.shared == nil {
		return errNotShared
	}
	for _, layer := range c {
		if _, err := im.shared.Layer(layer); err != nil {
			return fmt.Errorf("layer %s: %w", layer, ErrLayerLost)
		}
	}
	return im.ask.flatten(ctx, name)
}

// flatten returns the image of a chain in this kernel's pool, pinned, making it
// from the layer indexes. No file data is read or moved, but in a pool of
// self-contained images, and where this kernel's pool does not have a layer:
// then it is brought first.
func (im *images) flatten(ctx context.Context, c chain) (*daxmem.Record, func(), error) {
	k := c.key()
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
			if err := im.bring(layer); err != nil {
				return err
			}
			trees[i], unpins[i], err = im.own.tree(layer)
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
