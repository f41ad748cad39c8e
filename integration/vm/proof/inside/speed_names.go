package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/vm/proof/protocol"
)

// measureNames measures what is done with names in directories of each size.
func (s *speedRun) measureNames() error {
	for i, size := range protocol.DirSizes {
		fd, err := unix.Open(filepath.Join(s.dir(s.fs), protocol.DirName(size)), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", protocol.DirName(size), err)
		}
		d := &dirMeasure{fd: fd, size: size, random: rand.New(rand.NewPCG(uint64(s.round), uint64(size)))}
		err = func() error {
			defer unix.Close(fd)
			if i == 0 {
				if err := s.measure("stat", d.stat); err != nil {
					return err
				}
			}
			in := fmt.Sprintf(" in %d", size)
			if err := s.measure("lookup hit"+in, d.hit); err != nil {
				return err
			}
			if err := s.measure("lookup miss"+in, d.miss); err != nil {
				return err
			}
			return s.measure("readdir"+in, d.read)
		}()
		if err != nil {
			return err
		}
	}
	return nil
}

type dirMeasure struct {
	fd     int // of the directory
	size   int
	random *rand.Rand
}

// stat asks for names that the kernel has cached.
func (d *dirMeasure) stat() (protocol.Timing, error) {
	return d.statEach(d.names(protocol.EntryName), nil)
}

// hit looks for names that are there, but not in the kernel's dentry cache
// (tmpfs has no other place for them: there, this is stat).
func (d *dirMeasure) hit() (protocol.Timing, error) {
	names := d.names(protocol.EntryName)
	if err := dropCaches("2"); err != nil {
		return protocol.Timing{}, err
	}
	return d.statEach(names, nil)
}

// miss looks for names that are not there and that nobody has looked for, so
// that no negative dentry answers.
func (d *dirMeasure) miss() (protocol.Timing, error) {
	tag := d.random.Uint64()
	return d.statEach(d.names(func(i int) string { return fmt.Sprintf("%s-%x", protocol.EntryName(i), tag) }), unix.ENOENT)
}

// names makes up to 1000 names of distinct entries, NUL-terminated.
func (d *dirMeasure) names(name func(i int) string) [][]byte {
	const most = 1000
	var out [][]byte
	// A step that has no factor in common with 10^n reaches each entry once.
	at, step := d.random.IntN(d.size), 7919
	for range min(most, d.size) {
		out = append(out, append([]byte(name(at)), 0))
		at = (at + step) % d.size
	}
	return out
}

func (d *dirMeasure) statEach(names [][]byte, want error) (protocol.Timing, error) {
	var st unix.Stat_t
	start := time.Now()
	for _, name := range names {
		_, _, errno := unix.Syscall6(unix.SYS_NEWFSTATAT, uintptr(d.fd), uintptr(unsafe.Pointer(&name[0])),
			uintptr(unsafe.Pointer(&st)), unix.AT_SYMLINK_NOFOLLOW, 0, 0)
		var got error
		if errno != 0 {
			got = errno
		}
		if !errors.Is(got, want) {
			return protocol.Timing{}, fmt.Errorf("stat %s: got %w, want %w", name[:len(name)-1], got, want)
		}
	}
	return protocol.Timing{Ops: int64(len(names)), Nanos: int64(time.Since(start))}, nil
}

// read reads the directory; of a very large one the beginning.
func (d *dirMeasure) read() (protocol.Timing, error) {
	const enough = 20_000
	buf := make([]byte, 64<<10)
	if _, err := unix.Seek(d.fd, 0, unix.SEEK_SET); err != nil {
		return protocol.Timing{}, err
	}
	t := protocol.Timing{Ops: -2} // "." and ".."
	start := time.Now()
	for t.Ops < enough {
		n, err := unix.Getdents(d.fd, buf)
		if err != nil {
			return t, fmt.Errorf("read directory of %d: %w", d.size, err)
		}
		if n == 0 {
			break
		}
		for b := buf[:n]; len(b) > 0; t.Ops++ {
			const reclen = 16 // offset in struct linux_dirent64
			b = b[int(b[reclen])|int(b[reclen+1])<<8:]
		}
	}
	t.Nanos = int64(time.Since(start))
	if t.Ops < int64(min(d.size, enough)) {
		return t, fmt.Errorf("read directory of %d: %d entries", d.size, t.Ops)
	}
	return t, nil
}
