package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/vm/proof/protocol"
)

func (s *speedRun) measureReads() error {
	return s.withBigFile(func(m *fileMeasure) error {
		for block := 4 << 10; block <= 1<<20; block *= 4 {
			buf := make([]byte, block)
			if err := s.measure(fmt.Sprintf("read %d KiB", block>>10), func() (protocol.Timing, error) {
				return m.readInOrder(buf)
			}); err != nil {
				return err
			}
		}
		buf := make([]byte, 4<<10)
		return s.measure("read 4 KiB at random", func() (protocol.Timing, error) { return m.readAtRandom(buf, 4096) })
	})
}

// measureHuge maps the file so that huge pages fit.
func (s *speedRun) measureHuge() error {
	return s.measureMappings("touch in order, 2 MiB pages", func(m *fileMeasure, flags int) (protocol.Timing, error) {
		return m.touchInOrder(flags, 0)
	})
}

// measureSmall maps the file so that they do not fit.
func (s *speedRun) measureSmall() error {
	if err := s.measureMappings("touch in order, 4 KiB pages", func(m *fileMeasure, flags int) (protocol.Timing, error) {
		return m.touchInOrder(flags, pageSize)
	}); err != nil {
		return err
	}
	return s.withBigFile(func(m *fileMeasure) error { return s.measure("load mapped bytes", m.load) })
}

func (s *speedRun) measureRandom() error {
	return s.measureMappings("touch at random", (*fileMeasure).touchAtRandom)
}

func (s *speedRun) measureMappings(what string, do func(m *fileMeasure, flags int) (protocol.Timing, error)) error {
	return s.withBigFile(func(m *fileMeasure) error {
		for _, kind := range []struct {
			name  string
			flags int
		}{{"private", unix.MAP_PRIVATE}, {"shared", unix.MAP_SHARED}} {
			if err := s.measure(what+", "+kind.name, func() (protocol.Timing, error) { return do(m, kind.flags) }); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *speedRun) withBigFile(do func(m *fileMeasure) error) error {
	f, err := os.Open(filepath.Join(s.dir(s.fs), protocol.BigFile))
	if err != nil {
		return err
	}
	defer f.Close()
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return err
	}
	defer pagemap.Close()
	return do(&fileMeasure{fd: int(f.Fd()), size: protocol.BigFileSize, pagemap: pagemap})
}

type fileMeasure struct {
	fd      int
	size    int64
	pagemap *os.File
	sum     uint64 // of loaded bytes, so that the loads are not optimised away
}

func (m *fileMeasure) readInOrder(buf []byte) (t protocol.Timing, err error) {
	start := time.Now()
	for off := int64(0); off < m.size; off += int64(len(buf)) {
		if n, err := unix.Pread(m.fd, buf, off); err != nil || n == 0 {
			return t, fmt.Errorf("read %d bytes at %d: %d bytes, %w", len(buf), off, n, err)
		}
		t.Ops++
	}
	t.Nanos, t.Bytes = int64(time.Since(start)), m.size
	return t, nil
}

func (m *fileMeasure) readAtRandom(buf []byte, times int) (t protocol.Timing, err error) {
	r := rand.New(rand.NewPCG(1, 2))
	start := time.Now()
	for range times {
		off := r.Int64N(m.size/int64(len(buf))) * int64(len(buf))
		if n, err := unix.Pread(m.fd, buf, off); err != nil || n == 0 {
			return t, fmt.Errorf("read %d bytes at %d: %d bytes, %w", len(buf), off, n, err)
		}
		t.Ops++
		t.Bytes += int64(len(buf))
	}
	t.Nanos = int64(time.Since(start))
	return t, nil
}

// touchInOrder maps the file afresh and loads a byte of each page. Where shift
// is 0 the mapping begins at a multiple of 2 MiB, so that huge pages can be
// mapped; a shift of one page rules them out. Mapping and unmapping belong to
// the time.
func (m *fileMeasure) touchInOrder(flags int, shift uintptr) (protocol.Timing, error) {
	return m.touched(flags, shift, func(data []byte) int64 {
		m.sum += uint64(touch(data))
		return int64(len(data)) / pageSize
	})
}

// touchAtRandom touches few pages, each in a 2 MiB of its own and far from the
// last one.
func (m *fileMeasure) touchAtRandom(flags int) (protocol.Timing, error) {
	r := rand.New(rand.NewPCG(3, 4))
	return m.touched(flags, 0, func(data []byte) (n int64) {
		for _, huge := range r.Perm(len(data) / hugeSize) {
			m.sum += uint64(data[huge*hugeSize+r.IntN(hugeSize)])
			n++
		}
		return n
	})
}

func (m *fileMeasure) touched(flags int, shift uintptr, do func(data []byte) (ops int64)) (t protocol.Timing, err error) {
	// Address space with room for a 2 MiB boundary, of which a part is
	// replaced by the file.
	room := uintptr(m.size) + 2*hugeSize
	space, err := unix.MmapPtr(-1, 0, nil, room, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return t, fmt.Errorf("reserve %d bytes of address space: %w", room, err)
	}
	defer unix.MunmapPtr(space, room)
	at := unsafe.Add(space, (hugeSize-uintptr(space)%hugeSize)%hugeSize+shift)

	faults, err := faultCount()
	if err != nil {
		return t, err
	}
	start := time.Now()
	if _, err := unix.MmapPtr(m.fd, 0, at, uintptr(m.size), unix.PROT_READ, flags|unix.MAP_FIXED); err != nil {
		return t, fmt.Errorf("map %d bytes: %w", m.size, err)
	}
	data := unsafe.Slice((*byte)(at), m.size)
	t.Ops = do(data)
	t.Nanos = int64(time.Since(start))
	after, err := faultCount()
	if err != nil {
		return t, err
	}
	t.Faults = after - faults
	if t.Pages, err = m.present(data); err != nil {
		return t, err
	}
	start = time.Now()
	err = unix.MunmapPtr(at, uintptr(m.size))
	t.Nanos += int64(time.Since(start))
	return t, err
}

// present counts the pages of a mapping that page tables point at.
func (m *fileMeasure) present(data []byte) (n int64, err error) {
	frames, err := frameNumbers(m.pagemap, data)
	for _, f := range frames {
		if f != 0 {
			n++
		}
	}
	return n, err
}

// faultCount returns the page faults of this thread so far.
func faultCount() (int64, error) {
	var u unix.Rusage
	err := unix.Getrusage(unix.RUSAGE_THREAD, &u)
	return u.Minflt + u.Majflt, err
}

// load adds up all of the file through a mapping that has its pages already:
// the speed of the memory behind it.
func (m *fileMeasure) load() (t protocol.Timing, err error) {
	data, err := mapFile(m.fd, m.size, unix.MAP_SHARED)
	if err != nil {
		return t, err
	}
	defer unmap(data)
	m.sum += uint64(touch(data))
	words := unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(data))), len(data)/8)
	start := time.Now()
	for _, w := range words {
		m.sum += w
	}
	return protocol.Timing{Ops: 1, Bytes: m.size, Nanos: int64(time.Since(start))}, nil
}
