//go:build !amd64

package daxmem

// canFlush: here nobody has tried. A region that would need it is refused.
const canFlush = false

func flushCache([]byte) { panic("daxmem: no way to flush caches on this processor") }
