package daxmem

import (
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"time"
)

const recordSize = 256

// Kind says what a record's segment is.
type Kind uint8

const (
	// KindLayer: a layer index; owns a share of each extent in its table.
	KindLayer Kind = 1
	// KindImage: a mountable image; draws from the layers in its layer list.
	KindImage Kind = 2
	// KindChain: no bytes; says which layer is on top of a chainID.
	KindChain Kind = 3
)

func (k Kind) String() string {
	switch k {
	case KindLayer:
		return "layer"
	case KindImage:
		return "image"
	case KindChain:
		return "chain"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// state of a record. The codes are far apart in bits, and only FREE goes with
// kind 0, so that no single damaged byte turns LIVE into FREE.
type state uint8

const (
	stateFree    state = 0x00
	stateWriting state = 0x57
	stateLive    state = 0x4c
	stateRetired state = 0x92
)

func (s state) String() string {
	switch s {
	case stateFree:
		return "FREE"
	case stateWriting:
		return "WRITING"
	case stateLive:
		return "LIVE"
	case stateRetired:
		return "RETIRED"
	}
	return fmt.Sprintf("state %#02x", uint8(s))
}

// word is the state word: state in bits 0..7, kind in 8..15, fence in 16..31,
// generation in 32..63. The generation rises by one each time a record leaves
// FREE.
type word uint64

const (
	fenceBits = 0xffff << 16
	lifeBits  = ^word(0xff | fenceBits) // kind and generation
)

func makeWord(s state, k Kind, gen uint32, fence uint64) word {
	return word(uint64(s) | uint64(k)<<8 | fence<<16&fenceBits | uint64(gen)<<32)
}

func (w word) state() state       { return state(w) }
func (w word) kind() Kind         { return Kind(w >> 8) }
func (w word) generation() uint32 { return uint32(w >> 32) }

// life is what one use of a slot has to itself.
func (w word) life() word { return w & lifeBits }

// fenced is the word with another fence.
func (w word) fenced(fence uint64) word { return w&^fenceBits | word(fence<<16&fenceBits) }

// sane reports whether the owner can have written w.
func (w word) sane() bool {
	switch w.state() {
	case stateFree:
		return w.kind() == 0
	case stateWriting, stateLive, stateRetired:
		return w.kind() == KindLayer || w.kind() == KindImage || w.kind() == KindChain
	}
	return false
}

func (w word) String() string {
	return fmt.Sprintf("%v %v generation %d", w.state(), w.kind(), w.generation())
}

// Flags of a record. They share one 64-bit word with the checksum, so that one
// store changes both.
const (
	flagDurable     = 1 << 0 // segment and extents survived a sync
	flagQuarantined = 1 << 1 // found bad; not to be used
	flagsKnown      = flagDurable | flagQuarantined
)

// entry is a catalog record on the medium.
//
//	offset size field
//	     0    8 state word: state(8) | kind(8) | fence(16) | generation(32)
//	     8    4 flags
//	    12    4 CRC-32C of bytes 8..11 and 16..255
//	    16    8 segment offset in the region
//	    24    8 segment size, bytes (its space is rounded up to blocks)
//	    32   32 key
//	    64   32 BLAKE3-256 of the segment; of a chain, key of the layer on top
//	    96   32 of a chain, chainID (SHA-256) of the chain below, or zero; else zero
//	   128    8 entries: names in all directories
//	   136    8 data bytes: of all regular files, before deduplication
//	   144    8 created, unix ns
//	   152    8 sequence: rises with each publication in the pool
//	   160    8 state word without state and fence: which life of the slot this is
//	   168   32 BLAKE3-256 of a self-contained image's copies of files, or zero
//	   200   56 reserved, zero
type entry struct {
	word    word
	flags   uint32
	off     int64
	size    int64
	key     [32]byte
	digest  [32]byte
	below   [32]byte
	entries uint64
	data    uint64
	created int64
	seq     uint64
	copies  [32]byte // digest
}

func (e *entry) encode() []byte {
	b := make([]byte, recordSize)
	le.PutUint64(b[0:], uint64(e.word))
	le.PutUint32(b[8:], e.flags)
	le.PutUint64(b[16:], uint64(e.off))
	le.PutUint64(b[24:], uint64(e.size))
	copy(b[32:], e.key[:])
	copy(b[64:], e.digest[:])
	copy(b[96:], e.below[:])
	le.PutUint64(b[128:], e.entries)
	le.PutUint64(b[136:], e.data)
	le.PutUint64(b[144:], uint64(e.created))
	le.PutUint64(b[152:], e.seq)
	le.PutUint64(b[160:], uint64(e.word.life()))
	copy(b[168:], e.copies[:])
	le.PutUint32(b[12:], entryCRC(b))
	return b
}

// flagWord is bytes 8..15 of the encoded record.
func (e *entry) flagWord() uint64 { return le.Uint64(e.encode()[8:]) }

func entryCRC(b []byte) uint32 {
	c := crc32.Update(0, castagnoli, b[8:12])
	return crc32.Update(c, castagnoli, b[16:recordSize])
}

// What the bytes of a record can be.
type condition uint8

const (
	condFree    condition = iota
	condGone              // WRITING or RETIRED, and names nothing: to be dropped
	condRetired           // RETIRED, and the payload is still whole
	condTorn              // the payload belongs to another life of the slot, or was never written
	condLive              // LIVE, and the payload is whole
	condDamaged           // anything else
)

// decodeEntry moves bits and says what they are; why explains condDamaged.
// The fields of a damaged record are hints at best.
func decodeEntry(b []byte) (e entry, c condition, why string) {
	e = entry{
		word:    word(le.Uint64(b[0:])),
		flags:   le.Uint32(b[8:]),
		off:     int64(le.Uint64(b[16:])),
		size:    int64(le.Uint64(b[24:])),
		key:     [32]byte(b[32:64]),
		digest:  [32]byte(b[64:96]),
		below:   [32]byte(b[96:128]),
		entries: le.Uint64(b[128:]),
		data:    le.Uint64(b[136:]),
		created: int64(le.Uint64(b[144:])),
		seq:     le.Uint64(b[152:]),
		copies:  [32]byte(b[168:200]),
	}
	if !e.word.sane() {
		return e, condDamaged, fmt.Sprintf("state word %#016x makes no sense", uint64(e.word))
	}
	switch e.word.state() {
	case stateFree:
		return e, condFree, ""
	case stateWriting:
		return e, condGone, ""
	case stateRetired:
		if le.Uint32(b[12:]) != entryCRC(b) || word(le.Uint64(b[160:])) != e.word.life() {
			return e, condGone, ""
		}
		return e, condRetired, ""
	}
	if isZero(b[8:recordSize]) {
		return e, condTorn, "payload was never written"
	}
	if got, want := le.Uint32(b[12:]), entryCRC(b); got != want {
		return e, condDamaged, fmt.Sprintf("record checksum %#08x, want %#08x", got, want)
	}
	if life := word(le.Uint64(b[160:])); life != e.word.life() {
		return e, condTorn, fmt.Sprintf("payload is of %v, state word of %v", life, e.word)
	}
	if e.flags&^uint32(flagsKnown) != 0 {
		return e, condDamaged, fmt.Sprintf("unknown flags %#x", e.flags)
	}
	return e, condLive, ""
}

// Record describes one layer or image of the pool. It is a copy.
type Record struct {
	Slot       int // index in the catalog
	Kind       Kind
	Key        [32]byte
	Digest     [32]byte // BLAKE3-256 of the segment; of a chain, key of the layer on top
	Below      [32]byte // of a chain, the chainID of the chain below, zero for none
	Generation uint32
	Sequence   uint64 // order of publication
	Offset     int64  // of the segment in the region
	Size       int64  // of the segment, bytes
	Entries    uint64
	DataBytes  uint64 // of regular files, before deduplication
	Created    time.Time
	Durable    bool

	// Quarantined is why the record is kept out of use, or empty.
	Quarantined string
	Pins, Users int // pins of this process; images that draw from the layer
}

// Name is the record's name in messages.
func (r *Record) Name() string { return recordName(r.Kind, r.Key) }

func recordName(k Kind, key [32]byte) string {
	return k.String() + " " + hex.EncodeToString(key[:8])
}

// RecordMeta is what a publisher says about a record.
type RecordMeta struct {
	Entries   uint64 // names in all directories
	DataBytes uint64 // bytes of regular files, before deduplication
}
