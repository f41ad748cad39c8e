package snapshotter

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"regexp"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/daxfs/containerd-daxfs/daxmem"
)

// chainName are the names of committed snapshots of image layers: a chainID
// behind the "namespace/number/" of containerd's metadata.
var chainName = regexp.MustCompile(`(?:^|/)sha256:([0-9a-f]{64})$`)

// diffID returns the diffID of the layer on top of a chain that is not the lowest,
// as containerd has put it on the layer's snapshot since 2.4. An older one passes on
// what an image says of itself, so that it has to make the chainID.
//
// A layer alone is a chain whose chainID is its diffID: by that name the pool finds
// it for whoever has it on other layers.
func diffID(labels map[string]string, chain, below [32]byte) (id [32]byte, ok bool) {
	if below == [32]byte{} {
		return id, false
	}
	d, err := digest.Parse(labels[snapshots.LabelSnapshotDiffID])
	if err != nil || identity.ChainID([]digest.Digest{sha256Digest(below), d}) != sha256Digest(chain) {
		return id, false
	}
	_, err = hex.Decode(id[:], []byte(d.Encoded()))
	return id, err == nil && d.Algorithm() == digest.SHA256
}

// chainNames are the names by which the pool has a committed snapshot's layer.
func chainNames(info snapshots.Info) (ids [][32]byte) {
	id, ok := chainID(info.Name)
	if !ok {
		return nil
	}
	ids = append(ids, id)
	if below, ok := chainID(info.Parent); ok {
		if alone, ok := diffID(info.Labels, id, below); ok {
			ids = append(ids, alone)
		}
	}
	return ids
}

func sha256Digest(id [32]byte) digest.Digest { return digest.NewDigestFromBytes(digest.SHA256, id[:]) }

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
// chainID, and by its diffID. parent is that of the committed snapshot, which a
// parallel unpack tells at its end. The snapshot is there in any case.
func (s *Snapshotter) publishChain(ctx context.Context, name, parent string, sn *snapshot, layer [32]byte) {
	id, ok := chainID(name)
	below, okBelow := chainID(parent)
	if s.pool == nil || !isUnpack(sn.info) || !ok || parent != "" && !okBelow {
		return // a client's own doing, which is nobody else's business
	}
	_, err := s.pool.PublishChain(ctx, id, layer, below)
	if alone, ok := diffID(sn.info.Labels, id, below); ok && err == nil {
		_, err = s.pool.PublishChain(ctx, alone, layer, [32]byte{})
	}
	if err != nil && !errdefs.IsNotFound(err) { // staged from another kernel's pool
		log.G(ctx).WithError(err).WithField("key", name).Warn("publish chain")
	}
}

// labelParent is the chainID of the layer below on the snapshots that a
// parallel unpack prepares without a parent (core/unpack of containerd).
const labelParent = "containerd.io/snapshot/parent-chain-id"

// adoptChain answers an unpack's Prepare with what a pool has of the chain:
// nothing is fetched or unpacked then. A sequential unpack finds the committed
// snapshot already there (committed is true). A parallel one, which tells the
// parent only when it commits, gets mounts that are read-only, by which
// containerd knows that there is nothing to apply. Neither: the chain is not
// there.
func (s *Snapshotter) adoptChain(ctx context.Context, key, parent string, opts []snapshots.Opt) (committed bool, mounts []mount.Mount, _ error) {
	var base snapshots.Info
	for _, o := range opts {
		if err := o(&base); err != nil {
			return false, nil, err
		}
	}
	target := base.Labels[labelTarget]
	id, ok := chainID(target)
	on := parent
	if parent == "" {
		on = base.Labels[labelParent]
	}
	below, okBelow := chainID(on)
	if !ok || on != "" && !okBelow {
		return false, nil, nil
	}
	st, rec, err := s.findChain(ctx, id, below, base.Labels)
	if st == nil || err != nil {
		return false, nil, err
	}
	layer, unpin, err := st.Pin(daxmem.KindLayer, rec.Digest)
	if errdefs.IsNotFound(err) {
		return false, nil, nil // removed in this moment
	}
	if err != nil {
		return false, nil, err
	}
	defer unpin()
	l := log.G(ctx).WithField("key", key).WithField("chain", target).WithField("pool", st.Region().Path())
	if parent == "" && on != "" {
		if mounts, err = s.stageLayer(ctx, key, layer, opts); err == nil {
			l.Info("layer staged from the pool")
		}
		return false, mounts, err
	}
	if err := s.commitLayer(ctx, key, parent, target, layer, opts); err != nil {
		return false, nil, err
	}
	s.keepLayer(ctx, layer.Key)
	l.Info("layer found in the pool")
	return true, nil, nil
}

// commitLayer makes the committed snapshot that an unpack is about to make, with
// a layer of the pool, which is pinned.
func (s *Snapshotter) commitLayer(ctx context.Context, key, parent, target string, layer *daxmem.Record, opts []snapshots.Opt) error {
	// containerd finds the snapshot by its label and parent, so that any name
	// will do that is no other's.
	name := metadataPrefix.FindString(key) + target
	labels := snapshots.WithLabels(map[string]string{LabelLayer: hexKey(layer.Key)})
	return s.refer(ctx, func(ctx context.Context) error {
		if _, _, _, err := storage.GetInfo(ctx, name); err == nil {
			return nil
		}
		if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, parent, opts...); err != nil {
			return fmt.Errorf("create snapshot %q: %w", key, err)
		}
		_, err := storage.CommitActive(ctx, key, name, s.layerUsage(layer), append(opts, withLabelsOver(labels))...)
		return err
	})
}

// stageLayer makes an active snapshot that is a layer of the pool already, and
// becomes it at Commit.
func (s *Snapshotter) stageLayer(ctx context.Context, key string, layer *daxmem.Record, opts []snapshots.Opt) ([]mount.Mount, error) {
	tmp, err := s.stage(snapshots.KindActive)
	if err != nil {
		return nil, err
	}
	var id string
	labels := snapshots.WithLabels(map[string]string{labelStaged: hexKey(layer.Key)})
	err = s.refer(ctx, func(ctx context.Context) error {
		made, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, "", append(opts, withLabelsOver(labels))...)
		if err != nil {
			return fmt.Errorf("create snapshot %q: %w", key, err)
		}
		id = made.ID
		if err := os.Rename(tmp, s.dir(id)); err != nil {
			return fmt.Errorf("create snapshot %q: %w", key, err)
		}
		tmp = s.dir(id)
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(tmp))
	}
	s.keepLayer(ctx, layer.Key)
	return stagedMounts(s.upper(id)), nil
}

// stagedMounts are those of a staged snapshot, whose directory is empty.
func stagedMounts(upper string) []mount.Mount {
	return []mount.Mount{{Type: "bind", Source: upper, Options: []string{"ro", "rbind"}}}
}

// staged returns the layer that an active snapshot was staged with.
func staged(info snapshots.Info) (k key, ok bool, err error) { return labelled(info, labelStaged) }

// ready returns the layer that an active snapshot will be committed as, if that
// is in a pool already.
func ready(info snapshots.Info) (k key, ok bool, err error) {
	if k, ok, err = staged(info); !ok && err == nil {
		k, ok, err = labelled(info, labelApplied)
	}
	return k, ok, err
}

// labelled returns the layer that a label of an active snapshot names.
func labelled(info snapshots.Info, label string) (k key, ok bool, err error) {
	v, ok := info.Labels[label]
	if !ok || info.Kind != snapshots.KindActive {
		return k, false, nil
	}
	if k, err = parseKey(v); err != nil {
		return k, false, fmt.Errorf("snapshot %q: label %s: %w: %w", info.Name, label, err, ErrDamaged)
	}
	return k, true, nil
}

// pinLayer pins a layer in whatever pool has it.
func (s *Snapshotter) pinLayer(k key) (*daxmem.Record, func(), error) {
	for _, st := range s.images.stores() {
		rec, unpin, err := st.Pin(daxmem.KindLayer, k)
		if !errdefs.IsNotFound(err) {
			return rec, unpin, err
		}
	}
	return nil, nil, fmt.Errorf("layer %s: %w", k, ErrLayerLost)
}

// findChain looks for a chain in the pools, and asks the owner of the other for
// it; no store, no chain.
func (s *Snapshotter) findChain(ctx context.Context, id, below [32]byte, labels map[string]string) (*store, *daxmem.Record, error) {
	for _, st := range s.images.stores() {
		rec, err := st.chainOn(ctx, id, below)
		if err == nil {
			s.count(st, daxmem.ChainFound)
		}
		if !errdefs.IsNotFound(err) {
			return st, rec, err
		}
	}
	if rec, err := s.chainOfDiffID(ctx, id, below, labels); rec != nil || err != nil {
		return s.images.own, rec, err
	}
	shared := s.images.shared
	if shared == nil {
		return nil, nil, nil
	}
	// A parallel unpack comes with all layers at once; the first one's answer is
	// theirs too.
	s.asking.Lock()
	defer s.asking.Unlock()
	came := daxmem.ChainFound
	rec, err := shared.chainOn(ctx, id, below)
	if errdefs.IsNotFound(err) {
		came = daxmem.ChainBrought
		if err = s.images.ask.convert(ctx, id, labels); err == nil {
			rec, err = shared.chainOn(ctx, id, below)
		}
	}
	if err == nil {
		s.count(shared, came)
		return shared, rec, nil
	}
	if s.pool == nil || s.images.ask.missing == MissingFail {
		s.count(shared, daxmem.ChainMissed)
		return nil, nil, fmt.Errorf("chain sha256:%x is not in the pool %s: %w: %w", id, shared.Region().Path(), err, errdefs.ErrFailedPrecondition)
	}
	s.count(shared, daxmem.ChainUnpacked)
	return nil, nil, nil
}

// chainOfDiffID makes a chain of a layer that this kernel's pool has by its diffID,
// from other images; nil: it has not. Only owners make chains in a pool.
func (s *Snapshotter) chainOfDiffID(ctx context.Context, id, below [32]byte, labels map[string]string) (*daxmem.Record, error) {
	alone, ok := diffID(labels, id, below)
	if s.pool == nil || !ok {
		return nil, nil
	}
	rec, err := s.images.own.chainOn(ctx, alone, [32]byte{})
	if err == nil {
		rec, err = s.pool.PublishChain(ctx, id, rec.Digest, below)
	}
	if errdefs.IsNotFound(err) { // or removed in this moment
		return nil, nil
	}
	return rec, err
}

// count notes how this kernel came by a chain that st has or should have had, if
// that is another kernel's pool.
func (s *Snapshotter) count(st *store, o daxmem.Outcome) {
	if st == s.images.shared {
		s.images.ask.reader.Count(o)
	}
}

// chainOn finds a chain on top of another. One that the pool says is on
// something else is not found.
func (s *store) chainOn(ctx context.Context, id, below [32]byte) (*daxmem.Record, error) {
	rec, err := s.Chain(id)
	if err != nil {
		return nil, err
	}
	if rec.Below != below {
		// A chainID is a digest of all that is below: somebody lies.
		log.G(ctx).WithField("chain", key(id)).WithField("on", key(below)).WithField("recorded", key(rec.Below)).
			Warn("chain stands on another one in the pool, and is not used")
		return nil, fmt.Errorf("chain sha256:%x on sha256:%x: %w", id, below[:8], daxmem.ErrNotFound)
	}
	return rec, nil
}

// keeping are the pools in which the layers of snapshots have to be pinned:
// another kernel's, and this one's if another kernel may own it one day, whose
// collection knows nothing of the snapshots here.
func (s *Snapshotter) keeping() (all []*store) {
	for _, st := range s.images.stores() {
		if !st.Region().Private() {
			all = append(all, st)
		}
	}
	return all
}

// keepLayer pins a layer for the snapshots of this kernel.
func (s *Snapshotter) keepLayer(ctx context.Context, k [32]byte) {
	s.kept.Lock()
	defer s.kept.Unlock()
	if s.layers[k] != nil {
		return
	}
	for _, st := range s.keeping() {
		_, unpin, err := st.Pin(daxmem.KindLayer, k)
		switch {
		case err == nil:
			s.layers[k] = unpin
			return
		case !errdefs.IsNotFound(err):
			log.G(ctx).WithError(err).WithField("layer", key(k)).Warn("pin layer of a snapshot")
		}
	}
}

// keepLayers pins the layers that snapshots need, and lets go of those that none
// does any more.
func (s *Snapshotter) keepLayers(ctx context.Context, live *LiveSet) {
	for k := range live.layers {
		s.keepLayer(ctx, k)
	}
	s.leaveLayers(live)
}

// leaveLayers lets go of the layers that no snapshot needs any more. referring
// is held exclusively.
func (s *Snapshotter) leaveLayers(live *LiveSet) {
	s.kept.Lock()
	defer s.kept.Unlock()
	for k, unpin := range s.layers {
		if !live.Has(daxmem.KindLayer, k) {
			unpin()
			delete(s.layers, k)
		}
	}
}
