// Package daxmem keeps file contents and metadata images in a memory region
// that kernels map: a pool.
//
// A [Region] is the range of bytes. A [Pool] over it is an allocator and a
// catalog: layers, which own shares of content-addressed extents, and images,
// which draw from layers. An [Import] collects the extents of one layer and
// publishes it. Everything is in the region; what memory holds beside it is
// rebuilt at every Open. docs/memory-model.md has the layout, the states of a
// record and what a crash leaves at each step; the invariants named in comments
// are stated there:
//
//	P  a record is LIVE only when its payload, segment and extents are in place
//	I  bytes that a LIVE record names do not change
//	R  space that a record named is reused only when the record is not LIVE on
//	   the medium, that is, after a sync
//	Z  space that the allocator calls free reads as zeros
//	O  each byte has exactly one owner
//
// Locks: Pool.mu guards all books and the records on the medium; it is not held
// over reads and writes of data, over sync, or over calls of a BuildFunc. The
// token in Pool.syncs comes before mu.
package daxmem
