package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/integration/vm/proof/protocol"
	format "github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/internal/engine"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// region has a pool, which is empty between measurements.
type region struct {
	name, location string
	pool           *daxmem.Pool
	// kept keeps memory that goes with its last descriptor, buf is the dma-buf
	// that engines mount it by. nil: there is none.
	kept daxmem.Region
	buf  *os.File
}

// create makes the pool, whatever was there.
func (r *region) create() (err error) {
	ctx, opts := context.Background(), daxmem.Options{SyncDelay: -1}
	if strings.HasPrefix(r.location, "/") && filepath.Dir(r.location) != "/dev" {
		opts.MaxSize = protocol.RegionSize
		r.pool, err = daxmem.OpenOrCreate(ctx, r.location, opts)
		return err
	}
	memory, err := daxmem.OpenRegion(r.location)
	if err != nil {
		return err
	}
	err = memory.Punch(0, 16<<20) // more than what Create looks at
	if d, ok := memory.(engine.DmaBuf); ok && err == nil {
		if r.buf, err = d.DmaBuf(); errors.Is(err, os.ErrNotExist) { // a kernel without udmabuf
			err = nil
		}
	}
	if memory.Kind() == daxmem.KindMemfd && err == nil {
		r.kept, err = daxmem.OpenRegionReadOnly(r.location)
	}
	if err != nil {
		return errors.Join(err, memory.Close())
	}
	r.pool, err = daxmem.Create(ctx, memory, opts)
	return err
}

// reopen unmaps the region and maps it again, as a daemon does that is started
// anew. A pool in a heap is another one then.
func (r *region) reopen() error {
	if err := r.pool.Close(); err != nil {
		return err
	}
	pool, err := daxmem.OpenOrCreate(context.Background(), r.location, daxmem.Options{SyncDelay: -1})
	if err == nil {
		r.pool = pool
	}
	return err
}

func (r *region) close() (err error) {
	if r.pool != nil {
		err = r.pool.Close()
	}
	if r.kept != nil {
		err = errors.Join(err, r.kept.Close())
	}
	if r.buf != nil {
		err = errors.Join(err, r.buf.Close())
	}
	return err
}

func (s *transferRun) measureRegion(r *region, set *fileSet) error {
	memory := r.pool.Region()
	at := memory.Size() - set.space()/hugeSize*hugeSize - hugeSize // free, as all is
	if err := s.measure(r.name, set, protocol.Write, func() error {
		return set.each(func(piece []byte, off int64) error {
			_, err := memory.WriteAt(piece, at+off)
			return err
		})
	}); err != nil {
		return err
	}
	if err := memory.Punch(at, memory.Size()-at); err != nil {
		return err
	}
	if err := s.measureImport(r, set, protocol.Put); err != nil {
		return err
	}
	if err := r.reopen(); err != nil {
		return err
	}
	return s.measureImport(r, set, protocol.PutReopened)
}

// measureImport imports and publishes a layer, and removes it.
func (s *transferRun) measureImport(r *region, set *fileSet, put string) error {
	ctx := context.Background()
	imp, err := r.pool.NewImport(ctx)
	if err != nil {
		return err
	}
	defer imp.Abort() // nothing is left to abort after a publication
	root := &mkdaxfs.Node{Mode: unix.S_IFDIR | 0o755}
	if err := s.measure(r.name, set, put, func() error {
		for i, f := range set.files {
			e, err := imp.Put(ctx, bytes.NewReader(f), int64(len(f)))
			if err != nil {
				return err
			}
			root.Set(fmt.Sprintf("file%08d", i), &mkdaxfs.Node{
				Mode: unix.S_IFREG | 0o644, Size: int64(len(f)), Extent: mkdaxfs.Extent{Offset: e.Offset, Digest: e.Digest},
			})
		}
		return nil
	}); err != nil {
		return err
	}
	var layer [32]byte
	publish := func() (err error) {
		layer, err = publishLayer(ctx, r.pool, imp, root)
		return err
	}
	sync := func() error { return r.pool.Sync(ctx) }
	if put == protocol.Put {
		if err = s.measure(r.name, set, protocol.Publish, publish); err == nil {
			err = s.measure(r.name, set, protocol.Sync, sync)
		}
	} else {
		err = publish()
	}
	if err != nil {
		return err
	}
	return errors.Join(r.pool.Remove(ctx, daxmem.KindLayer, layer), sync())
}

// publishLayer makes the index of a layer, checks it, and publishes it, as the
// snapshotter does.
func publishLayer(ctx context.Context, pool *daxmem.Pool, imp *daxmem.Import, root *mkdaxfs.Node) (key [32]byte, err error) {
	layout, err := mkdaxfs.NewLayout(&mkdaxfs.Tree{Root: root}, mkdaxfs.Options{Layer: true})
	if err != nil {
		return key, err
	}
	if key, err = layout.LayerKey(); err != nil {
		return key, err
	}
	_, err = imp.PublishLayer(ctx, key, format.BlockSize+layout.MetaSize(), func(off int64) ([]byte, error) {
		at := mkdaxfs.Place{Super: off, Meta: off + format.BlockSize, End: pool.Size()}
		super, meta, err := layout.Emit(at)
		if err != nil {
			return nil, err
		}
		return append(super, meta...), layout.Verify(super, meta, at)
	}, daxmem.RecordMeta{Entries: layout.Entries()})
	return key, err
}
