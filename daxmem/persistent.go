package daxmem

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// persistentRegion is mapped persistent memory. What is stored is in the
// processor's caches at first, which Sync writes back: there is no system call
// for it (device-dax has no fsync).
type persistentRegion struct {
	*mappedRegion
	flush func(b []byte)
	// deepFlush is a file of the memory's driver: writing 1 makes the memory
	// controllers, or the host of a virtual machine, write what they hold.
	// Empty: there is none.
	deepFlush string

	mu      sync.Mutex
	written dirtySet // since the last Sync
	windows []span   // all there ever were: what is stored through these nobody counts
}

func (r *persistentRegion) WriteAt(p []byte, off int64) (int, error) {
	n, err := r.mappedRegion.WriteAt(p, off)
	r.note(off, int64(n))
	return n, err
}

func (r *persistentRegion) Punch(off, n int64) error {
	if err := r.mappedRegion.Punch(off, n); err != nil {
		return err
	}
	r.note(off, n)
	return nil
}

func (r *persistentRegion) Window(off, n int64, writable bool) (Window, error) {
	w, err := r.mappedRegion.Window(off, n, writable)
	if err == nil && writable {
		r.mu.Lock()
		r.windows = append(r.windows, span{off, n})
		r.mu.Unlock()
	}
	return w, err
}

// note remembers that [off, off+n) was written.
func (r *persistentRegion) note(off, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.written.add(off, n)
}

// Sync writes back the caches of what was written, and then what the memory's
// controllers hold.
func (r *persistentRegion) Sync() (err error) {
	r.mu.Lock()
	written, spans := r.written, r.windows
	r.written = nil
	r.mu.Unlock()
	spans = append(written.spans(r.size), spans...)
	for _, s := range spans {
		if err = r.mem.at(s.off, s.size, r.flush); err != nil {
			break
		}
	}
	if err == nil && r.deepFlush != "" {
		err = os.WriteFile(r.deepFlush, []byte("1"), 0)
	}
	if err != nil {
		r.mu.Lock()
		r.written.join(written) // not done
		r.mu.Unlock()
		return fmt.Errorf("sync %s: %w", r.path, err)
	}
	return nil
}

// deepFlushFile finds the file of the pmem region that a DAX device is below,
// "" if it has none: /sys/devices/…/ndbus0/region0/dax0.1/dax0.0.
func deepFlushFile(sys string) string {
	dir, err := filepath.EvalSymlinks(sys)
	if err != nil {
		return ""
	}
	for ; dir != "/" && dir != "."; dir = filepath.Dir(dir) {
		file := filepath.Join(dir, "deep_flush")
		if _, err := os.Stat(file); err == nil {
			return file
		} else if !errors.Is(err, os.ErrNotExist) {
			return file // writing it will tell
		}
	}
	return ""
}
