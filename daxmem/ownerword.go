package daxmem

import "fmt"

// ownerWord says who owns the pool (docs/memory-model.md, "Owner word"):
//
//	bits  0..7   state
//	      8..15  the owner's seat
//	     16..23  copy of the index that counts
//	     24..63  fence, which rises with each takeover
type ownerWord uint64

// States of the owner word.
const (
	ownedByNobody = 0x00
	owned         = 0x4f
	beingTaken    = 0x54
)

func makeOwnerWord(state uint8, seat, copy int, fence uint64) ownerWord {
	return ownerWord(uint64(state) | uint64(seat)<<8 | uint64(copy)<<16 | fence<<24)
}

func (w ownerWord) state() uint8  { return uint8(w) }
func (w ownerWord) seat() int     { return int(uint8(w >> 8)) }
func (w ownerWord) copy() int     { return int(uint8(w >> 16)) }
func (w ownerWord) fence() uint64 { return uint64(w >> 24) }

// check judges a word as found.
func (w ownerWord) check() error {
	switch {
	case w.state() != ownedByNobody && w.state() != owned && w.state() != beingTaken,
		w.seat() >= seatCount, w.copy() > 1:
		return corruptf("owner word %#016x makes no sense", uint64(w))
	}
	return nil
}

func (w ownerWord) String() string {
	names := map[uint8]string{ownedByNobody: "owned by nobody, last by", owned: "owned by", beingTaken: "being taken over by"}
	return fmt.Sprintf("%s seat %d, fence %d, index copy %d", names[w.state()], w.seat(), w.fence(), w.copy())
}

func loadOwnerWord(w Window) (ownerWord, error) {
	v, err := w.Load(ownerWordAt)
	if err != nil {
		return 0, windowError("load owner word", err)
	}
	return ownerWord(v), ownerWord(v).check()
}
