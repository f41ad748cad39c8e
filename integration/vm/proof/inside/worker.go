package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/vm/proof/protocol"
)

// keepFrom is the size from which on a process keeps a file mapped. Smaller
// files, 7 % of a Debian image's bytes, are not: no process maps thousands of
// them, and the kernel's records of so many mappings would hide what is to be
// measured.
const keepFrom = 16 << 10

// worker is a process of a container that uses all of its image: it maps the
// larger files, touches each page and keeps the mappings until its standard
// input ends; the smaller ones it reads. With thorough, it does both with every
// file. It says "ready", and then answers one line with one:
//
//	frames POOL       protocol.Frames, for a pool at that physical address
//	look PATH OFFSET  protocol.Look at a byte of a kept file
func worker(name string, thorough bool) error {
	m, err := openManifest(name)
	if err != nil {
		return err
	}
	w := process{manifest: m}
	if err := w.touchAll(thorough); err != nil {
		return err
	}
	if _, err := io.WriteString(os.Stdout, "ready\n"); err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		answer, err := w.answer(strings.Fields(lines.Text()))
		if err != nil {
			return err
		}
		b, err := json.Marshal(answer)
		if err != nil {
			return err
		}
		if _, err := os.Stdout.Write(append(b, '\n')); err != nil {
			return err
		}
	}
	return lines.Err()
}

type process struct {
	manifest manifest
	kept     []mapping
	sum      byte // of touched bytes, so that the loads are not optimised away
}

type mapping struct {
	file
	data []byte
}

func (p *process) touchAll(thorough bool) error {
	buf := make([]byte, 128<<10)
	return p.manifest.each(func(f file) error {
		if f.size == 0 {
			return nil
		}
		fd, err := f.open()
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		keep := f.size >= keepFrom
		if thorough || !keep {
			if err := readWhole(fd, f.size, buf); err != nil {
				return err
			}
		}
		if !thorough && !keep {
			return nil
		}
		// Programs map libraries privately and data often shared.
		flags := unix.MAP_PRIVATE
		if len(p.kept)%2 == 0 {
			flags = unix.MAP_SHARED
		}
		data, err := mapFile(fd, f.size, flags)
		if err != nil {
			return err
		}
		p.sum += touch(data)
		if !keep {
			return unmap(data)
		}
		p.kept = append(p.kept, mapping{f, data})
		return nil
	})
}

func readWhole(fd int, size int64, buf []byte) error {
	for left := size; left > 0; {
		n, err := unix.Read(fd, buf[:min(left, int64(len(buf)))])
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if n == 0 {
			return fmt.Errorf("read: end of file %d bytes early", left)
		}
		left -= int64(n)
	}
	return nil
}

// mapFile is mmap(2) without package unix's table of mappings, whose memory
// would count as the process's own.
func mapFile(fd int, size int64, flags int) ([]byte, error) {
	addr, err := unix.MmapPtr(fd, 0, nil, uintptr(size), unix.PROT_READ, flags)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", size, err)
	}
	return unsafe.Slice((*byte)(addr), size), nil
}

func unmap(data []byte) error {
	return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(data)), uintptr(len(data)))
}

// touch loads a byte of each page, in order.
func touch(data []byte) (sum byte) {
	for i := 0; i < len(data); i += pageSize {
		sum += data[i]
	}
	return sum
}

func (p *process) answer(words []string) (any, error) {
	var (
		pool, offset int64
		path         string
	)
	switch line := strings.Join(words, " "); {
	case scan(line, "frames %d", &pool):
		return p.frames(pool)
	case scan(line, "look %s %d", &path, &offset):
		return p.look(path, offset)
	default:
		return nil, fmt.Errorf("bad request %q", line)
	}
}

func scan(line, format string, to ...any) bool {
	n, err := fmt.Sscanf(line, format, to...)
	return err == nil && n == len(to)
}

// frames compares the physical address of every page of the kept mappings
// with that of the same bytes in the pool.
func (p *process) frames(pool int64) (*protocol.Frames, error) {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r protocol.Frames
	for _, m := range p.kept {
		frames, err := frameNumbers(f, m.data)
		if err != nil {
			return nil, err
		}
		for i, frame := range frames {
			if frame == 0 {
				continue
			}
			r.Pages++
			if frame == (pool+m.address)/pageSize+int64(i) {
				r.Equal++
			}
		}
	}
	return &r, nil
}

func (p *process) look(path string, offset int64) (*protocol.Look, error) {
	for _, m := range p.kept {
		if unix.BytePtrToString(m.path) != path || offset >= m.size {
			continue
		}
		fd, err := m.open()
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		b := make([]byte, 1)
		if n, err := unix.Pread(fd, b, offset); err != nil || n != 1 {
			return nil, fmt.Errorf("read 1 byte of %s at %d: %d bytes, %w", path, offset, n, err)
		}
		return &protocol.Look{Mapped: m.data[offset], Read: b[0]}, nil
	}
	return nil, fmt.Errorf("no kept mapping of %s has a byte %d", path, offset)
}
