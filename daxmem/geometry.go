package daxmem

import (
	"math/bits"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// SeatCount is how many kernels can be at a pool.
const SeatCount = 64

const seatCount = SeatCount

// Parts of a seat, bytes from its beginning.
const (
	seatRequest   = 512
	seatHeartbeat = 1024
	seatCounts    = 1032 // words, see Counts
	seatPins      = blockSize
)

// geometry is where the shared structures are. All of it follows from the
// number of catalog records; the superblock says it too, so that other
// programs need not know how. Offsets and sizes are bytes, whole blocks.
type geometry struct {
	records int

	index     int64 // offset
	heads     int   // of a copy; a power of two
	copySize  int64
	indexSize int64

	seats    int64 // offset
	pinsSize int64 // of a seat
	seatSize int64

	dataStart int64
}

func geometryFor(records int) geometry {
	g := geometry{records: records}
	g.index = disk.AlignUp(int64(catalogStart)+int64(records)*recordSize, blockSize)
	g.heads = 1 << bits.Len(uint(records-1))
	g.copySize = disk.AlignUp(int64(g.heads+records)*8, blockSize)
	g.indexSize = blockSize + 2*g.copySize
	g.seats = g.index + g.indexSize
	g.pinsSize = disk.AlignUp(int64(records+7)/8, blockSize)
	g.seatSize = seatPins + g.pinsSize + blockSize
	g.dataStart = g.seats + seatCount*g.seatSize
	return g
}

func slotOffset(slot int) int64 { return catalogStart + int64(slot)*recordSize }

// seat is the offset of a seat.
func (g *geometry) seat(n int) int64 { return g.seats + int64(n)*g.seatSize }

// pin is the offset of the word that has the pin of a record in a seat, and the
// pin's bit.
func (g *geometry) pin(seat, slot int) (off int64, bit uint64) {
	return g.seat(seat) + seatPins + int64(slot/64)*8, 1 << (slot % 64)
}

// reply is the offset of the reply to a seat.
func (g *geometry) reply(seat int) int64 { return g.seat(seat) + seatPins + g.pinsSize }

// moves is the offset of the counter of one copy of the index.
func (g *geometry) moves(copy int) int64 { return g.index + int64(copy)*64 }

func (g *geometry) copyAt(copy int) int64 { return g.index + blockSize + int64(copy)*g.copySize }

// head and link are offsets of words of one copy of the index.
func (g *geometry) head(copy, n int) int64 { return g.copyAt(copy) + int64(n)*8 }

func (g *geometry) link(copy, slot int) int64 { return g.copyAt(copy) + int64(g.heads+slot)*8 }
