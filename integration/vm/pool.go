package vm

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// NewPool makes a memory file of size bytes, a multiple of PoolAlign, all zero,
// and returns a path by which this process and others open it while the pool is
// not closed. It is anonymous: nothing of it is left when this process ends,
// however it does.
func NewPool(size int64) (path string, closePool func() error, err error) {
	if size <= 0 || size%PoolAlign != 0 {
		return "", nil, fmt.Errorf("pool of %d bytes, want a multiple of %d", size, PoolAlign)
	}
	f, err := memfd("pool", nil)
	if err != nil {
		return "", nil, err
	}
	if err := unix.Ftruncate(int(f.Fd()), size); err != nil {
		f.Close()
		return "", nil, fmt.Errorf("give the pool %d bytes: %w", size, err)
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()), f.Close, nil
}
