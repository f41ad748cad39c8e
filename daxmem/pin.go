package daxmem

import (
	"fmt"
	"math/bits"
	"sync"
	"time"
)

// seat is this kernel's place at the pool: its pins in shared memory, counted
// here. It is safe for concurrent use.
type seat struct {
	w      Window // writable in this seat
	g      *geometry
	number int
	word   seatWord // as this kernel holds it

	mu     sync.Mutex
	counts map[int]int // of pins, by record
}

// check reports ErrFenced when the seat was given to somebody else, or freed.
func (s *seat) check() error {
	v, err := s.w.Load(s.g.seat(s.number))
	if err != nil {
		return windowError(fmt.Sprintf("read seat %d", s.number), err)
	}
	if seatWord(v) != s.word {
		return fmt.Errorf("seat %d was evicted (generation %d, ours was %d): %w", s.number, seatWord(v).generation(), s.word.generation(), ErrFenced)
	}
	return nil
}

// pin sets this kernel's pin of a record and keeps it if still reports, from
// shared memory, that the record is what the caller thinks. Then it is to be
// released with unpin.
func (s *seat) pin(slot int, still func() (bool, error)) (ok bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(); err != nil {
		return false, err
	}
	if err := s.set(slot, true); err != nil {
		return false, err
	}
	step(stepPinSet)
	// The pin is stored, and only then the record is looked at: either this
	// sees that it is being removed, or who removes it sees the pin.
	if ok, err = still(); ok && err == nil {
		err = s.check()
	}
	if !ok || err != nil {
		// A seat that is somebody else's by now is not touched.
		if cerr := s.check(); cerr != nil {
			return false, cerr
		}
		if s.counts[slot] == 0 {
			if serr := s.set(slot, false); err == nil {
				err = serr
			}
		}
		return false, err
	}
	step(stepPinChecked)
	if s.counts == nil {
		s.counts = make(map[int]int)
	}
	s.counts[slot]++
	return true, nil
}

// unpin takes back one pin; the last one clears the bit.
func (s *seat) unpin(slot int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[slot]--
	if s.counts[slot] > 0 {
		return nil
	}
	delete(s.counts, slot)
	// A seat that is somebody else's by now is not touched.
	if err := s.check(); err != nil {
		return err
	}
	step(stepBeforeUnpin)
	if err := s.set(slot, false); err != nil {
		return err
	}
	step(stepPinCleared)
	return nil
}

// set changes the bit of a record. Caller holds mu.
func (s *seat) set(slot int, pinned bool) error {
	at, bit := s.g.pin(s.number, slot)
	old, err := s.w.Load(at)
	if err != nil {
		return windowError("pin", err)
	}
	now := old &^ bit
	if pinned {
		now = old | bit
	}
	if now == old {
		return nil
	}
	return windowError("pin", s.w.Store(at, now))
}

// left returns the records that are pinned in shared memory and not by this
// process: by an earlier one of this kernel.
func (s *seat) left() ([]int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []int
	for slot := 0; slot < s.g.records; slot += 64 {
		at, _ := s.g.pin(s.number, slot)
		v, err := s.w.Load(at)
		if err != nil {
			return nil, windowError("read pins", err)
		}
		for ; v != 0; v &= v - 1 {
			if n := slot + bits.TrailingZeros64(v); s.counts[n] == 0 && n < s.g.records {
				out = append(out, n)
			}
		}
	}
	return out, nil
}

// drop clears a pin that an earlier process has left, unless this one has it.
func (s *seat) drop(slot int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.counts[slot] > 0 {
		return nil
	}
	if err := s.check(); err != nil {
		return err
	}
	return s.set(slot, false)
}

// leave gives the seat up if it has no pin left; else it stays held, for a later
// daemon of this kernel.
func (s *seat) leave() error {
	n, err := countPins(s.w, s.g, s.number)
	if err != nil || n > 0 {
		return err
	}
	if err := s.check(); err != nil {
		return err
	}
	if err := swapSeat(s.w, s.g, s.number, s.word, makeSeatWord(seatFree, s.word.generation())); err != nil {
		return err
	}
	step(stepSeatLeft)
	return nil
}

// beat tells people that this kernel is there.
func (s *seat) beat(now time.Time) error {
	if err := s.check(); err != nil {
		return err
	}
	return windowError("heartbeat", s.w.Store(s.g.seat(s.number)+seatHeartbeat, uint64(now.UnixNano())))
}

func countPins(w Window, g *geometry, n int) (pins int, err error) {
	b := make([]byte, g.pinsSize)
	if _, err := w.ReadAt(b, g.seat(n)+seatPins); err != nil {
		return 0, windowError(fmt.Sprintf("read pins of seat %d", n), err)
	}
	for ; len(b) > 0; b = b[8:] {
		pins += bits.OnesCount64(le.Uint64(b))
	}
	return pins, nil
}

// pinnedBy returns the seats, other than but, that have a record pinned. Seats
// whose word is damaged count: what they say is not known.
func pinnedBy(w Window, g *geometry, slot, but int) ([]int, error) {
	var out []int
	for n := range seatCount {
		if n == but {
			continue
		}
		v, err := w.Load(g.seat(n))
		if err != nil {
			return nil, windowError(fmt.Sprintf("read seat %d", n), err)
		}
		if st := seatWord(v).state(); st == seatFree || st == seatClaimed {
			continue
		}
		at, bit := g.pin(n, slot)
		if v, err = w.Load(at); err != nil {
			return nil, windowError(fmt.Sprintf("read pins of seat %d", n), err)
		}
		if v&bit != 0 {
			out = append(out, n)
		}
	}
	return out, nil
}
