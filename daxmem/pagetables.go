package daxmem

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// pageTables fills those of a mapping of a file in memory before it is written
// to. Each first store into a page is a fault; asked to, the kernel maps sixteen
// pages at a time, and those of a shared mapping can be stored into too. Not all
// at once when the region is mapped: that would take seconds for space that may
// never be used.
type pageTables struct {
	size   int64
	filled []atomic.Bool // by parts of the region of disk.HugeSize, what one table maps
}

func newPageTables(size int64) pageTables {
	return pageTables{size, make([]atomic.Bool, (size+disk.HugeSize-1)/disk.HugeSize)}
}

// fill fills them for [off, off+n) of w. What it cannot do, faults do.
func (t pageTables) fill(w *mappedWindow, off, n int64) {
	if off < 0 || n <= 0 || off > t.size-n {
		return // an error of whoever uses the range
	}
	for i := off / disk.HugeSize; i <= (off+n-1)/disk.HugeSize; i++ {
		if t.filled[i].Swap(true) {
			continue
		}
		from := i * disk.HugeSize
		_ = w.at(from, min(disk.HugeSize, t.size-from), func(b []byte) {
			_ = unix.Madvise(b, unix.MADV_POPULATE_READ) // Linux 5.14 and later
		})
	}
}
