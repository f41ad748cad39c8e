package snapshotter

import (
	"context"
	"encoding/hex"
	"fmt"
	"regexp"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/daxfs/containerd-daxfs/daxmem"
)

// chainName are the names of committed snapshots of image layers: a chainID
// behind the "namespace/number/" of containerd's metadata.
var chainName = regexp.MustCompile(`(?:^|/)sha256:([0-9a-f]{64})$`)

// metadataPrefix is what containerd's metadata puts before a key.
var metadataPrefix = regexp.MustCompile(`^[^/]+/[0-9]+/`)

// chainID returns the chainID that a snapshot's name says.
func chainID(name string) (id [32]byte, ok bool) {
	m := chainName.FindStringSubmatch(name)
	if m == nil {
		return id, false
	}
	_, err := hex.Decode(id[:], []byte(m[1]))
	return id, err == nil
}

// publishChain lets others find the layer of an unpacked snapshot by its
// chainID. The snapshot is there in any case.
func (s *Snapshotter) publishChain(ctx context.Context, name string, sn *snapshot, layer [32]byte) {
	id, ok := chainID(name)
	below, okBelow := chainID(sn.info.Parent)
	if !isUnpack(sn.info) || !ok || sn.info.Parent != "" && !okBelow {
		return // a client's own doing, which is nobody else's business
	}
	if _, err := s.pool.PublishChain(ctx, id, layer, below); err != nil {
		log.G(ctx).WithError(err).WithField("key", name).Warn("publish chain")
	}
}

// adoptChain makes the committed snapshot that an unpack is about to make, if a
// pool has its chain, and reports whether it did. Nothing is fetched or unpacked
// then.
func (s *Snapshotter) adoptChain(ctx context.Context, key, parent string, opts []snapshots.Opt) (bool, error) {
	var base snapshots.Info
	for _, o := range opts {
		if err := o(&base); err != nil {
			return false, err
		}
	}
	target := base.Labels[labelTarget]
	id, ok := chainID(target)
	below, okBelow := chainID(parent)
	if !ok || parent != "" && !okBelow {
		return false, nil
	}
	st, rec, err := s.findChain(ctx, id, below, base.Labels)
	if st == nil || err != nil {
		return false, err
	}
	layer, unpin, err := st.Pin(daxmem.KindLayer, rec.Digest)
	if errdefs.IsNotFound(err) {
		return false, nil // removed in this moment
	}
	if err != nil {
		return false, err
	}
	defer unpin()
	// containerd finds the snapshot by its label and parent, so that any name
	// will do that is no other's.
	name := metadataPrefix.FindString(key) + target
	labels := snapshots.WithLabels(map[string]string{LabelLayer: hexKey(layer.Key)})
	err = s.refer(ctx, func(ctx context.Context) error {
		if _, _, _, err := storage.GetInfo(ctx, name); err == nil {
			return nil
		}
		if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, parent, opts...); err != nil {
			return fmt.Errorf("create snapshot %q: %w", key, err)
		}
		_, err := storage.CommitActive(ctx, key, name, s.layerUsage(layer), append(opts, withLabelsOver(labels))...)
		return err
	})
	if err != nil {
		return false, err
	}
	s.keepLayer(ctx, layer.Key)
	log.G(ctx).WithField("key", name).WithField("pool", st.Region().Path()).Info("layer found in the pool")
	return true, nil
}

// findChain looks for a chain in the pools, and asks the owner of the other for
// it; no store, no chain.
func (s *Snapshotter) findChain(ctx context.Context, id, below [32]byte, labels map[string]string) (*store, *daxmem.Record, error) {
	for _, st := range s.images.stores() {
		rec, err := st.Chain(id)
		switch {
		case errdefs.IsNotFound(err):
			continue
		case err != nil:
			return nil, nil, err
		case rec.ChainID != below:
			return nil, nil, fmt.Errorf("chain %x is on chain %x, not on %x: %w", id, rec.ChainID[:8], below[:8], errdefs.ErrFailedPrecondition)
		}
		return st, rec, nil
	}
	if s.images.shared == nil {
		return nil, nil, nil
	}
	err := s.images.ask.convert(ctx, id, labels)
	if err == nil {
		rec, err := s.images.shared.Chain(id)
		return s.images.shared, rec, err
	}
	if s.pool == nil || s.images.ask.missing == MissingFail {
		return nil, nil, fmt.Errorf("chain sha256:%x is not in the pool %s: %w: %w", id, s.images.shared.Region().Path(), err, errdefs.ErrFailedPrecondition)
	}
	return nil, nil, nil // unpacked here
}

// keepLayer pins a layer of the other pool for the snapshots of this kernel.
func (s *Snapshotter) keepLayer(ctx context.Context, k [32]byte) {
	if s.images.shared == nil {
		return
	}
	s.kept.Lock()
	defer s.kept.Unlock()
	if s.layers[k] != nil {
		return
	}
	_, unpin, err := s.images.shared.Pin(daxmem.KindLayer, k)
	switch {
	case err == nil:
		s.layers[k] = unpin
	case !errdefs.IsNotFound(err):
		log.G(ctx).WithError(err).WithField("layer", key(k)).Warn("pin layer of a snapshot")
	}
}

// keepLayers pins the layers of the other pool that snapshots need, and lets go
// of those that none does any more.
func (s *Snapshotter) keepLayers(ctx context.Context, live *LiveSet) {
	if s.images.shared == nil {
		return
	}
	for k := range live.layers {
		if s.pool != nil {
			if _, err := s.pool.Layer(k); err == nil {
				continue
			}
		}
		s.keepLayer(ctx, k)
	}
	s.kept.Lock()
	defer s.kept.Unlock()
	for k, unpin := range s.layers {
		if !live.Has(daxmem.KindLayer, k) {
			unpin()
			delete(s.layers, k)
		}
	}
}
