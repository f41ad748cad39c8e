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

	mu sync.Mutex
	// written are ranges since the last Sync, and windows those of all windows
	// ever: what is stored through these nobody counts.
	written, windows []span
}

// maxSpans bounds the memory that written takes. Beyond it, Sync flushes all
// between the first and the last.
const maxSpans = 1 << 12

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
	if n == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := len(r.written); l > 0 && r.written[l-1].off+r.written[l-1].size == off {
		r.written[l-1].size += n // behind the one before, as writes mostly are
		return
	}
	r.written = append(r.written, span{off, n})
	if len(r.written) < maxSpans {
		return
	}
	from, to := off, off+n
	for _, s := range r.written {
		from, to = min(from, s.off), max(to, s.off+s.size)
	}
	r.written = []span{{from, to - from}}
}

// Sync writes back the caches of what was written, and then what the memory's
// controllers hold.
func (r *persistentRegion) Sync() (err error) {
	r.mu.Lock()
	spans := append(r.written, r.windows...)
	r.written = nil
	r.mu.Unlock()
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
		r.written = append(r.written, spans...) // not done
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
