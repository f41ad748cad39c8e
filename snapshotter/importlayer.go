package snapshotter

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/daxfs/containerd-daxfs/convert"
	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// errOtherLayer: the layer that was wanted is not what the contents make.
var errOtherLayer = fmt.Errorf("it is another layer: %w", ErrLayerLost)

// importLayer publishes the tree that read makes as a layer; read puts the contents
// of its files into the store, by several goroutines if it likes. want is the key
// that has to come out, or zero: with another one it is errOtherLayer. After an
// error nothing is left in the pool.
func importLayer(ctx context.Context, pool *daxmem.Pool, want key, read func(store convert.Store) (*mkdaxfs.Tree, error)) (*daxmem.Record, error) {
	imp, err := pool.NewImport(ctx)
	if err != nil {
		return nil, err
	}
	defer imp.Abort() // nothing is left to abort after a publication
	store := &importStore{imp: imp}
	tree, err := read(store)
	if err != nil {
		return nil, err
	}
	layout, err := mkdaxfs.NewLayout(tree, mkdaxfs.Options{Layer: true})
	if err != nil {
		return nil, err
	}
	k, err := layout.LayerKey()
	if err != nil {
		return nil, err
	}
	if want != (key{}) && k != want {
		return nil, fmt.Errorf("its contents make the layer %s: %w", key(k), errOtherLayer)
	}
	return imp.PublishLayer(ctx, k, disk.BlockSize+layout.MetaSize(), func(off int64) ([]byte, error) {
		return emit(layout, inPool(pool, off))
	}, daxmem.RecordMeta{Entries: layout.Entries(), DataBytes: uint64(store.bytes.Load())})
}

// importStore is a convert.Store over an import of the pool.
type importStore struct {
	imp   *daxmem.Import
	bytes atomic.Int64
}

func (i *importStore) Put(ctx context.Context, r io.Reader, size int64) (mkdaxfs.Extent, error) {
	e, err := i.imp.Put(ctx, r, size)
	if err != nil {
		return mkdaxfs.Extent{}, err
	}
	i.bytes.Add(size)
	return mkdaxfs.Extent{Offset: e.Offset, Digest: e.Digest}, nil
}
