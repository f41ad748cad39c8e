package snapshotter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/daxfs/containerd-daxfs/daxmem"
)

// Keep says how full a pool may get with layers and images that no snapshot of
// this kernel needs and no kernel has pinned: they stay until more than High
// percent of the pool are in use, and then those that were needed longest ago
// go, until no more than Low percent are. The zero value keeps nothing.
type Keep struct{ High, Low int }

func (k Keep) on() bool { return k != Keep{} }

func (k Keep) check() error {
	if k.on() && (k.Low < 1 || k.Low > k.High || k.High > 100) {
		return fmt.Errorf("watermarks of %d and %d percent, want 1 <= low <= high <= 100: %w", k.High, k.Low, errdefs.ErrInvalidArgument)
	}
	return nil
}

// refer makes metadata refer to a layer that the caller has pinned, and may let
// go of afterwards.
func (s *Snapshotter) refer(ctx context.Context, fn func(ctx context.Context) error) error {
	s.referring.RLock()
	defer s.referring.RUnlock()
	err := s.ms.WithTransaction(ctx, true, fn)
	s.spill.wake()
	return err
}

// crowded reports whether it is time to evict: the pool is above the high
// watermark, and fuller by a percent than the last eviction could make it.
func (s *Snapshotter) crowded() bool {
	if s.pool == nil || !s.keep.on() {
		return false
	}
	full := s.pool.Room().Percent()
	return full > float64(s.keep.High) && full > float64(s.tried.Load())/100+1
}

// keepUnused returns what is to stay though no snapshot needs it. Above the high
// watermark it evicts first. referring is held exclusively.
func (s *Snapshotter) keepUnused(ctx context.Context, live *LiveSet) (*LiveSet, error) {
	names, err := s.unused(live)
	if err != nil {
		return nil, err
	}
	if s.pool.Room().Percent() > float64(s.keep.High) {
		_, _ = s.evict(ctx, live, names, func() bool { return s.pool.Room().Percent() <= float64(s.keep.Low) })
		s.tried.Store(int64(s.pool.Room().Percent() * 100))
	}
	return kept(names), nil
}

// kept are the chains that were not evicted, and their images. Layers stay with
// the chains and images that need them. What no chain leads to nobody can ask
// for.
func kept(names []*name) *LiveSet {
	kept := &LiveSet{images: make(map[[32]byte]struct{}), chains: make(map[[32]byte]struct{})}
	for _, n := range names {
		if n.gone {
			continue
		}
		kept.chains[n.chain.Key] = struct{}{}
		if n.image != nil {
			kept.images[n.image.Key] = struct{}{}
		}
	}
	return kept
}

// Kept returns what a Keep that is on keeps of a pool with these records, chains
// included, as long as it is not above the high watermark.
func Kept(records []*daxmem.Record) *LiveSet {
	names, _ := link(records)
	return kept(names)
}

// pinTime is what chains get to be pinned that reclaim has not seen before, pinTries
// how often, if more and more of them come.
const (
	pinTime  = 20 * time.Millisecond
	pinTries = 50
)

// reclaim makes room in a full pool, for daxmem.Pool.SetReclaim: as far as the
// low watermark, but one chain in any case, as free space may be in pieces.
func (s *Snapshotter) reclaim(ctx context.Context) bool {
	s.images.sweepIdle(ctx, none)
	for range pinTries {
		n, young := s.reclaimOnce(ctx)
		if n > 0 || !young {
			return n > 0
		}
		// Collections look too, but none goes on beside an unpack that is long or
		// others that follow each other.
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pinTime):
		}
	}
	return false
}

// reclaimOnce is one try of reclaim, which returns what evict does.
func (s *Snapshotter) reclaimOnce(ctx context.Context) (n int, young bool) {
	s.referring.Lock()
	defer s.referring.Unlock()
	live, err := Live(ctx, s.ms)
	var names []*name
	if err == nil {
		s.leaveLayers(live)
		names, err = s.unused(live)
	}
	if err != nil {
		log.G(ctx).WithError(err).Warn("make room in a full pool")
		return 0, false
	}
	enough := 0
	return s.evict(ctx, live, names, func() bool {
		enough++
		return enough > 1 && s.pool.Room().Percent() <= float64(s.keep.Low)
	})
}

// name is a chain of the pool with what can be found by it: the layer on top,
// and the image.
type name struct {
	chain *daxmem.Record
	image *daxmem.Record // nil: not flattened
	below *name          // nil: the lowest layer, or a chain that is not there
	key   key            // of the image; zero: a chain below is not there
	depth int            // layers below

	needed   bool // by a snapshot or a pin
	last     uint64
	seq      uint64
	standing int // chains on top of it
	gone     bool
}

// unused returns all chains of the pool, those first that were needed longest
// ago by somebody, and of those a chain before what it stands on. referring is
// held exclusively.
func (s *Snapshotter) unused(live *LiveSet) ([]*name, error) {
	pinned, err := s.pool.Pinned()
	if err != nil {
		return nil, err
	}
	records := append(s.pool.Records(), s.pool.Chains()...)
	isNeeded := func(r *daxmem.Record) bool {
		return r != nil && (live.Has(r.Kind, r.Key) || r.Pins > 0 || len(pinned[r.Slot]) > 0)
	}
	isPinned := func(r *daxmem.Record) bool { return r != nil && (r.Pins > 0 || len(pinned[r.Slot]) > 0) }
	names, layers := link(records)
	for _, n := range names {
		// Who has pinned the layer has a snapshot of the chain.
		n.needed = isNeeded(n.chain) || isNeeded(n.image) || isPinned(layers[n.chain.Digest])
	}
	needed := make(map[int]bool)
	for _, n := range names {
		if n.needed {
			needed[n.chain.Slot] = true
		}
	}
	s.usage.look(records, func(r *daxmem.Record) bool { return needed[r.Slot] || isNeeded(r) })
	// From the top down, so that what stands on a chain has been there before.
	slices.SortFunc(names, func(a, b *name) int { return cmp.Compare(b.depth, a.depth) })
	for _, n := range names {
		n.last, n.seq = max(n.last, s.usage.last[life(n.chain)]), max(n.seq, n.chain.Sequence)
		if n.image != nil {
			n.last, n.seq = max(n.last, s.usage.last[life(n.image)]), max(n.seq, n.image.Sequence)
		}
		if n.below != nil {
			n.below.last, n.below.seq = max(n.below.last, n.last), max(n.below.seq, n.seq)
			n.below.standing++
		}
	}
	slices.SortStableFunc(names, func(a, b *name) int {
		return cmp.Or(cmp.Compare(a.last, b.last), cmp.Compare(a.seq, b.seq), cmp.Compare(b.depth, a.depth))
	})
	return names, nil
}

// link finds out how chains stand on each other and which images are theirs, and
// returns layers by key. Damaged records are left out.
func link(records []*daxmem.Record) (names []*name, layers map[[32]byte]*daxmem.Record) {
	chains := make(map[[32]byte]*name)
	images := make(map[[32]byte]*daxmem.Record)
	layers = make(map[[32]byte]*daxmem.Record)
	for _, r := range records {
		switch {
		case r.Quarantined != "":
		case r.Kind == daxmem.KindChain:
			chains[r.Key] = &name{chain: r, depth: -1}
		case r.Kind == daxmem.KindImage:
			images[r.Key] = r
		default:
			layers[r.Key] = r
		}
	}
	for _, n := range chains {
		// Down to what is known already, and back up.
		var up []*name
		for at := n; at != nil && at.depth < 0 && len(up) <= maxChain; at = chains[at.chain.Below] {
			up = append(up, at)
		}
		for _, at := range slices.Backward(up) {
			if at.depth >= 0 {
				continue // in a circle, which no owner makes
			}
			at.below = chains[at.chain.Below]
			switch {
			case at.chain.Below == [32]byte{}:
				at.depth, at.key = 0, key{}.with(at.chain.Digest)
			case at.below == nil || at.below.depth < 0:
				at.depth, at.below = 0, nil
			default:
				at.depth = at.below.depth + 1
				if at.below.key != (key{}) {
					at.key = at.below.key.with(at.chain.Digest)
				}
			}
			if at.key != (key{}) {
				at.image = images[at.key]
			}
		}
		names = append(names, n)
	}
	return names, layers
}

// evict removes chains that nothing needs or stands on, in their order, with
// their images, and their layers where nothing else needs those, until it is
// enough. It returns how many, and whether there were others that it may remove at
// the next look: what has come since the last one may be on its way to a pin.
// referring is held exclusively.
func (s *Snapshotter) evict(ctx context.Context, live *LiveSet, names []*name, enough func() bool) (n int, young bool) {
	for _, at := range names {
		if at.needed || at.standing > 0 {
			continue
		}
		if at.last == s.usage.looks {
			young = true
			continue
		}
		if enough() || ctx.Err() != nil {
			break
		}
		if err := s.evictOne(ctx, live, at); err != nil {
			if !errors.Is(err, daxmem.ErrInUse) { // pinned in this moment
				log.G(ctx).WithError(err).WithField("chain", key(at.chain.Key)).Warn("evict chain")
			}
			continue
		}
		at.gone = true
		if at.below != nil {
			at.below.standing--
		}
		n++
	}
	return n, young
}

func (s *Snapshotter) evictOne(ctx context.Context, live *LiveSet, at *name) error {
	if at.image != nil {
		if err := s.pool.Remove(ctx, daxmem.KindImage, at.image.Key); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	if err := s.pool.Remove(ctx, daxmem.KindChain, at.chain.Key); err != nil {
		return err
	}
	log.G(ctx).WithField("chain", key(at.chain.Key)).WithField("image", at.key).Info("evicted, nobody needed it for longest")
	if live.Has(daxmem.KindLayer, at.chain.Digest) {
		return nil
	}
	// Other chains and images may need the layer.
	err := s.pool.Remove(ctx, daxmem.KindLayer, at.chain.Digest)
	if err != nil && !errors.Is(err, daxmem.ErrInUse) && !errdefs.IsNotFound(err) {
		log.G(ctx).WithError(err).WithField("layer", key(at.chain.Digest)).Warn("evict layer")
	}
	return nil
}

// recency remembers at which look a record was last needed. It is not stored:
// for what nobody has needed since the start, the order of publication counts.
type recency struct {
	looks uint64
	last  map[recordLife]uint64 // number of the look; 0: before the first
}

// recordLife is one use of a slot of the catalog.
type recordLife struct {
	slot       int
	generation uint32
}

func life(r *daxmem.Record) recordLife { return recordLife{r.Slot, r.Generation} }

// look notes what is needed now. What was not there at the last look counts as
// needed: somebody has just made it.
func (u *recency) look(records []*daxmem.Record, needed func(*daxmem.Record) bool) {
	first := u.looks == 0
	u.looks++
	last := make(map[recordLife]uint64, len(records))
	for _, r := range records {
		at, known := u.last[life(r)]
		if needed(r) || !known && !first {
			at = u.looks
		}
		last[life(r)] = at
	}
	u.last = last
}
