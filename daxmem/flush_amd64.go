package daxmem

// canFlush says that flushCache works on this processor.
const canFlush = true

// flushLines writes back the cache lines that b touches, of 64 bytes as on all
// x86-64 processors, and returns when that is done. Other mappings of the same
// memory are the same lines.
//
//go:noescape
func flushLines(b []byte)

func flushCache(b []byte) { flushLines(b) }
