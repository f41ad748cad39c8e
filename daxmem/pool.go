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

	"github.com/google/uuid"
)

// Options of a pool. The zero value is usable.
type Options struct {
	// MaxSize is how many bytes the pool may use; Open grows the region to it,
	// where the region is not fixed. Smaller than the region: the region stays,
	// and no more is allocated once that much is in use. 0: the region's size.
	MaxSize int64

	// SelfContained is for Create: every image of the pool has copies of its
	// files of its own, which costs space, and is what a file system needs that
	// cannot share pages between inodes.
	SelfContained bool

	// SyncOnPublish makes a publication wait until it is durable.
	SyncOnPublish bool

	// SyncDelay is how long the background sync waits for company after a
	// publication or removal. 0: 200 ms. Negative: no background sync, only
	// Sync, Close and a full pool sync.
	SyncDelay time.Duration

	// Instance is what the operator calls this kernel, or empty. No two kernels
	// may have the same: an earlier boot of it loses its seat to a later one.
	Instance string

	// Holder tells daemons of one kernel apart, and people which it is: host name
	// and directory. Two processes with the same must not be at the pool at once.
	Holder string

	// Seat is the seat of this kernel, which memory without compare-and-swap
	// needs to be told; nil: any.
	Seat *int

	// bootID stands in for the kernel's, in tests.
	bootID func() ([16]byte, error)
}

// HolderName is what a seat has of Options.Holder: the end of a long one, behind
// a part of its digest, since a seat must not be taken for another's.
func HolderName(holder string) string {
	if len(holder) <= identityText {
		return holder
	}
	digest := hashBytes([]byte(holder))
	mark := hex.EncodeToString(digest[:8]) + "…"
	return mark + holder[len(holder)-(identityText-len(mark)):]
}

func (opts Options) seat() int {
	if opts.Seat == nil {
		return -1
	}
	return *opts.Seat
}

// within returns opts for a pool in region.
func (opts Options) within(region Region) Options {
	if region.Fixed() {
		opts.MaxSize = min(opts.MaxSize, region.Size())
	}
	return opts
}

// Pool is an allocator and a catalog over one region. All methods are safe for
// concurrent use.
type Pool struct {
	region Region
	opts   Options
	ro     bool
	limit  int64 // bytes that may be in use, superblock and catalog included

	// What other kernels see too. Not for a pool that was opened for inspection.
	w    Window // up to data start
	seat *seat
	ix   *index

	mu sync.Mutex
	*books
	own     owner
	ow      ownerWord // as this owner wrote it
	closing bool
	syncErr error // sticky: what a failed sync left on the medium is not known

	imports  map[*Import]struct{}
	inflight map[int64]int64      // allocated, not yet in the books, by offset
	lost     []span               // could not be zeroed, so never given out again
	pending  map[*record]struct{} // published, not yet durable
	limbo    []retired            // removed, not yet reusable; oldest first
	withheld map[int]bool         // slots that a former owner may still write
	reclaim  func(ctx context.Context) bool

	ops    sync.WaitGroup // running calls that use the region
	syncs  chan struct{}  // one token: the right to run syncOnce
	kick   chan struct{}
	stop   chan struct{}
	syncer sync.WaitGroup
}

func (p *Pool) writeOwner() error {
	if err := p.mayWrite(); err != nil {
		return err
	}
	p.own.seq++
	if _, err := p.region.WriteAt(p.own.encode(), p.own.offset()); err != nil {
		return fmt.Errorf("write superblock: %w", err)
	}
	return nil
}

// writeWord changes a record's state on the medium, and in memory when that
// succeeded.
func (p *Pool) writeWord(r *record, s state) error {
	return p.swapWord(r, makeWord(s, r.word.kind(), r.word.generation(), p.ow.fence()))
}

// swapWord replaces the state word that the books have for the record's slot.
// Another one there is another owner's, or damage.
func (p *Pool) swapWord(r *record, now word) error {
	old := p.words[r.slot]
	ok, err := p.w.CompareAndSwap(slotOffset(r.slot), uint64(old), uint64(now))
	if err == nil && !ok {
		if err = p.mayWrite(); err == nil {
			err = corruptf("it is not %v any more", old)
		}
	}
	if err != nil {
		return fmt.Errorf("write state of catalog record %d: %w", r.slot, err)
	}
	p.words[r.slot], r.word = now, now
	return nil
}

// clearSlot makes a slot FREE on the medium; the generation stays.
func (p *Pool) clearSlot(r *record) error {
	if err := p.mayWrite(); err != nil {
		return err
	}
	if _, err := p.w.WriteAt(make([]byte, recordSize-8), slotOffset(r.slot)+8); err != nil {
		return fmt.Errorf("clear catalog record %d: %w", r.slot, err)
	}
	step(stepRecordCleared)
	if err := p.swapWord(r, makeWord(stateFree, 0, r.word.generation(), p.ow.fence())); err != nil {
		return err
	}
	step(stepRecordFree)
	return nil
}

// mayWrite reports ErrFenced when another kernel has taken the pool over.
func (p *Pool) mayWrite() error {
	now, err := loadOwnerWord(p.w)
	if err != nil {
		return err
	}
	if now != p.ow {
		return fmt.Errorf("pool %s is %v, it was %v: %w", p.region.Path(), now, p.ow, ErrFenced)
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
		return errors.Join(p.w.Close(), p.region.Close())
	}
	close(p.stop)
	p.syncer.Wait()
	p.ops.Wait()
	for imp := range p.imports {
		imp.abort()
	}
	err := p.finish()
	if err == nil {
		err = p.disown()
	}
	return errors.Join(err, p.w.Close(), p.region.Close())
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
	step(stepBeforeClean)
	p.own.state = ownerClean
	if err := p.writeOwner(); err != nil {
		return err
	}
	step(stepPoolClean)
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

// SelfContained reports whether the pool was created for self-contained images:
// PublishSelfContained is used in place of PublishImage.
func (p *Pool) SelfContained() bool { return p.sup.incompat&featSelfContained != 0 }

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
