package main

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// manifest lists the image's regular files as the driver wrote them, one
// "SIZE ADDRESS /PATH\0" each, where ADDRESS is that of the file's bytes in the
// pool file. Processes share it as one mapping and read it in place: what a
// process itself needs must be small beside what the image costs.
type manifest []byte

// file is one entry. The path ends in NUL, for use in system calls.
type file struct {
	size    int64
	address int64
	path    *byte
}

func openManifest(name string) (manifest, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", name, err)
	}
	if len(b) == 0 || b[len(b)-1] != 0 {
		return nil, fmt.Errorf("%s does not end in NUL", name)
	}
	return b, nil
}

// each calls do for every file.
func (m manifest) each(do func(f file) error) error {
	for len(m) > 0 {
		var f file
		f.size, m = number(m)
		f.address, m = number(m)
		f.path = &m[0]
		for m[0] != 0 {
			m = m[1:]
		}
		m = m[1:]
		if err := do(f); err != nil {
			return fmt.Errorf("%s: %w", unix.BytePtrToString(f.path), err)
		}
	}
	return nil
}

// number takes a decimal number and the space behind it off b.
func number(b manifest) (n int64, rest manifest) {
	for b[0] != ' ' {
		n = 10*n + int64(b[0]-'0')
		b = b[1:]
	}
	return n, b[1:]
}

// open is open(2) for reading without a copy of the path.
func (f file) open() (int, error) {
	fd, _, errno := unix.Syscall6(unix.SYS_OPENAT, cwd, uintptr(unsafe.Pointer(f.path)),
		unix.O_RDONLY|unix.O_CLOEXEC, 0, 0, 0)
	if errno != 0 {
		return -1, fmt.Errorf("open: %w", errno)
	}
	return int(fd), nil
}

// cwd is AT_FDCWD as a register holds it.
var cwd = func() uintptr { fd := unix.AT_FDCWD; return uintptr(fd) }()
