package daxmem

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// Incompatible features of a pool.
const (
	// featSelfContained: every image has copies of its files of its own.
	featSelfContained = 1 << 0

	featKnown = featSelfContained
)

const (
	blockSize = disk.BlockSize

	poolMagic   = "DAXFSPL\x00"
	poolVersion = 2 // 1: without index and seats

	superSize    = 512 // one sector: written whole or not at all
	ownerOffset  = 512
	ownerSize    = 512
	ownerWordAt  = 2048
	catalogStart = blockSize

	minRecords = 1024
	maxRecords = 65536
)

// super is the fixed part of the pool superblock, written once.
//
//	offset size field
//	     0    8 magic "DAXFSPL\0"
//	     8    4 version
//	    12    4 block size
//	    16   16 UUID
//	    32    8 size of the region at creation
//	    40    8 catalog offset
//	    48    4 catalog records
//	    52    4 record size
//	    56    8 data start: first byte behind the seats
//	    64    8 incompatible features: refuse when one is not known
//	    72    8 compatible features
//	    80    8 created, unix ns
//	    88    8 index offset
//	    96    8 index size
//	   104    8 seats offset
//	   112    4 number of seats
//	   116    4 bytes of a seat
//	   508    4 CRC-32C of bytes 0..507
type super struct {
	geometry
	uuid        [16]byte
	createdSize int64
	incompat    uint64
	compat      uint64
	created     int64
}

func recordsFor(size int64) int {
	return int(min(max(size>>20, minRecords), maxRecords))
}

func (s *super) encode() []byte {
	b := make([]byte, superSize)
	copy(b, poolMagic)
	le.PutUint32(b[8:], poolVersion)
	le.PutUint32(b[12:], blockSize)
	copy(b[16:], s.uuid[:])
	le.PutUint64(b[32:], uint64(s.createdSize))
	le.PutUint64(b[40:], catalogStart)
	le.PutUint32(b[48:], uint32(s.records))
	le.PutUint32(b[52:], recordSize)
	le.PutUint64(b[56:], uint64(s.dataStart))
	le.PutUint64(b[64:], s.incompat)
	le.PutUint64(b[72:], s.compat)
	le.PutUint64(b[80:], uint64(s.created))
	le.PutUint64(b[88:], uint64(s.index))
	le.PutUint64(b[96:], uint64(s.indexSize))
	le.PutUint64(b[104:], uint64(s.seats))
	le.PutUint32(b[112:], seatCount)
	le.PutUint32(b[116:], uint32(s.seatSize))
	le.PutUint32(b[508:], crc32.Checksum(b[:508], castagnoli))
	return b
}

func decodeSuper(b []byte) (*super, error) {
	if string(b[:8]) != poolMagic {
		return nil, fmt.Errorf("magic %q, want %q: %w", b[:8], poolMagic, ErrNotPool)
	}
	if v := le.Uint32(b[8:]); v != poolVersion {
		return nil, fmt.Errorf("layout version %d, want %d: %w", v, poolVersion, ErrUnsupported)
	}
	if got, want := le.Uint32(b[508:]), crc32.Checksum(b[:508], castagnoli); got != want {
		return nil, corruptf("superblock checksum %#08x, want %#08x", got, want)
	}
	s := &super{
		uuid:        [16]byte(b[16:32]),
		createdSize: int64(le.Uint64(b[32:])),
		incompat:    le.Uint64(b[64:]),
		compat:      le.Uint64(b[72:]),
		created:     int64(le.Uint64(b[80:])),
	}
	if bs := le.Uint32(b[12:]); bs != blockSize {
		return nil, fmt.Errorf("block size %d, want %d: %w", bs, blockSize, ErrUnsupported)
	}
	if u := s.incompat &^ uint64(featKnown); u != 0 {
		return nil, fmt.Errorf("unknown incompatible features %#x: %w", u, ErrUnsupported)
	}
	records := int(le.Uint32(b[48:]))
	if le.Uint64(b[40:]) != catalogStart || le.Uint32(b[52:]) != recordSize || records < 1 || records > maxRecords {
		return nil, corruptf("superblock: %d records of %d bytes at %d", records, le.Uint32(b[52:]), le.Uint64(b[40:]))
	}
	s.geometry = geometryFor(records)
	if want := s.encode(); !bytes.Equal(b[56:64], want[56:64]) || !bytes.Equal(b[88:120], want[88:120]) || s.createdSize < s.dataStart {
		return nil, corruptf("superblock: index [%d,+%d), %d seats of %d bytes at %d, data at %d, size %d; want index [%d,+%d), %d seats of %d bytes at %d, data at %d",
			le.Uint64(b[88:]), le.Uint64(b[96:]), le.Uint32(b[112:]), le.Uint32(b[116:]), le.Uint64(b[104:]), le.Uint64(b[56:]), s.createdSize,
			s.index, s.indexSize, seatCount, s.seatSize, s.seats, s.dataStart)
	}
	return s, nil
}

// What the last owner said about the state it left.
const (
	ownerOpen    = 0 // at work, or died
	ownerClean   = 1 // closed: all durable, all free space zero
	ownerSuspect = 2 // a sync failed: verify all that is not durable
)

// owner is the part of the superblock that changes: two copies of one sector
// each, at 512 and 1024, written in turn, so that a torn write leaves the other.
//
//	offset size field
//	     0    8 sequence: rises by one per write; copy = sequence & 1
//	     8    8 epoch: rises by one per open for writing
//	    16    8 size of the region now
//	    24   16 boot ID of the owner's kernel
//	    40    4 state: 0 open, 1 clean, 2 suspect
//	   508    4 CRC-32C of bytes 0..507
type owner struct {
	seq, epoch uint64
	size       int64
	boot       [16]byte
	state      uint32
}

func (o *owner) offset() int64 { return ownerOffset + int64(o.seq&1)*ownerSize }

func (o *owner) encode() []byte {
	b := make([]byte, ownerSize)
	le.PutUint64(b[0:], o.seq)
	le.PutUint64(b[8:], o.epoch)
	le.PutUint64(b[16:], uint64(o.size))
	copy(b[24:], o.boot[:])
	le.PutUint32(b[40:], o.state)
	le.PutUint32(b[508:], crc32.Checksum(b[:508], castagnoli))
	return b
}

// decodeOwner picks the newest sound copy out of the superblock block. When a
// copy is damaged the other may be one write older: the epoch skips one, so
// that none is used twice, and the pool counts as suspect.
func decodeOwner(block []byte) (*owner, error) {
	var best *owner
	damaged := false
	for i := range 2 {
		b := block[ownerOffset+i*ownerSize:][:ownerSize]
		if isZero(b) {
			continue // never written
		}
		o := &owner{
			seq: le.Uint64(b), epoch: le.Uint64(b[8:]), size: int64(le.Uint64(b[16:])),
			boot: [16]byte(b[24:40]), state: le.Uint32(b[40:]),
		}
		if le.Uint32(b[508:]) != crc32.Checksum(b[:508], castagnoli) || o.seq&1 != uint64(i) {
			damaged = true
			continue
		}
		if best == nil || o.seq > best.seq {
			best = o
		}
	}
	if best == nil {
		return nil, corruptf("superblock: both copies of the owner part are damaged")
	}
	if damaged {
		best.seq += 2 // of the same parity: the next write replaces the damaged copy
		best.epoch++
		best.state = ownerSuspect
	}
	return best, nil
}
