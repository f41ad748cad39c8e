package daxmem

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
)

// memRegion is a region in memory whose writes can be recorded and made to fail.
type memRegion struct {
	mu     sync.Mutex
	mem    []byte
	synced []byte    // what the last Sync made safe; nil: not tracked
	ops    []writeOp // since the last Sync

	room     int64 // bytes that may still be written to blocks without space; <0: no limit
	backed   map[int64]bool
	failSync error
	onWrite  func() // before each write
}

// writeOp is a write, or with nil data a punch of n bytes.
type writeOp struct {
	off  int64
	data []byte
	n    int64
}

func newMem(size int64) *memRegion { return &memRegion{mem: make([]byte, size), room: -1} }

func (m *memRegion) ReadAt(b []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if off >= int64(len(m.mem)) {
		return 0, io.EOF
	}
	n := copy(b, m.mem[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memRegion) WriteAt(b []byte, off int64) (int, error) {
	if m.onWrite != nil {
		m.onWrite()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.back(b, off)
	copy(m.mem[off:], b[:n])
	if m.synced != nil {
		m.ops = append(m.ops, writeOp{off: off, data: bytes.Clone(b[:n])})
	}
	return n, err
}

// back takes space for a write and says how much of it can be done. As on a
// file system, what was written before can be written again on a full one.
func (m *memRegion) back(b []byte, off int64) (n int, err error) {
	for n < len(b) {
		at := off + int64(n)
		block := at / blockSize
		part := min(int64(len(b)-n), (block+1)*blockSize-at)
		if !m.backed[block] && m.room >= 0 {
			if part > m.room {
				part, m.room = m.room, 0
				return n + int(part), fmt.Errorf("write: %w", os.NewSyscallError("pwrite", errNoSpace))
			}
			m.room -= part
		}
		if m.backed == nil {
			m.backed = make(map[int64]bool)
		}
		m.backed[block] = true
		n += int(part)
	}
	return n, nil
}

func (m *memRegion) Punch(off, n int64) error {
	if m.onWrite != nil {
		m.onWrite()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.mem[off : off+n])
	for block := off / blockSize; block < (off+n)/blockSize; block++ {
		delete(m.backed, block)
	}
	if m.synced != nil {
		m.ops = append(m.ops, writeOp{off: off, n: n})
	}
	return nil
}

func (m *memRegion) Sync() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failSync != nil {
		return m.failSync
	}
	if m.synced != nil {
		for _, op := range m.ops {
			op.apply(m.synced)
		}
		m.ops = nil
	}
	return nil
}

func (op writeOp) apply(mem []byte) {
	if op.data == nil {
		clear(mem[op.off : op.off+op.n])
		return
	}
	copy(mem[op.off:], op.data)
}

func (m *memRegion) Grow(size int64) error {
	m.mem = append(m.mem, make([]byte, size-int64(len(m.mem)))...)
	return nil
}
func (m *memRegion) Size() int64      { return int64(len(m.mem)) }
func (m *memRegion) Private() bool    { return true }
func (m *memRegion) Persistent() bool { return true }
func (m *memRegion) Window(off, n int64, writable bool) (Window, error) {
	return &directWindow{ReaderAt: m, WriterAt: m}, nil
}
func (m *memRegion) Fixed() bool               { return false }
func (m *memRegion) Address() uint64           { return 0 }
func (m *memRegion) Kind() string              { return "mem" }
func (m *memRegion) Path() string              { return "mem" }
func (m *memRegion) Allocated() (int64, error) { return int64(len(m.mem)), nil }
func (m *memRegion) Close() error              { return nil }
