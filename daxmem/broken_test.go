package daxmem

import "testing"

// Variants of the protocol that are broken on purpose, by a window that leaves
// out, delays or falsifies what the code does: the explorations of
// protocol_test.go find each of them.

// brokenWindow is a window with some methods replaced.
type brokenWindow struct {
	Window
	load  func(off int64) (uint64, error)
	store func(off int64, v uint64) error
	cas   func(off int64, old, v uint64) (bool, error)
	write func(p []byte, off int64) (int, error)
}

func (w *brokenWindow) Load(off int64) (uint64, error) {
	if w.load != nil {
		return w.load(off)
	}
	return w.Window.Load(off)
}

func (w *brokenWindow) Store(off int64, v uint64) error {
	if w.store != nil {
		return w.store(off, v)
	}
	return w.Window.Store(off, v)
}

func (w *brokenWindow) CompareAndSwap(off int64, old, v uint64) (bool, error) {
	if w.cas != nil {
		return w.cas(off, old, v)
	}
	return w.Window.CompareAndSwap(off, old, v)
}

func (w *brokenWindow) WriteAt(p []byte, off int64) (int, error) {
	if w.write != nil {
		return w.write(p, off)
	}
	return w.Window.WriteAt(p, off)
}

// part says what a word of the shared structures is.
func part(off int64) string {
	g := &interSuper.geometry
	switch {
	case off == g.moves(0) || off == g.moves(1):
		return "moves"
	case off >= catalogStart && off < g.index && (off-catalogStart)%recordSize == 0:
		return "state word"
	case off >= g.seats && off < g.dataStart:
		switch at := (off - g.seats) % g.seatSize; {
		case at == 0:
			return "seat word"
		case at >= seatPins && at < seatPins+g.pinsSize:
			return "pins"
		}
	}
	return ""
}

// The reader's pin becomes visible only after it has looked at the record, as it
// would without sequential consistency, or with the two steps exchanged.
func TestBrokenPinAfterCheck(t *testing.T) {
	bites(t, bounds{preemptions: 3}, "violates K", pins(1, func(w Window) Window {
		var late func() error
		return &brokenWindow{
			Window: w,
			store: func(off int64, v uint64) error {
				if part(off) != "pins" || v == 0 {
					return w.Store(off, v)
				}
				late = func() error { return w.Store(off, v) }
				return nil
			},
			load: func(off int64) (uint64, error) {
				v, err := w.Load(off)
				if f := late; f != nil && part(off) == "state word" {
					if late = nil; err == nil {
						err = f()
					}
				}
				return v, err
			},
		}
	}, nil))
}

// cached gives each word of a part as it was when it was loaded first.
func cached(what string) wrapping {
	return func(w Window) Window {
		seen := map[int64]uint64{}
		return &brokenWindow{Window: w, load: func(off int64) (uint64, error) {
			if v, ok := seen[off]; ok && part(off) == what {
				return v, nil
			}
			v, err := w.Load(off)
			if w.(actorWindow).a.w.on {
				seen[off] = v
			}
			return v, err
		}}
	}
}

// The owner looks at the pins before the record is RETIRED, and not again.
func TestBrokenPinsBeforeRetired(t *testing.T) {
	bites(t, bounds{preemptions: 3}, "violates K", pins(1, nil, cached("pins")))
}

// The reader does not look at its seat's word again when it has set a pin.
func TestBrokenSeatNotChecked(t *testing.T) {
	bites(t, bounds{preemptions: 3}, "violates K", evictions(cached("seat word")))
}

// The owner does not say that it has taken a record out of its chain.
func TestBrokenMoves(t *testing.T) {
	bites(t, bounds{preemptions: 3}, "violates X", lookups(nil, func(w Window) Window {
		return &brokenWindow{Window: w, store: func(off int64, v uint64) error {
			if part(off) == "moves" {
				return nil
			}
			return w.Store(off, v)
		}}
	}, reuses))
}

// A takeover leaves the state words as they are.
func TestBrokenFence(t *testing.T) {
	bites(t, bounds{preemptions: 2}, "violates F", takeovers(func(p *Pool) error { return removeNow(p, gone) }, func(w Window) Window {
		return &brokenWindow{Window: w, cas: func(off int64, old, v uint64) (bool, error) {
			if part(off) == "state word" && word(old).fenced(0) == word(v).fenced(0) {
				return true, nil
			}
			return w.CompareAndSwap(off, old, v)
		}}
	}))
}

// The payload comes after LIVE.
func TestBrokenPayloadLate(t *testing.T) {
	bites(t, bounds{preemptions: 1}, "violates P", lookups(nil, func(w Window) Window {
		var late func() error
		return &brokenWindow{
			Window: w,
			write: func(p []byte, off int64) (int, error) {
				if off < catalogStart || off >= interSuper.index {
					return w.WriteAt(p, off)
				}
				late = func() error { _, err := w.WriteAt(p, off); return err }
				return len(p), nil
			},
			cas: func(off int64, old, v uint64) (bool, error) {
				ok, err := w.CompareAndSwap(off, old, v)
				if f := late; f != nil && word(v).state() == stateLive && err == nil {
					late, err = nil, f()
				}
				return ok, err
			},
		}
	}, publishes))
}

// LIVE comes before the record is in the index.
func TestBrokenIndexLate(t *testing.T) {
	bites(t, bounds{preemptions: 1}, "violates X", lookups(nil, func(w Window) Window {
		return &brokenWindow{Window: w, store: func(off int64, v uint64) error {
			if off >= interSuper.copyAt(0) && off < interSuper.seats {
				return nil
			}
			return w.Store(off, v)
		}}
	}, publishes))
}

// Claims that do not compare what they swap.
func TestBrokenClaim(t *testing.T) {
	bites(t, bounds{preemptions: 2}, "violates W", claims(2, 2, func(w Window) Window {
		return &brokenWindow{Window: w, cas: func(off int64, _, v uint64) (bool, error) {
			now, err := w.Load(off)
			if err != nil {
				return false, err
			}
			return w.CompareAndSwap(off, now, v)
		}}
	}))
}

// A request is written over another one that the owner may be reading.
func TestBrokenRequest(t *testing.T) {
	bites(t, bounds{preemptions: 3}, "violates the mailbox", asks(func(w Window) Window {
		return &brokenWindow{Window: w, store: func(off int64, v uint64) error {
			if v&requestOpen != 0 {
				return nil
			}
			return w.Store(off, v)
		}}
	}, nil))
}
