package inside

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"time"
)

// Fill writes into b what the file of that name in the source tree has from
// byte off on: words that differ between any two places of a file and between
// files, so that a page in a wrong place is seen, and never a page of zeros.
func Fill(b []byte, name string, off int64) {
	h := fnv.New64a()
	h.Write([]byte(name))
	seed := h.Sum64()
	word8 := func() uint64 { return (seed+uint64(off/8))*0x9e3779b97f4a7c15 | 1 }
	var word [8]byte
	for len(b) > 0 {
		if off%8 == 0 && len(b) >= 8 { // emulation is slow enough
			binary.LittleEndian.PutUint64(b, word8())
			b, off = b[8:], off+8
			continue
		}
		binary.LittleEndian.PutUint64(word[:], word8())
		n := copy(b, word[off%8:])
		b, off = b[n:], off+int64(n)
	}
}

// FillSizes are the sizes of the source tree's files "data/SIZE" that Fill
// writes: around the borders of pages and of huge pages.
var FillSizes = []int64{
	0, 1, 7, 4095, 4096, 4097, 8191, 8192, 8193, 65535, 65536, 65537,
	2<<20 - 1, 2 << 20, 2<<20 + 1, 3<<20 + 123,
}

// FillName is the path of the file with that size.
func FillName(size int64) string { return fmt.Sprintf("data/%d", size) }

// Big is a file of BigSize bytes that Fill writes.
const (
	Big     = "big/file"
	BigSize = 64 << 20
)

// Live is a page that the host writes to while the tests run: a number of 64
// bits over and over, larger by one each LivePeriod.
const (
	Live       = "live/counter"
	LiveSize   = 4096
	LivePeriod = 10 * time.Millisecond
)

// Disk is an ext4 file system in a file. It has a file DiskFile of 64 KiB that
// Fill writes.
const (
	Disk     = "disk/ext4"
	DiskFile = "file-on-disk"
)

// ManyNames is how many names the directory "many" has; ManyName is the i-th.
const ManyNames = 10000

// ManyName returns the i-th name of the directory "many".
func ManyName(i int) string { return fmt.Sprintf("%x-%d", uint32(i)*2654435761, i) }
