package daxmem

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
	"github.com/google/uuid"
)

// Reader is a kernel at the pool of another: it finds, pins and reads what the
// owner has published, and writes its own seat only. All methods are safe for
// concurrent use, and none waits for the owner.
type Reader struct {
	region Region
	sup    *super
	size   atomic.Int64
	w      Window // all that is shared, read-only
	seat   *seat
	ix     *index

	mu       sync.Mutex
	verified map[int]word // segments whose digest was right, by slot
	closing  bool

	asking   sync.Mutex // one request at a time
	counting sync.Mutex

	stop    chan struct{}
	beating sync.WaitGroup
}

// heartbeat is how often a kernel says that it is there.
const heartbeat = 2 * time.Second

// Attach takes a seat at the pool in region: the one that this kernel has, or a
// free one. The reader owns the region from here on, also when Attach fails.
func Attach(ctx context.Context, region Region, opts Options) (*Reader, error) {
	r, err := attach(ctx, region, opts)
	if err != nil {
		return nil, fmt.Errorf("attach to the pool in %s: %w", region.Path(), errors.Join(err, region.Close()))
	}
	return r, nil
}

func attach(ctx context.Context, region Region, opts Options) (_ *Reader, err error) {
	sup, own, err := readSuper(region)
	if err != nil {
		return nil, err
	}
	boot, err := bootID(opts)
	if err != nil {
		return nil, err
	}
	r := &Reader{region: region, sup: sup, verified: map[int]word{}, stop: make(chan struct{})}
	r.size.Store(own.size)
	if r.w, err = region.Window(0, sup.dataStart, false); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.w.Close())
		}
	}()
	r.ix = newIndex(r.w, &sup.geometry, sup.uuid)
	id := Identity{Boot: boot, Instance: opts.Instance, Holder: HolderName(opts.Holder)}
	if r.seat, err = claimOwn(region, &sup.geometry, id, opts.seat()); err != nil {
		return nil, err
	}
	r.beating.Add(1)
	go r.beat()
	return r, nil
}

// claimOwn takes a seat, for which all seats have to be writable for a moment,
// and returns it with only itself writable.
func claimOwn(region Region, g *geometry, id Identity, fixed int) (*seat, error) {
	all, err := region.Window(g.seats, g.dataStart-g.seats, true)
	if err != nil {
		return nil, err
	}
	s, err := claimSeat(all, g, id, fixed, false)
	if cerr := all.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	s.w, err = region.Window(g.seat(s.number), seatPins+g.pinsSize, true)
	return s, err
}

func (r *Reader) beat() {
	defer r.beating.Done()
	for {
		if err := r.seat.beat(time.Now()); err != nil {
			log.L.WithError(err).WithField("region", r.region.Path()).Error("heartbeat")
			return
		}
		select {
		case <-r.stop:
			return
		case <-time.After(heartbeat):
		}
	}
}

// UUID identifies the pool wherever its region is mapped.
func (r *Reader) UUID() uuid.UUID { return r.sup.uuid }

// SelfContained reports whether every image of the pool has its own files.
func (r *Reader) SelfContained() bool { return r.sup.incompat&featSelfContained != 0 }

// Region is the memory that the pool lives in, for engines that mount from it.
func (r *Reader) Region() Region { return r.region }

// Size is the bytes of the region that the pool uses, as far as this kernel has
// needed to know.
func (r *Reader) Size() int64 { return r.size.Load() }

// refresh notices that the owner has made the pool larger.
func (r *Reader) refresh() error {
	if g, ok := r.region.(interface{ Refresh() error }); ok {
		if err := g.Refresh(); err != nil {
			return err
		}
	}
	_, own, err := readSuper(r.region)
	if err != nil {
		return err
	}
	r.size.Store(own.size)
	return nil
}

// Layer returns the layer with that key, or ErrNotFound.
func (r *Reader) Layer(key [32]byte) (*Record, error) { return r.find(KindLayer, key) }

// Image returns the image with that key, or ErrNotFound.
func (r *Reader) Image(key [32]byte) (*Record, error) { return r.find(KindImage, key) }

// Chain returns the chain with that chainID, or ErrNotFound: see Pool.Chain.
func (r *Reader) Chain(id [32]byte) (*Record, error) { return r.find(KindChain, id) }

func (r *Reader) find(kind Kind, key [32]byte) (*Record, error) {
	e, slot, err := r.lookup(kind, key)
	if err != nil {
		return nil, err
	}
	return (&record{entry: e, slot: slot}).public(), nil
}

// lookup finds a record without locks.
func (r *Reader) lookup(kind Kind, key [32]byte) (e entry, slot int, err error) {
	found, err := r.ix.find(kind, key, func(n int) (bool, error) {
		var ok bool
		e, ok, err = readLive(r.w, n, kind, key)
		slot = n
		return ok, err
	})
	if err == nil && !found {
		err = ErrNotFound
	}
	if err != nil {
		return e, 0, fmt.Errorf("%s: %w", recordName(kind, key), err)
	}
	return e, slot, nil
}

// readLive reads a record that other kernels may be changing, and reports
// whether it is the LIVE and sound one with that key.
func readLive(w Window, slot int, kind Kind, key [32]byte) (e entry, ok bool, err error) {
	before, err := w.Load(slotOffset(slot))
	if err != nil {
		return e, false, windowError(fmt.Sprintf("read catalog record %d", slot), err)
	}
	if word(before).state() != stateLive || word(before).kind() != kind {
		return e, false, nil
	}
	var b [recordSize]byte
	if _, err := w.ReadAt(b[8:], slotOffset(slot)+8); err != nil {
		return e, false, windowError(fmt.Sprintf("read catalog record %d", slot), err)
	}
	if [32]byte(b[32:64]) != key {
		return e, false, nil
	}
	after, err := w.Load(slotOffset(slot))
	if err != nil {
		return e, false, windowError(fmt.Sprintf("read catalog record %d", slot), err)
	}
	if word(after).state() != stateLive || word(after).life() != word(before).life() {
		return e, false, nil
	}
	le.PutUint64(b[:], after)
	e, cond, _ := decodeEntry(b[:])
	return e, cond == condLive && e.flags&flagQuarantined == 0, nil
}

// Pin keeps a record, and what it draws from, until release is called. What is
// pinned for the first time has its segment's digest verified: ErrCorrupt.
func (r *Reader) Pin(kind Kind, key [32]byte) (*Record, func(), error) {
	rec, release, err := r.pin(kind, key)
	if err != nil {
		return nil, nil, fmt.Errorf("pin: %w", err)
	}
	return rec, release, nil
}

func (r *Reader) pin(kind Kind, key [32]byte) (*Record, func(), error) {
	for {
		e, slot, err := r.lookup(kind, key)
		if err != nil {
			return nil, nil, err
		}
		ok, err := r.seat.pin(slot, func() (bool, error) {
			now, err := r.w.Load(slotOffset(slot))
			return word(now).state() == stateLive && word(now).life() == e.word.life(), err
		})
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", recordName(kind, key), err)
		}
		if !ok {
			continue // removed in this moment, and perhaps there again
		}
		release := r.release(slot)
		if err := r.verify(&e, slot); err != nil {
			if serr := r.seat.check(); serr != nil {
				err = serr // the pin did not keep it
			}
			release()
			return nil, nil, fmt.Errorf("%s: %w", recordName(kind, key), err)
		}
		return (&record{entry: e, slot: slot}).public(), release, nil
	}
}

// PinAt pins the record whose segment begins at off, for what this kernel was
// found to have mounted: one that an earlier process of this kernel has pinned,
// and that may have been removed since.
func (r *Reader) PinAt(off int64) (*Record, func(), error) {
	left, err := r.seat.left()
	if err != nil {
		return nil, nil, fmt.Errorf("pin segment at %d: %w", off, err)
	}
	for _, slot := range left {
		var b [recordSize]byte
		if _, err := r.w.ReadAt(b[:], slotOffset(slot)); err != nil {
			return nil, nil, fmt.Errorf("pin segment at %d: %w", off, err)
		}
		e, cond, _ := decodeEntry(b[:])
		if cond != condLive && cond != condRetired || e.word.kind() == KindChain || e.off != off {
			continue
		}
		// The pin is there: what it keeps cannot have gone.
		if _, err := r.seat.pin(slot, func() (bool, error) { return true, nil }); err != nil {
			return nil, nil, fmt.Errorf("pin segment at %d: %w", off, err)
		}
		return (&record{entry: e, slot: slot}).public(), r.release(slot), nil
	}
	return nil, nil, fmt.Errorf("pin segment at %d: %w", off, ErrNotFound)
}

// release returns what takes a pin back, once.
func (r *Reader) release(slot int) func() {
	return sync.OnceFunc(func() {
		if err := r.seat.unpin(slot); err != nil {
			log.L.WithError(err).WithField("record", slot).Warn("unpin")
		}
	})
}

// verify checks the segment of a pinned record, once.
func (r *Reader) verify(e *entry, slot int) error {
	if e.word.kind() == KindChain {
		return nil
	}
	r.mu.Lock()
	known := r.verified[slot]
	r.mu.Unlock()
	if known == e.word.life() {
		return nil
	}
	// An image's bounds reach to the end of the pool as it was when the image
	// was made.
	if err := r.refresh(); err != nil {
		return err
	}
	b, err := readSegment(r.region, e, r.sup.dataStart, r.Size())
	if err == nil {
		_, err = parseSegment(b, e.off, r.Size(), e.word.kind())
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.verified[slot] = e.word.life()
	r.mu.Unlock()
	return nil
}

// ReadSegment returns a copy of the record's segment, its digest verified.
//
// Preconditions: the record is pinned.
func (r *Reader) ReadSegment(rec *Record) ([]byte, error) {
	e := entry{off: rec.Offset, size: rec.Size, digest: rec.Digest}
	b, err := readSegment(r.region, &e, r.sup.dataStart, r.Size())
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", rec.Name(), err)
	}
	return b, nil
}

// ReleaseLeft takes back the pins that an earlier process of this kernel has
// left and that this one has not taken again by now.
func (r *Reader) ReleaseLeft() (n int, err error) { return releaseLeft(r.seat) }

func releaseLeft(s *seat) (n int, err error) {
	slots, err := s.left()
	if err != nil {
		return 0, err
	}
	for _, slot := range slots {
		if err := s.drop(slot); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// Check reports ErrFenced when this kernel has lost its seat: what it has mounted
// may be removed, and nothing new can be pinned.
func (r *Reader) Check() error { return r.seat.check() }

// Owner returns who owns the pool, or nil when nobody does: it was closed, or its
// owner's seat was taken away.
func (r *Reader) Owner() (*Seat, error) {
	ow, err := loadOwnerWord(r.w)
	if err != nil || ow.state() == ownedByNobody {
		return nil, err
	}
	s, _, ok, err := readSeat(r.w, &r.sup.geometry, ow.seat())
	if err != nil || !ok {
		return nil, err
	}
	return s, nil
}

// Seats lists the kernels at the pool.
func (r *Reader) Seats() ([]*Seat, error) { return readSeats(r.w, &r.sup.geometry, r.seat) }

// Close gives the seat up if nothing is pinned. Pins that are left, of what is
// mounted, stay, and so does the seat, for a later daemon of this kernel.
func (r *Reader) Close() error {
	r.mu.Lock()
	if r.closing {
		r.mu.Unlock()
		return nil
	}
	r.closing = true
	r.mu.Unlock()
	close(r.stop)
	r.beating.Wait()
	err := r.seat.leave()
	if errors.Is(err, ErrFenced) {
		err = nil // it is gone already
	}
	return errors.Join(err, r.seat.w.Close(), r.w.Close(), r.region.Close())
}
