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

	room     int64 // bytes that may still be written; <0: no limit
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
	n := len(b)
	var err error
	if m.room >= 0 && int64(n) > m.room {
		n, err = int(m.room), fmt.Errorf("write: %w", os.NewSyscallError("pwrite", errNoSpace))
	}
	if m.room >= 0 {
		m.room -= int64(n)
	}
	copy(m.mem[off:], b[:n])
	if m.synced != nil {
		m.ops = append(m.ops, writeOp{off: off, data: bytes.Clone(b[:n])})
	}
	return n, err
}

func (m *memRegion) Punch(off, n int64) error {
	if m.onWrite != nil {
		m.onWrite()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.mem[off : off+n])
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
func (m *memRegion) Size() int64               { return int64(len(m.mem)) }
func (m *memRegion) Kind() string              { return "mem" }
func (m *memRegion) Path() string              { return "mem" }
func (m *memRegion) Allocated() (int64, error) { return int64(len(m.mem)), nil }
func (m *memRegion) Close() error              { return nil }
