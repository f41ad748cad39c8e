package daxmem

import (
	"sync/atomic"
	"unsafe" // this is the package's only file that imports it
)

// storeWord stores v into the first 8 bytes of b, which are aligned, in one
// piece and after all stores before it.
func storeWord(b []byte, v uint64) {
	atomic.StoreUint64((*uint64)(unsafe.Pointer(unsafe.SliceData(b[:8]))), v)
}

// alignedBytes returns n bytes at an address that is a multiple of align, a
// power of two. Go's collector does not move what it has allocated.
func alignedBytes(n, align int) []byte {
	b := make([]byte, n+align-1)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) & uintptr(align-1)
	return b[skip:][:n:n]
}
