package daxmem

import (
	"sync/atomic"
	"unsafe" // this is the package's only file that imports it

	"golang.org/x/sys/unix"
)

// Words in shared memory: the first 8 bytes of b, at an address that is a
// multiple of 8. Operations are sequentially consistent (sync/atomic), for all
// processors and all kernels that map the memory as cached.
func loadWord(b []byte) uint64 { return atomic.LoadUint64(wordAt(b)) }

func storeWord(b []byte, v uint64) { atomic.StoreUint64(wordAt(b), v) }

func casWord(b []byte, old, v uint64) bool { return atomic.CompareAndSwapUint64(wordAt(b), old, v) }

func wordAt(b []byte) *uint64 { return (*uint64)(unsafe.Pointer(unsafe.SliceData(b[:8]))) }

// alignedBytes returns n bytes at an address that is a multiple of align, a
// power of two. Go's collector does not move what it has allocated.
func alignedBytes(n, align int) []byte {
	b := make([]byte, n+align-1)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) & uintptr(align-1)
	return b[skip:][:n:n]
}

// ioctl is ioctl(2) with a structure for the kernel to read and write.
func ioctl(fd int, request uint, arg []byte) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(unsafe.SliceData(arg))))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
