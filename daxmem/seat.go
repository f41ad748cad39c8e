package daxmem

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"time"

	"github.com/google/uuid"
)

// seatWord: state in bits 0..7, generation in 8..63. The generation rises each
// time the seat is claimed or taken away.
type seatWord uint64

const (
	seatFree    = 0x00
	seatClaimed = 0x43 // its lease and pins are being written; they do not count
	seatHeld    = 0x48
)

func makeSeatWord(state uint8, generation uint64) seatWord {
	return seatWord(uint64(state) | generation<<8)
}

func (w seatWord) state() uint8       { return uint8(w) }
func (w seatWord) generation() uint64 { return uint64(w) >> 8 }

// Identity is who takes a seat.
type Identity struct {
	Boot     [16]byte // boot ID of the kernel
	Instance string   // as the operator calls the kernel, or empty; at most 64 bytes
	Holder   string   // which daemon of the kernel, also for people: host name and directory; at most 64 bytes
}

// MaxInstance is the most bytes of an instance's name.
const MaxInstance = identityText

const identityText = 64 // bytes

// lease is what a holder writes into its seat, bytes 8 to 255.
//
//	offset size field
//	     8    4 CRC-32C of bytes 16..255
//	    16   16 boot ID
//	    32    8 claimed, unix ns
//	    40    8 0x0102030405060708 as the holder's processor stores it
//	    48   64 instance name
//	   112   64 holder: host name and directory of the daemon
type lease struct {
	Identity
	claimed int64
}

const (
	leaseAt   = 8
	leaseSize = 256 - leaseAt
	byteOrder = 0x0102030405060708
)

func (l *lease) encode() []byte {
	b := make([]byte, 256)
	copy(b[16:], l.Boot[:])
	le.PutUint64(b[32:], uint64(l.claimed))
	le.PutUint64(b[40:], byteOrder) // package unsafe refuses other processors
	copy(b[48:48+identityText], l.Instance)
	copy(b[112:112+identityText], l.Holder)
	le.PutUint32(b[8:], crc32.Checksum(b[16:], castagnoli))
	return b[leaseAt:]
}

// decodeLease reads bytes 8 to 255 of a seat. why says what is wrong with them;
// the fields of a damaged lease are hints at best.
func decodeLease(b []byte) (l lease, why string) {
	b = append(make([]byte, leaseAt), b...)
	text := func(at int) string {
		t, _, _ := bytes.Cut(b[at:at+identityText], []byte{0})
		return strings.ToValidUTF8(string(t), "?")
	}
	l = lease{Identity{[16]byte(b[16:32]), text(48), text(112)}, int64(le.Uint64(b[32:]))}
	switch order := le.Uint64(b[40:]); {
	case le.Uint32(b[8:]) != crc32.Checksum(b[16:], castagnoli):
		why = "the lease's checksum is wrong"
	case order != byteOrder:
		why = fmt.Sprintf("written in another byte order (%#016x)", order)
	}
	return l, why
}

// Seat is one kernel's place at the pool, as anybody can see it. It is a copy.
type Seat struct {
	Number     int
	Held       bool // else it is being claimed
	Generation uint64
	Identity
	Claimed   time.Time
	Heartbeat time.Time // by the holder's clock; zero: never
	Pins      int
	Chains    Counts // how the holder came by what it was to run; of readers
	Owner     bool   // the pool's owner sits here
	Mine      bool   // of this kernel
	Damaged   string // what is wrong with the lease, or empty
}

// String names the holder for messages.
func (s *Seat) String() string {
	name := s.Instance
	if name == "" {
		name = s.Holder
	}
	if name == "" {
		name = "boot " + uuid.UUID(s.Boot).String()
	}
	return fmt.Sprintf("seat %d (%s)", s.Number, name)
}

// readSeat reads a seat that is not free; ok is false for one that is.
func readSeat(w Window, g *geometry, n int) (s *Seat, word seatWord, ok bool, err error) {
	at := g.seat(n)
	v, err := w.Load(at)
	if err != nil {
		return nil, 0, false, windowError(fmt.Sprintf("read seat %d", n), err)
	}
	word = seatWord(v)
	s = &Seat{Number: n, Generation: word.generation(), Held: word.state() == seatHeld}
	switch word.state() {
	case seatFree:
		return s, word, false, nil
	case seatClaimed, seatHeld:
	default:
		// Whatever it is, its pins are taken for pins.
		s.Damaged = fmt.Sprintf("seat word %#016x makes no sense", v)
	}
	b := make([]byte, leaseSize)
	if _, err := w.ReadAt(b, at+leaseAt); err != nil {
		return nil, 0, false, windowError(fmt.Sprintf("read seat %d", n), err)
	}
	l, why := decodeLease(b)
	if s.Held && why != "" {
		s.Damaged = why
	}
	beat, err := w.Load(at + seatHeartbeat)
	if err != nil {
		return nil, 0, false, windowError(fmt.Sprintf("read seat %d", n), err)
	}
	s.Identity, s.Claimed, s.Heartbeat = l.Identity, unixNano(l.claimed), unixNano(int64(beat))
	return s, word, true, nil
}

// seats lists the seats that are not free.
func readSeats(w Window, g *geometry, own *seat) ([]*Seat, error) {
	ow, err := loadOwnerWord(w)
	if err != nil {
		return nil, err
	}
	var out []*Seat
	for n := range seatCount {
		s, word, ok, err := readSeat(w, g, n)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		s.Owner = ow.state() != ownedByNobody && ow.seat() == n
		s.Mine = own != nil && own.number == n && word == own.word
		if s.Pins, err = countPins(w, g, n); err != nil {
			return nil, err
		}
		if s.Chains, err = readCounts(w, g, n); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// claimSeat takes a seat for id: the one that an earlier process of the same
// holder has left, or a free one. Seats of earlier boots of the same instance, and with
// alone of all other boots, are freed. fixed is the number that the operator
// gave, which memory without compare-and-swap needs; -1: none. w covers all
// seats and is writable.
//
// Preconditions: the holder has one process.
func claimSeat(w Window, g *geometry, id Identity, fixed int, alone bool) (*seat, error) {
	if fixed >= seatCount {
		return nil, invalidf("seat %d, there are seats 0 to %d", fixed, seatCount-1)
	}
	if fixed < 0 && !w.Atomic() {
		return nil, fmt.Errorf("claim a seat: this memory has no compare-and-swap, so that seats have to be given by configuration: %w", ErrNoSwap)
	}
	for range seatCount {
		s, err := tryClaim(w, g, id, fixed, alone)
		if !errors.Is(err, errSeatChanged) {
			return s, err
		}
	}
	return nil, fmt.Errorf("claim a seat: others were faster %d times: %w", seatCount, ErrSeats)
}

// tryClaim is claimSeat, which fails with errSeatChanged when another kernel
// takes the same seat.
func tryClaim(w Window, g *geometry, id Identity, fixed int, alone bool) (*seat, error) {
	free, freeGeneration := -1, uint64(0)
	var taken []string
	for n := range seatCount {
		s, word, ok, err := readSeat(w, g, n)
		if err != nil {
			return nil, err
		}
		if ok && s.Held && s.Damaged == "" {
			switch {
			case s.Boot == id.Boot && s.Holder == id.Holder && (fixed < 0 || fixed == n):
				step(stepSeatFound)
				return &seat{w: w, g: g, number: n, word: word}, nil
			case s.Boot != id.Boot && (alone || id.Instance != "" && s.Instance == id.Instance):
				if err := evictSeat(w, g, n, word); err != nil {
					return nil, err
				}
				word, ok = makeSeatWord(seatFree, word.generation()+1), false
			}
		}
		if ok && word.state() == seatClaimed && (fixed == n || alone) {
			// Nobody else claims it: an earlier process of this kernel died at it.
			if err := evictSeat(w, g, n, word); err != nil {
				return nil, err
			}
			word, ok = makeSeatWord(seatFree, word.generation()+1), false
		}
		switch {
		case ok && (fixed < 0 || fixed == n):
			taken = append(taken, s.String())
		case !ok && (fixed == n || fixed < 0 && (free < 0 || word.generation() < freeGeneration)):
			free, freeGeneration = n, word.generation()
		}
	}
	if free < 0 {
		return nil, fmt.Errorf("claim a seat: taken by %s: %w", strings.Join(taken, ", "), ErrSeats)
	}
	return takeSeat(w, g, id, free, makeSeatWord(seatFree, freeGeneration))
}

// takeSeat claims a free seat: word, zeros, lease, word.
func takeSeat(w Window, g *geometry, id Identity, n int, free seatWord) (*seat, error) {
	claimed := makeSeatWord(seatClaimed, free.generation()+1)
	if err := swapSeat(w, g, n, free, claimed); err != nil {
		return nil, err
	}
	step(stepSeatClaimed)
	at := g.seat(n)
	l := lease{id, time.Now().UnixNano()}
	zero := make([]byte, g.seatSize-blockSize-seatRequest) // request, heartbeat, counts and pins
	_, err := w.WriteAt(zero, at+seatRequest)
	if err == nil {
		_, err = w.WriteAt(l.encode(), at+leaseAt)
	}
	if err == nil {
		err = w.Store(at+seatHeartbeat, uint64(l.claimed))
	}
	if err != nil {
		return nil, windowError(fmt.Sprintf("write seat %d", n), err)
	}
	step(stepLeaseWritten)
	held := makeSeatWord(seatHeld, claimed.generation())
	if err := swapSeat(w, g, n, claimed, held); err != nil {
		return nil, err
	}
	step(stepSeatHeld)
	return &seat{w: w, g: g, number: n, word: held}, nil
}

// errSeatChanged: somebody else was faster.
var errSeatChanged = fmt.Errorf("somebody else changed it: %w", ErrSeats)

// swapSeat changes a seat's word, or fails with errSeatChanged.
func swapSeat(w Window, g *geometry, n int, old, now seatWord) error {
	ok, err := w.CompareAndSwap(g.seat(n), uint64(old), uint64(now))
	if err != nil {
		return windowError(fmt.Sprintf("change seat %d", n), err)
	}
	if !ok {
		return fmt.Errorf("change seat %d: %w", n, errSeatChanged)
	}
	return nil
}

// evictSeat frees a seat whose holder is gone.
func evictSeat(w Window, g *geometry, n int, word seatWord) error {
	if err := swapSeat(w, g, n, word, makeSeatWord(seatFree, word.generation()+1)); err != nil {
		return err
	}
	step(stepSeatEvicted)
	return nil
}

// Evict frees a seat on the word of somebody who knows that its kernel is gone:
// its pins do not count any more. generation is that of the seat as it was
// looked at; ErrSeats tells that it is another by now.
func Evict(region Region, n int, generation uint64) (err error) {
	sup, _, err := readSuper(region)
	if err != nil {
		return err
	}
	if n < 0 || n >= seatCount {
		return invalidf("evict seat %d, there are seats 0 to %d", n, seatCount-1)
	}
	w, err := region.Window(0, sup.dataStart, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	v, err := w.Load(sup.seat(n))
	if err != nil {
		return windowError(fmt.Sprintf("evict seat %d", n), err)
	}
	word := seatWord(v)
	if word.state() == seatFree {
		return fmt.Errorf("evict seat %d: it is free: %w", n, ErrNotFound)
	}
	if word.generation() != generation {
		return fmt.Errorf("evict seat %d: generation %d, want %d: %w", n, word.generation(), generation, ErrSeats)
	}
	return evictSeat(w, &sup.geometry, n, word)
}
