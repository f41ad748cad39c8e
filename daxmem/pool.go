package daxmem

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/containerd/log"
	"github.com/google/uuid"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// Options of a pool. The zero value is usable.
type Options struct {
	// MaxSize is how many bytes the pool may use; Open grows the region to it.
	// Smaller than the region: the region stays, and no more is allocated once
	// that much is in use. 0: the region's size.
	MaxSize int64

	// SyncOnPublish makes a publication wait until it is durable.
	SyncOnPublish bool

	// SyncDelay is how long the background sync waits for company after a
	// publication or removal. 0: 200 ms. Negative: no background sync, only
	// Sync, Close and a full pool sync.
	SyncDelay time.Duration

	// bootID stands in for the kernel's, in tests.
	bootID func() ([16]byte, error)
}

// Pool is an allocator and a catalog over one region. All methods are safe for
// concurrent use.
type Pool struct {
	region Region
	opts   Options
	ro     bool
	limit  int64 // bytes that may be in use, superblock and catalog included

	mu sync.Mutex
	*books
	own     owner
	closing bool
	syncErr error // sticky: what a failed sync left on the medium is not known

	imports  map[*Import]struct{}
	inflight map[int64]int64      // allocated, not yet in the books, by offset
	lost     []span               // could not be zeroed, so never given out again
	pending  map[*record]struct{} // published, not yet durable
	limbo    []retired            // removed, not yet reusable; oldest first

	ops    sync.WaitGroup // running calls that use the region
	syncs  chan struct{}  // one token: the right to run syncOnce
	kick   chan struct{}
	stop   chan struct{}
	syncer sync.WaitGroup
}

// Create writes an empty pool over all of region, which must read as zeros,
// and opens it. The pool owns the region from here on, also when Create fails.
func Create(ctx context.Context, region Region, opts Options) (*Pool, error) {
	p, err := create(ctx, region, opts)
	if err != nil {
		return nil, fmt.Errorf("create pool in %s: %w", region.Path(), errors.Join(err, region.Close()))
	}
	return p, nil
}

func create(ctx context.Context, region Region, opts Options) (*Pool, error) {
	if opts.MaxSize > region.Size() {
		if err := region.Grow(opts.MaxSize &^ (blockSize - 1)); err != nil {
			return nil, err
		}
	}
	size := region.Size() &^ (blockSize - 1)
	records := recordsFor(size)
	sup := &super{
		uuid: uuid.New(), createdSize: size, records: records,
		dataStart: disk.AlignUp(int64(catalogStart)+int64(records)*recordSize, blockSize),
		created:   time.Now().UnixNano(),
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
	// The superblock last: a pool that was not made completely has no magic.
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

// OpenOrCreate opens the pool in the file at path, or makes one of
// opts.MaxSize bytes where there is no file, or one whose creation was cut
// short.
func OpenOrCreate(ctx context.Context, path string, opts Options) (*Pool, error) {
	region, err := OpenFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if region, err = CreateFile(path, opts.MaxSize); err != nil {
			return nil, err
		}
		p, err := Create(ctx, region, opts)
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
		return p, err
	}
	if err != nil {
		return nil, err
	}
	head := make([]byte, min(superSize, region.Size()))
	if _, err := region.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("open pool in %s: %w", path, errors.Join(err, region.Close()))
	}
	if isZero(head) {
		return Create(ctx, region, opts)
	}
	return Open(ctx, region, opts)
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
		}
		size = want
	}
	clean := own.state == ownerClean
	lossy := own.state == ownerSuspect || own.state == ownerOpen && own.boot != boot
	// Beside a live owner nothing may be missing: hashing is Check's business.
	l, err := load(ctx, region, sup, size, lossy && !ro)
	if err != nil {
		return nil, err
	}
	p := &Pool{
		region: region, opts: opts, ro: ro, books: l.books, own: *own, limit: size,
		imports: map[*Import]struct{}{}, inflight: map[int64]int64{}, pending: map[*record]struct{}{},
		syncs: make(chan struct{}, 1), kick: make(chan struct{}, 1), stop: make(chan struct{}),
	}
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
	if err := p.repair(ctx, l, clean && len(l.drops) == 0, lossy); err != nil {
		return nil, err
	}
	p.startSyncer()
	return p, nil
}

// repair makes the medium agree with what was loaded.
func (p *Pool) repair(ctx context.Context, l *loader, clean, lossy bool) error {
	if err := p.writeOwner(); err != nil {
		return err
	}
	for _, r := range l.drops {
		if r.word.state() != stateLive {
			continue
		}
		if err := p.writeWord(r, stateRetired); err != nil {
			return err
		}
	}
	if !clean {
		// What this process finds retired may be so in the page cache only.
		if err := p.region.Sync(); err != nil {
			return err
		}
	}
	for _, r := range l.drops {
		log.G(ctx).WithField("record", r.slot).WithField("word", r.word).Info("drop unfinished catalog record")
		if err := p.clearSlot(r); err != nil {
			return err
		}
	}
	for r := range p.bad {
		log.G(ctx).WithField("record", recordName(r.word.kind(), r.key)).WithField("slot", r.slot).
			WithField("reason", r.why).Warn("quarantine catalog record")
		if err := p.markBad(r); err != nil {
			return err
		}
	}
	if !clean {
		// Imports that died left bytes behind (invariant Z).
		for off, n := range p.alloc.All() {
			if err := p.region.Punch(off, n); err != nil {
				return err
			}
		}
	}
	for _, r := range p.live {
		if r.flags&flagDurable == 0 {
			p.pending[r] = struct{}{}
		}
	}
	if lossy {
		p.own.state = ownerOpen
		return p.writeOwner()
	}
	return nil
}

// markBad makes a quarantine last: what failed under suspicion once must not
// be believed by an Open that has no reason to hash. A record whose own
// checksum is wrong says so itself.
func (p *Pool) markBad(r *record) error {
	b := make([]byte, recordSize)
	if _, err := p.region.ReadAt(b, slotOffset(r.slot)); err != nil {
		return err
	}
	e, cond, _ := decodeEntry(b)
	if cond != condLive || e.flags&flagQuarantined != 0 {
		return nil
	}
	e.flags |= flagQuarantined
	r.flags = e.flags
	_, err := p.region.WriteAt(e.flagWord(), slotOffset(r.slot)+8)
	return err
}

func (p *Pool) writeOwner() error {
	p.own.seq++
	if _, err := p.region.WriteAt(p.own.encode(), p.own.offset()); err != nil {
		return fmt.Errorf("write superblock: %w", err)
	}
	return nil
}

// writeWord changes a record's state on the medium, and in memory when that
// succeeded.
func (p *Pool) writeWord(r *record, s state) error {
	w := makeWord(s, r.word.kind(), r.word.generation())
	if _, err := p.region.WriteAt(le.AppendUint64(nil, uint64(w)), slotOffset(r.slot)); err != nil {
		return fmt.Errorf("write state of catalog record %d: %w", r.slot, err)
	}
	r.word = w
	return nil
}

// clearSlot makes a slot FREE on the medium; the generation stays.
func (p *Pool) clearSlot(r *record) error {
	b := make([]byte, recordSize)
	le.PutUint64(b, uint64(makeWord(stateFree, 0, r.word.generation())))
	if _, err := p.region.WriteAt(b, slotOffset(r.slot)); err != nil {
		return fmt.Errorf("free catalog record %d: %w", r.slot, err)
	}
	return nil
}

// usedBytes counts what is not free, superblock and catalog included.
func (p *Pool) usedBytes() int64 { return p.size - p.alloc.FreeBytes() }

// Close waits for running calls, gives up unfinished imports, makes everything
// durable and marks the pool as clean. It removes nothing.
func (p *Pool) Close() error {
	p.mu.Lock()
	if p.closing {
		p.mu.Unlock()
		return nil
	}
	p.closing = true
	p.mu.Unlock()
	if p.ro {
		p.ops.Wait()
		return p.region.Close()
	}
	close(p.stop)
	p.syncer.Wait()
	p.ops.Wait()
	for imp := range p.imports {
		imp.abort()
	}
	err := p.finish()
	return errors.Join(err, p.region.Close())
}

func (p *Pool) finish() error {
	// Twice: the first makes removals durable and then frees their records.
	if err := p.syncOnce(); err != nil {
		return err
	}
	if err := p.region.Sync(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.lost) > 0 {
		return nil // free space is not all zero: not clean
	}
	p.own.state = ownerClean
	if err := p.writeOwner(); err != nil {
		return err
	}
	return p.region.Sync()
}

// begin enters a call that uses the region; end leaves it.
func (p *Pool) begin() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing {
		return ErrClosed
	}
	p.ops.Add(1)
	return nil
}

func (p *Pool) beginWrite() error {
	if p.ro {
		return ErrReadOnly
	}
	return p.begin()
}

func (p *Pool) end() { p.ops.Done() }

// UUID identifies the pool wherever its region is mapped.
func (p *Pool) UUID() uuid.UUID { return p.sup.uuid }

// Region is the memory the pool lives in, for engines that mount from it.
func (p *Pool) Region() Region { return p.region }

// Size is the bytes of the region that the pool uses.
func (p *Pool) Size() int64 { return p.size }

func bootID(opts Options) ([16]byte, error) {
	if opts.bootID != nil {
		return opts.bootID()
	}
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return [16]byte{}, fmt.Errorf("read boot ID: %w", err)
	}
	var id [16]byte
	if _, err := hex.Decode(id[:], []byte(strings.ReplaceAll(strings.TrimSpace(string(b)), "-", ""))); err != nil {
		return id, fmt.Errorf("parse boot ID %q: %w", b, err)
	}
	return id, nil
}

func unixNano(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}
