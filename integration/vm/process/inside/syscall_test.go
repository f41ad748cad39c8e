package inside

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// System calls that golang.org/x/sys/unix has no functions for.

func swapon(path string) error {
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	_, _, e := unix.Syscall(unix.SYS_SWAPON, uintptr(unsafe.Pointer(p)), 0, 0)
	return result(e)
}

// result is nil for 0.
func result(e unix.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

func ioctl(fd int, request, arg uintptr) (int, error) {
	n, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, arg)
	return int(n), result(e)
}

func munmap(addr uintptr, n int) error {
	_, _, e := unix.Syscall(unix.SYS_MUNMAP, addr, uintptr(n), 0)
	return result(e)
}

func mremap(addr uintptr, old, size, flags int, to uintptr) error {
	_, _, e := unix.Syscall6(unix.SYS_MREMAP, addr, uintptr(old), uintptr(size), uintptr(flags), to, 0)
	return result(e)
}

// mmapFixed maps f from off on over b, whatever is there.
func mmapFixed(f *os.File, b []byte, off int64, prot, flags int) error {
	_, err := unix.MmapPtr(int(f.Fd()), off, unsafe.Pointer(&b[0]), uintptr(len(b)), prot, flags|unix.MAP_FIXED)
	return err
}

func mlock2(b []byte, flags int) error {
	_, _, e := unix.Syscall(unix.SYS_MLOCK2, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(flags))
	return result(e)
}

func mincore(b, vec []byte) error {
	_, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(unsafe.Pointer(&vec[0])))
	return result(e)
}

// readVM and writeVM are process_vm_readv and process_vm_writev of one piece.
func readVM(pid int, addr uintptr, b []byte) (int, error) {
	local := []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}
	return unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: addr, Len: len(b)}}, 0)
}

func writeVM(pid int, addr uintptr, b []byte) (int, error) {
	local := []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}
	return unix.ProcessVMWritev(pid, local, []unix.RemoteIovec{{Base: addr, Len: len(b)}}, 0)
}
