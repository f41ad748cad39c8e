package daxmem

import (
	"cmp"
	"slices"

	"github.com/google/uuid"
)

// OwnerKind says to what a byte of the pool belongs.
type OwnerKind string

// Every byte of a pool has exactly one of these owners.
const (
	OwnSuperblock  OwnerKind = "superblock"
	OwnCatalog     OwnerKind = "catalog"
	OwnSegment     OwnerKind = "segment"
	OwnExtent      OwnerKind = "extent"
	OwnCopies      OwnerKind = "copies"      // files of a self-contained image
	OwnQuarantined OwnerKind = "quarantined" // reserved for a record that is bad
	OwnInflight    OwnerKind = "in flight"   // being written, or being given back
	OwnRetired     OwnerKind = "retired"     // removed; free after the next sync
	OwnLost        OwnerKind = "lost"        // could not be zeroed; free after the next open
	OwnFree        OwnerKind = "free"
)

// Owner is one range of the pool and what it belongs to.
type Owner struct {
	Kind   OwnerKind
	Offset int64
	Size   int64    // bytes of space
	Bytes  int64    // bytes in use: without the rest of the last block
	Digest [32]byte // of an extent
	Refs   int      // of an extent: layers and imports that hold it
	Record *Record  // of a segment, of copies, or of what is quarantined
}

// Owners lists all of the pool by offset, without gap or overlap.
func (p *Pool) Owners() []Owner {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.owners()
}

func (p *Pool) owners() []Owner {
	out := p.books.owners()
	for off, n := range p.inflight {
		out = append(out, Owner{Kind: OwnInflight, Offset: off, Size: n, Bytes: n})
	}
	for _, t := range p.limbo {
		for _, s := range t.spans {
			out = append(out, Owner{Kind: OwnRetired, Offset: s.off, Size: s.size, Bytes: s.size})
		}
	}
	for _, s := range p.lost {
		out = append(out, Owner{Kind: OwnLost, Offset: s.off, Size: s.size, Bytes: s.size})
	}
	slices.SortFunc(out, func(a, b Owner) int { return cmp.Compare(a.Offset, b.Offset) })
	return out
}

func (b *books) owners() []Owner {
	out := []Owner{
		{Kind: OwnSuperblock, Size: catalogStart, Bytes: catalogStart},
		{Kind: OwnCatalog, Offset: catalogStart, Size: b.sup.dataStart - catalogStart, Bytes: int64(b.sup.records) * recordSize},
	}
	for _, r := range b.slots {
		if r == nil {
			continue
		}
		rec := r.public()
		for i, s := range r.spans {
			o := Owner{Kind: OwnSegment, Offset: s.off, Size: s.size, Bytes: min(s.size, r.size), Record: rec}
			if i > 0 {
				o.Kind, o.Bytes = OwnCopies, s.size
			}
			if r.why != "" {
				o.Kind, o.Bytes = OwnQuarantined, s.size
			}
			out = append(out, o)
		}
	}
	for _, e := range b.byOff {
		out = append(out, Owner{Kind: OwnExtent, Offset: e.off, Size: e.space(), Bytes: e.size, Digest: e.digest, Refs: e.refs})
	}
	for off, n := range b.alloc.All() {
		out = append(out, Owner{Kind: OwnFree, Offset: off, Size: n})
	}
	return out
}

// Stat is the pool in numbers; sizes are bytes. The sizes by owner add up to
// Size.
type Stat struct {
	Path      string
	Kind      string
	UUID      uuid.UUID
	Epoch     uint64 // of the owner
	State     string // "open", "clean" or "suspect", as the superblock has it
	Size      int64
	MaxSize   int64 // what may be in use
	Allocated int64 // what the region takes from its medium

	Superblock  int64
	Catalog     int64
	Segments    int64
	Extents     int64 // whole blocks
	Copies      int64
	Quarantined int64
	Inflight    int64
	Retired     int64
	Lost        int64
	Free        int64

	LargestFree int64
	FreeRecords int // of the catalog

	LayerCount, ImageCount, ChainCount, ExtentCount, QuarantinedCount int

	NotDurable int // records that a loss of power could cost

	StoredBytes  int64 // of distinct extents that sound layers use, without block rounding
	LogicalBytes int64 // of the same before deduplication
	SavedBytes   int64 // LogicalBytes - StoredBytes
}

// Stat returns the pool's numbers; of a read-only pool those of its opening.
func (p *Pool) Stat() (Stat, error) {
	if err := p.begin(); err != nil {
		return Stat{}, err
	}
	defer p.end()
	allocated, err := p.region.Allocated()
	if err != nil {
		return Stat{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Stat{
		Path: p.region.Path(), Kind: p.region.Kind(), UUID: p.sup.uuid,
		Epoch: p.own.epoch, State: ownerStateName(p.own.state),
		Size: p.size, MaxSize: p.limit, Allocated: allocated,
		LargestFree: p.alloc.Largest(), FreeRecords: len(p.avail),
		QuarantinedCount: len(p.bad), ExtentCount: len(p.byOff),
	}
	for _, o := range p.owners() {
		*s.by(o.Kind) += o.Size
	}
	stored := map[*extent]bool{}
	for k, r := range p.live {
		if r.flags&flagDurable == 0 {
			s.NotDurable++
		}
		switch k.kind {
		case KindImage:
			s.ImageCount++
			continue
		case KindChain:
			s.ChainCount++
			continue
		}
		s.LayerCount++
		sum := int64(0)
		for _, e := range r.exts {
			sum += e.size
			if !stored[e] {
				stored[e] = true
				s.StoredBytes += e.size
			}
		}
		// A layer's own count includes files that repeat inside it.
		s.LogicalBytes += max(sum, int64(r.data))
	}
	s.SavedBytes = s.LogicalBytes - s.StoredBytes
	return s, nil
}

func (s *Stat) by(k OwnerKind) *int64 {
	return map[OwnerKind]*int64{
		OwnSuperblock: &s.Superblock, OwnCatalog: &s.Catalog, OwnSegment: &s.Segments, OwnExtent: &s.Extents, OwnCopies: &s.Copies,
		OwnQuarantined: &s.Quarantined, OwnInflight: &s.Inflight, OwnRetired: &s.Retired, OwnLost: &s.Lost, OwnFree: &s.Free,
	}[k]
}

func ownerStateName(s uint32) string {
	switch s {
	case ownerOpen:
		return "open"
	case ownerClean:
		return "clean"
	}
	return "suspect"
}
