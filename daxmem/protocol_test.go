package daxmem

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// depth is how many preemptions an exploration has: more with more time.
func depth(short, long int) int {
	if testing.Short() {
		return short
	}
	return long
}

// wrapping puts a broken window in place of an actor's.
type wrapping func(Window) Window

// must looks a layer up that is there all the time.
func must(r *Reader, name string) error {
	rec, err := r.Layer(key(name))
	if err != nil {
		return violates("X", "%s is LIVE all the time, and a lookup says: %v", name, err)
	}
	if rec.Key != key(name) {
		return violates("G", "lookup of %s found another record", name)
	}
	return nil
}

// may looks a layer up that comes or goes meanwhile: all of it or nothing.
func may(r *Reader, name string) error {
	e, _, err := r.lookup(KindLayer, key(name))
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if e.key != key(name) || e.entries != 1 {
		return violates("P", "lookup of %s found %x with %d entries", name, e.key[:8], e.entries)
	}
	return nil
}

func publish(p *Pool, name string) error {
	_, err := tryLayer(p, key(name), filesOf(name))
	return err
}

// removeNow removes a layer if nobody has it pinned, and frees its slot.
func removeNow(p *Pool, name string) error {
	if err := p.Remove(bg, KindLayer, key(name)); err != nil && !errors.Is(err, ErrInUse) {
		return err
	}
	return p.Sync(bg)
}

// Two explorations of a lookup: while the owner publishes, and while it removes
// a record in front and uses its slot for one of another chain.
func lookups(read wrapping, write wrapping, owner func(p *Pool) error) func(w *world) {
	return func(w *world) {
		o := w.actor("owner", anOwner)
		if err := o.tryOpen(0, write); err != nil {
			panic(err)
		}
		o.script = func() error { return owner(o.pool) }
		a, r := w.reader(1, read)
		a.script = func() error {
			for _, name := range []string{fresh, gone} {
				if err := may(r, name); err != nil {
					return err
				}
			}
			return must(r, stays)
		}
	}
}

func publishes(p *Pool) error { return publish(p, fresh) }

func reuses(p *Pool) error {
	if err := removeNow(p, gone); err != nil {
		return err
	}
	return publish(p, apart)
}

func TestModelLookupWhilePublishing(t *testing.T) {
	holds(t, bounds{preemptions: depth(2, 4)}, lookups(nil, nil, publishes))
}

func TestModelLookupWhileReusing(t *testing.T) {
	holds(t, bounds{preemptions: depth(2, 3)}, lookups(nil, nil, reuses))
}

// A lookup while owners of one kernel open the pool twice, and publish between:
// the copy of the index that counts is another one, and then the first again.
func TestModelLookupWhileOpening(t *testing.T) {
	holds(t, bounds{preemptions: depth(3, 3)}, lookups(nil, nil, func(p *Pool) error {
		return errors.Join(p.serve(), publish(p, fresh), p.serve())
	}))
}

// pins: readers pin what the owner removes; in the end all is free.
func pins(readers int, read, write wrapping) func(w *world) {
	return func(w *world) {
		o := w.actor("owner", anOwner)
		if err := o.tryOpen(0, write); err != nil {
			panic(err)
		}
		o.script = func() error { return reuses(o.pool) }
		for n := range readers {
			a, r := w.reader(1+n, read)
			a.script = func() error {
				found, release, err := w.judge.pin(a, r, gone)
				if errors.Is(err, ErrNotFound) {
					return nil
				}
				if err != nil {
					return err
				}
				if found {
					release()
				}
				return nil
			}
		}
		w.ends = append(w.ends, func() error { return released(o.pool) })
	}
}

// released says that nothing is left when nobody has a pin any more.
func released(p *Pool) error {
	if err := p.Remove(bg, KindLayer, key(gone)); err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("after the last release: %w", err)
	}
	for range 2 {
		if err := p.Sync(bg); err != nil {
			return err
		}
	}
	if len(p.leaving)+len(p.limbo) > 0 {
		return fmt.Errorf("after the last release: %d leaving, %d in limbo", len(p.leaving), len(p.limbo))
	}
	return nil
}

func TestModelPinWhileRemoving(t *testing.T) {
	holds(t, bounds{preemptions: depth(3, 5)}, pins(1, nil, nil))
}

func TestModelTwoPins(t *testing.T) {
	holds(t, bounds{preemptions: depth(2, 3)}, pins(2, nil, nil))
}

// claims: kernels that come at once, for the seats that are left.
func claims(kernels, left int, wrap wrapping) func(w *world) {
	return func(w *world) {
		for n := range seatCount - 1 - left { // seat 0 is the base's owner's
			w.mem.write(le.AppendUint64(nil, uint64(makeSeatWord(seatHeld, 1))), w.g.seat(n+1))
			l := lease{Identity{Boot: bootOf(100 + n)}, 1}
			w.mem.write(l.encode(), w.g.seat(n+1)+leaseAt)
		}
		for n := range kernels {
			a := w.actor(fmt.Sprintf("claimant %d", n), aClaimant)
			win := Window(actorWindow{a})
			if wrap != nil {
				win = wrap(win)
			}
			a.script = func() error {
				s, err := claimSeat(win, w.g, Identity{Boot: bootOf(1 + n)}, -1, false)
				if err != nil && !errors.Is(err, ErrSeats) {
					return err
				}
				a.seat = s
				return nil
			}
		}
		w.ends = append(w.ends, func() error {
			sits := map[int]string{}
			for _, a := range w.actors {
				if a.seat == nil {
					continue
				}
				if other := sits[a.seat.number]; other != "" {
					return violates("W", "%s and %s are both in seat %d", a.name, other, a.seat.number)
				}
				sits[a.seat.number] = a.name
				s, word, ok, err := readSeat(memWindow{w.mem}, w.g, a.seat.number)
				if err != nil || !ok || word != a.seat.word || s.Damaged != "" || s.Boot != bootOf(1+a.id) {
					return violates("W", "seat %d of %s: %+v", a.seat.number, a.name, s)
				}
			}
			if want := min(kernels, left); len(sits) != want {
				return fmt.Errorf("%d of %d kernels have one of %d seats", len(sits), kernels, left)
			}
			return nil
		})
	}
}

func TestModelTwoClaimants(t *testing.T) {
	holds(t, bounds{preemptions: depth(3, 6)}, claims(2, 2, nil))
}
func TestModelThreeClaimants(t *testing.T) {
	holds(t, bounds{preemptions: depth(1, 2)}, claims(3, 3, nil))
}
func TestModelOneSeatLeft(t *testing.T) {
	holds(t, bounds{preemptions: depth(2, 3)}, claims(3, 1, nil))
}

// evictions: the operator evicts a reader that is not gone, the owner removes
// what it had pinned, and another kernel takes its seat.
func evictions(late wrapping) func(w *world) {
	return func(w *world) {
		o := w.actor("owner", anOwner)
		p := o.open(0)
		a, r := w.reader(1, late)
		op := w.actor("operator", anOperator)
		o.script = func() error { return removeNow(p, gone) }
		a.script = func() error {
			_, release, err := w.judge.pin(a, r, gone)
			if errors.Is(err, ErrFenced) || errors.Is(err, ErrNotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			release()
			return nil
		}
		op.script = func() error {
			at := a.seat.number
			if err := evictSeat(actorWindow{op}, w.g, at, a.seat.word); err != nil {
				return err
			}
			op.role = aClaimant
			s, err := claimSeat(actorWindow{op}, w.g, Identity{Boot: bootOf(5)}, at, false)
			if err != nil {
				return err
			}
			op.role, op.seat = aReader, s
			return nil
		}
	}
}

func TestModelEviction(t *testing.T) {
	holds(t, bounds{preemptions: depth(2, 3)}, evictions(nil))
}

// takeovers: the former owner's seat was evicted, and it goes on.
func takeovers(former func(p *Pool) error, wrap wrapping) func(w *world) {
	return func(w *world) {
		o := w.actor("former owner", anOwner)
		p := o.open(0)
		o.script = func() error {
			if err := former(p); err != nil && !errors.Is(err, ErrFenced) && !errors.Is(err, ErrSeats) && !errors.Is(err, ErrOwned) {
				return err
			}
			return nil
		}
		n := w.actor("new owner", anOwner)
		n.script = func() error {
			err := evictSeat(actorWindow{n}, w.g, p.seat.number, p.seat.word)
			if err != nil && !errors.Is(err, ErrSeats) { // it may have left
				return err
			}
			if err := n.tryOpen(2, wrap); err != nil {
				if errors.Is(err, ErrOwned) && p.closing {
					return nil // the word changed meanwhile: it was let go of
				}
				return err
			}
			// Into the slots that are free now.
			for _, name := range []string{"new 1", "new 2"} {
				if _, err := tryLayer(n.pool, key(name), randomBytes(9, 3000)); err != nil && !errors.Is(err, ErrFull) {
					return err
				}
			}
			return n.pool.Sync(bg)
		}
		w.ends = append(w.ends, func() error {
			if w.judge.tainted || n.pool == nil {
				return nil
			}
			if err := checkPool(n.pool); err != nil {
				return err
			}
			return released(n.pool)
		})
	}
}

func TestModelTakeoverFromPublisher(t *testing.T) {
	holds(t, bounds{preemptions: depth(1, 3)}, takeovers(publishes, nil))
}

func TestModelTakeoverFromSyncer(t *testing.T) {
	holds(t, bounds{preemptions: depth(2, 3)}, takeovers(func(p *Pool) error {
		return errors.Join(publish(p, fresh), p.Sync(bg))
	}, nil))
}

func TestModelTakeoverFromCollector(t *testing.T) {
	holds(t, bounds{preemptions: depth(1, 3)}, takeovers(func(p *Pool) error { return removeNow(p, gone) }, nil))
}

func TestModelTakeoverFromClosing(t *testing.T) {
	holds(t, bounds{preemptions: depth(1, 3)}, takeovers(func(p *Pool) error { return p.Close() }, nil))
}

// Two kernels take the pool at once: one gets it.
func TestModelTwoTakeovers(t *testing.T) {
	holds(t, bounds{preemptions: depth(1, 2)}, func(w *world) {
		word := seatWord(w.mem.load(w.g.seat(0)))
		if err := evictSeat(memWindow{w.mem}, w.g, 0, word); err != nil {
			panic(err)
		}
		for n := range 2 {
			a := w.actor(fmt.Sprintf("owner %d", n), anOwner)
			a.script = func() error {
				err := a.tryOpen(1+n, nil)
				if errors.Is(err, ErrOwned) || errors.Is(err, ErrSeats) {
					return nil
				}
				return err
			}
		}
		w.ends = append(w.ends, func() error {
			owners := 0
			for _, a := range w.actors {
				if a.pool != nil && a.pool.mayWrite() == nil {
					owners++
				}
			}
			if owners != 1 {
				return violates("F", "%d kernels own the pool", owners)
			}
			return nil
		})
	})
}

// The owner's process ends at any of its writes; a reader has a pin meanwhile.
// What follows is in judge.end.
func crashes(owner func(p *Pool) error) func(w *world) {
	return func(w *world) {
		o := w.actor("owner", anOwner)
		p := o.open(0)
		o.mortal = true
		o.script = func() error { return owner(p) }
		a, r := w.reader(1, nil)
		a.script = func() error {
			if _, _, err := w.judge.pin(a, r, gone); err != nil && !errors.Is(err, ErrNotFound) {
				return err
			}
			return must(r, stays)
		}
	}
}

func TestModelCrashPublishing(t *testing.T) {
	holds(t, bounds{preemptions: depth(1, 2), kills: 1}, crashes(publishes))
}

func TestModelCrashRemoving(t *testing.T) {
	holds(t, bounds{preemptions: depth(1, 2), kills: 1}, crashes(reuses))
}

func TestModelCrashClosing(t *testing.T) {
	holds(t, bounds{preemptions: depth(1, 2), kills: 1}, crashes(func(p *Pool) error { return p.Close() }))
}

// A new owner ends at any write of its takeover, and the former one goes on
// when another has taken over in turn.
func TestModelCrashInTakeover(t *testing.T) {
	holds(t, bounds{preemptions: depth(0, 1), kills: 1}, func(w *world) {
		takeovers(publishes, nil)(w)
		n := w.actors[1]
		n.mortal = true
		w.ends = w.ends[:0]
		first := n.script
		n.script = func() error { return first() }
		again := w.actor("new owner again", anOwner)
		again.script = func() error { return nil }
		w.ends = append(w.ends, func() error {
			if !n.dead || w.judge.tainted {
				return nil
			}
			return secondTakeover(w, again)
		})
	})
}

// secondTakeover opens the pool on the kernel whose takeover was cut short: the
// first owner must be fenced by then.
func secondTakeover(w *world, a *actor) error {
	if ow := w.judge.ow(); ow.state() == owned && ow.seat() == w.actors[0].pool.seat.number {
		return nil // not begun
	}
	if err := a.tryOpen(2, nil); err != nil {
		return err
	}
	former := w.actors[0].pool
	r := former.live[recordKey{KindLayer, key(stays)}]
	if r == nil {
		return nil
	}
	if err := former.writeWord(r, stateRetired); err == nil {
		return violates("F", "the former owner made record %d RETIRED", r.slot)
	}
	return nil
}

// asks: a reader asks, gives up, and asks for something else, with the owner
// anywhere in its answer.
func asks(read, write wrapping) func(w *world) {
	return func(w *world) {
		o := w.actor("owner", anOwner)
		if err := o.tryOpen(0, write); err != nil {
			panic(err)
		}
		p := o.pool
		a, r := w.reader(1, read)
		asked := []Request{
			{Kind: AskFlatten, Chain: key("one"), Name: strings.Repeat("1", 300)},
			{Kind: AskConvert, Chain: key("two"), Name: strings.Repeat("2", 350)},
		}
		over, cancel := context.WithCancel(bg)
		cancel()
		done := map[string]bool{}
		a.script = func() error {
			for _, q := range asked {
				err := r.Ask(over, &q)
				if err == nil && !done[q.Name] {
					return fmt.Errorf("violates the mailbox: %q was answered and not done", q.Name)
				}
				if err != nil && !errors.Is(err, context.Canceled) {
					return err
				}
			}
			return nil
		}
		o.script = func() error {
			for range 2 {
				number, q, err := p.nextRequest(a.seat.number)
				if err != nil {
					return err
				}
				if number == 0 {
					continue
				}
				var odd error
				p.answer(bg, a.seat.number, number, q, func(_ context.Context, q *Request) error {
					for _, is := range asked {
						if q.Kind == is.Kind && q.Chain == is.Chain && q.Name == is.Name {
							done[q.Name] = true
							return nil
						}
					}
					odd = fmt.Errorf("violates the mailbox: nobody has asked for %v", q)
					return odd
				})
				if odd != nil {
					return odd
				}
			}
			return nil
		}
	}
}

func TestModelMailbox(t *testing.T) {
	holds(t, bounds{preemptions: depth(2, 3)}, asks(nil, nil))
}

// A seat that was another's: what it was answered is no answer to the next one.
func TestModelMailboxOfFormerHolder(t *testing.T) {
	holds(t, bounds{preemptions: depth(2, 3)}, func(w *world) {
		s := makeSeatWord(seatFree, 0)
		for n := range seatCount { // the next claim gets a seat with a reply in it
			at := w.g.reply(n)
			w.mem.write(le.AppendUint64(le.AppendUint64(nil, 1), outcomeDone), at)
		}
		_ = s
		asks(nil, nil)(w)
	})
}
