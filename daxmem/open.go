package daxmem

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/uuid"
)

// Create writes an empty pool over all of region and opens it. A region that
// holds something where a pool begins is refused with ErrNotPool; what else a
// fixed one holds is overwritten. The pool owns the region from here on, also
// when Create fails.
func Create(ctx context.Context, region Region, opts Options) (*Pool, error) {
	p, err := create(ctx, region, opts)
	if err != nil {
		return nil, fmt.Errorf("create pool in %s: %w", region.Path(), errors.Join(err, region.Close()))
	}
	return p, nil
}

func create(ctx context.Context, region Region, opts Options) (*Pool, error) {
	opts = opts.within(region)
	if opts.MaxSize > region.Size() {
		if err := region.Grow(opts.MaxSize &^ (blockSize - 1)); err != nil {
			return nil, err
		}
	}
	size := region.Size() &^ (blockSize - 1)
	sup := &super{
		geometry: geometryFor(recordsFor(size)),
		uuid:     uuid.New(), createdSize: size, created: time.Now().UnixNano(),
	}
	if opts.SelfContained {
		sup.incompat |= featSelfContained
	}
	if size < sup.dataStart+2*blockSize {
		return nil, invalidf("%d bytes, want at least %d", size, sup.dataStart+2*blockSize)
	}
	boot, err := bootID(opts)
	if err != nil {
		return nil, err
	}
	head := make([]byte, sup.dataStart)
	if _, err := region.ReadAt(head, 0); err != nil {
		return nil, err
	}
	clear(head[ownerOffset:][:ownerSize]) // a creation that died may have come that far
	if !isZero(head) {
		return nil, fmt.Errorf("the region holds something already: %w", ErrNotPool)
	}
	// Not a hole: publishing and pinning must not depend on space.
	if err := writeZeros(region, superSize, sup.dataStart-superSize); err != nil {
		return nil, fmt.Errorf("write catalog and seats: %w", err)
	}
	// The superblock last: a pool that was not made completely has no magic. It
	// is not clean, so that open clears the rest: memory is what it was before.
	own := owner{seq: 0, size: size, boot: boot, state: ownerOpen}
	if _, err := region.WriteAt(own.encode(), own.offset()); err != nil {
		return nil, err
	}
	if err := region.Sync(); err != nil {
		return nil, err
	}
	if _, err := region.WriteAt(sup.encode(), 0); err != nil {
		return nil, err
	}
	return open(ctx, region, opts, false)
}

// Open opens a pool for its owner: the state is rebuilt from the catalog and
// the segments, what a crash left is cleared up, the owner epoch rises. After a
// loss of power, all that is not known to be durable is hashed. The pool owns
// the region from here on, also when Open fails.
func Open(ctx context.Context, region Region, opts Options) (*Pool, error) {
	p, err := open(ctx, region, opts, false)
	if err != nil {
		return nil, fmt.Errorf("open pool in %s: %w", region.Path(), errors.Join(err, region.Close()))
	}
	return p, nil
}

// OpenReadOnly opens a pool for inspection, beside its owner. Nothing is
// written; what it shows is as of now, and Check looks again.
func OpenReadOnly(ctx context.Context, region Region) (*Pool, error) {
	p, err := open(ctx, region, Options{SyncDelay: -1}, true)
	if err != nil {
		return nil, fmt.Errorf("open pool in %s: %w", region.Path(), errors.Join(err, region.Close()))
	}
	return p, nil
}

// OpenOrCreate opens the pool at a location, in its text form. It makes one
// where there is no file, of opts.MaxSize bytes, and in a region that begins
// with zeros: memory that is used for the first time, or a pool whose creation
// was cut short.
func OpenOrCreate(ctx context.Context, location string, opts Options) (*Pool, error) {
	region, err := OpenRegion(location)
	if errors.Is(err, os.ErrNotExist) && filepath.Dir(location) != "/dev" { // devices are not made
		if region, err = CreateFile(location, opts.MaxSize); err != nil {
			return nil, err
		}
		p, err := Create(ctx, region, opts)
		if err != nil {
			err = errors.Join(err, os.Remove(location))
		}
		return p, err
	}
	if err != nil {
		return nil, err
	}
	blank, err := Blank(region)
	if err != nil {
		return nil, fmt.Errorf("open pool in %s: %w", location, errors.Join(err, region.Close()))
	}
	if blank {
		return Create(ctx, region, opts)
	}
	return Open(ctx, region, opts)
}

// Blank reports whether a region begins with zeros where a pool, or something
// else, would begin.
func Blank(region Region) (bool, error) {
	head := make([]byte, min(superSize, region.Size()))
	if _, err := region.ReadAt(head, 0); err != nil {
		return false, err
	}
	return isZero(head), nil
}

func readSuper(region Region) (*super, *owner, error) {
	if region.Size() < blockSize {
		return nil, nil, fmt.Errorf("%d bytes, want at least %d: %w", region.Size(), blockSize, ErrNotPool)
	}
	b := make([]byte, blockSize)
	if _, err := region.ReadAt(b, 0); err != nil {
		return nil, nil, fmt.Errorf("read superblock: %w", err)
	}
	sup, err := decodeSuper(b)
	if err != nil {
		return nil, nil, err
	}
	own, err := decodeOwner(b)
	if err != nil {
		return nil, nil, err
	}
	if own.size < sup.createdSize || own.size%blockSize != 0 {
		return nil, nil, corruptf("superblock: size %d, %d at creation", own.size, sup.createdSize)
	}
	if region.Size() < own.size {
		return nil, nil, corruptf("region is cut short: %d bytes, the pool has %d", region.Size(), own.size)
	}
	return sup, own, nil
}

func open(ctx context.Context, region Region, opts Options, ro bool) (*Pool, error) {
	sup, own, err := readSuper(region)
	if err != nil {
		return nil, err
	}
	boot, err := bootID(opts)
	if err != nil {
		return nil, err
	}
	w, err := region.Window(0, sup.dataStart, !ro)
	if err != nil {
		return nil, err
	}
	p, err := openWith(ctx, region, w, sup, own, opts.within(region), boot, ro)
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return p, nil
}

// openWith is open with everything at hand.
func openWith(ctx context.Context, region Region, w Window, sup *super, own *owner, opts Options, boot [16]byte, ro bool) (_ *Pool, err error) {
	p := &Pool{
		region: region, opts: opts, ro: ro, w: w, ix: newIndex(w, &sup.geometry, sup.uuid),
		imports: map[*Import]struct{}{}, inflight: map[int64]int64{}, pending: map[*record]struct{}{}, withheld: map[int]bool{},
		syncs: make(chan struct{}, 1), kick: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	if !ro {
		defer func() {
			if err != nil {
				err = errors.Join(err, p.giveUp())
			}
		}()
		if err := p.acquire(sup, own, boot); err != nil {
			return nil, err
		}
		// Only now it is nobody else's.
		if _, own, err = readSuper(region); err != nil {
			return nil, err
		}
	}
	size := own.size
	if want := opts.MaxSize &^ (blockSize - 1); !ro && want > size {
		// A crash before the superblock tells of it leaves a longer file, no more.
		if want > region.Size() {
			if err := region.Grow(want); err != nil {
				return nil, fmt.Errorf("grow from %d to %d bytes: %w", size, want, err)
			}
			if err := region.Sync(); err != nil {
				return nil, err
			}
			step(stepRegionGrown)
		}
		size = want
	}
	clean := own.state == ownerClean
	lossy := own.state == ownerSuspect || own.state == ownerOpen && own.boot != boot && region.Persistent()
	// Beside a live owner nothing may be missing: hashing is Check's business.
	l, err := load(ctx, region, w, sup, size, lossy && !ro)
	if err != nil {
		return nil, err
	}
	p.books, p.own, p.limit = l.books, *own, size
	p.avail = slices.DeleteFunc(p.avail, func(slot int) bool { return p.withheld[slot] })
	if ro {
		return p, nil
	}
	if m := opts.MaxSize; m > 0 && m < size {
		if used := p.usedBytes(); m < used {
			return nil, fmt.Errorf("maximum %d bytes, %d are in use: %w", m, used, ErrTooSmall)
		}
		p.limit = m
	}
	p.own.epoch++
	p.own.size, p.own.boot, p.own.state = size, boot, ownerOpen
	if lossy {
		// Dying from here on must not make the next Open believe what this one
		// has not finished to prove.
		p.own.state = ownerSuspect
	}
	if err := p.repair(ctx, l, clean && l.complete(), lossy); err != nil {
		return nil, err
	}
	if err := p.serve(); err != nil {
		return nil, err
	}
	p.startSyncer()
	return p, nil
}
