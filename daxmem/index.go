package daxmem

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/containerd/errdefs"
)

// index finds catalog records by kind and key in shared memory: chains of
// records by hash, in two copies (docs/memory-model.md, "Index"). It has no
// state of its own. The owner alone calls build, insert and remove, one at a
// time; find may run at any time, in any kernel.
type index struct {
	w    Window
	g    *geometry
	salt uint64
}

func newIndex(w Window, g *geometry, uuid [16]byte) *index {
	return &index{w: w, g: g, salt: binary.LittleEndian.Uint64(uuid[:8]) | 1}
}

func (ix *index) headOf(kind Kind, key [32]byte) int {
	h := (le.Uint64(key[:8]) + uint64(kind)) * ix.salt
	return int(h >> (64 - bits.Len(uint(ix.g.heads-1)))) // a shift by 64 is 0
}

// build writes a copy that no reader uses.
func (ix *index) build(copy int, records []*record) error {
	image := make([]byte, ix.g.copySize)
	for slot, r := range records {
		if r == nil {
			continue
		}
		head := image[ix.headOf(r.word.kind(), r.key)*8:]
		le.PutUint64(image[(ix.g.heads+slot)*8:], le.Uint64(head))
		le.PutUint64(head, uint64(slot+1))
	}
	// Who still walks through what it was two owners ago must notice.
	moves, err := ix.w.Load(ix.g.moves(copy))
	if err == nil {
		err = ix.w.Store(ix.g.moves(copy), moves+1)
	}
	if err == nil {
		_, err = ix.w.WriteAt(image, ix.g.copyAt(copy))
	}
	return windowError("write index", err)
}

// insert puts a record in front of its chain: it can be found from then on, and
// is found once it is LIVE.
func (ix *index) insert(copy, slot int, kind Kind, key [32]byte) error {
	at := ix.g.head(copy, ix.headOf(kind, key))
	head, err := ix.w.Load(at)
	if err == nil {
		err = ix.w.Store(ix.g.link(copy, slot), head)
	}
	if err == nil {
		err = ix.w.Store(at, uint64(slot+1))
	}
	return windowError("insert into index", err)
}

// remove takes a record out of its chain. Its own link stays until the slot is
// used again: a reader that is at it goes on from there.
func (ix *index) remove(copy, slot int, kind Kind, key [32]byte) error {
	at := ix.g.head(copy, ix.headOf(kind, key))
	for range ix.g.records + 1 {
		p, err := ix.w.Load(at)
		if err != nil {
			return windowError("remove from index", err)
		}
		if p == 0 {
			return nil
		}
		if p > uint64(ix.g.records) {
			return corruptf("index: word at %d is %d, of %d records", at, p, ix.g.records)
		}
		if p != uint64(slot+1) {
			at = ix.g.link(copy, int(p-1))
			continue
		}
		next, err := ix.w.Load(ix.g.link(copy, slot))
		if err == nil {
			err = ix.w.Store(at, next)
		}
		step(stepRecordSkipped)
		// Only now: who reads this number from here on cannot meet the record.
		var moves uint64
		if err == nil {
			moves, err = ix.w.Load(ix.g.moves(copy))
		}
		if err == nil {
			err = ix.w.Store(ix.g.moves(copy), moves+1)
		}
		return windowError("remove from index", err)
	}
	return corruptf("index: a chain has more than %d records", ix.g.records)
}

// findAttempts bounds how often a search is misled: by as many removals in the
// same moment, or by a damaged index.
const findAttempts = 1000

// find calls match with the records of a key's chain until it returns true, and
// reports whether it did. Other keys' records come by too.
func (ix *index) find(kind Kind, key [32]byte, match func(slot int) (bool, error)) (bool, error) {
	head := ix.headOf(kind, key)
	for range findAttempts {
		ow, err := loadOwnerWord(ix.w)
		if err != nil {
			return false, err
		}
		copy := ow.copy()
		moves, err := ix.w.Load(ix.g.moves(copy))
		if err != nil {
			return false, windowError("search index", err)
		}
		// A copy that does not count any more may be half built, and count again
		// in the end, with this number.
		if ow, err = loadOwnerWord(ix.w); err != nil {
			return false, err
		}
		if ow.copy() != copy {
			continue
		}
		found, whole, err := ix.walk(copy, head, match)
		if found || err != nil {
			return found, err
		}
		now, err := ix.w.Load(ix.g.moves(copy))
		if err != nil {
			return false, windowError("search index", err)
		}
		again, err := loadOwnerWord(ix.w)
		if err != nil {
			return false, err
		}
		if whole && now == moves && again.copy() == copy {
			return false, nil
		}
	}
	return false, fmt.Errorf("search index: misled %d times: %w", findAttempts, errdefs.ErrUnavailable)
}

// walk follows one chain to its end; whole is false when it led nowhere.
func (ix *index) walk(copy, head int, match func(slot int) (bool, error)) (found, whole bool, err error) {
	at := ix.g.head(copy, head)
	for range ix.g.records + 1 {
		p, err := ix.w.Load(at)
		if err != nil {
			return false, false, windowError("search index", err)
		}
		if p == 0 {
			return false, true, nil
		}
		if p > uint64(ix.g.records) {
			return false, false, corruptf("index: word at %d is %d, of %d records", at, p, ix.g.records)
		}
		if found, err = match(int(p - 1)); found || err != nil {
			return found, true, err
		}
		at = ix.g.link(copy, int(p-1))
	}
	return false, false, nil
}
