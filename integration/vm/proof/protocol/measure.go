// Package protocol defines what the guest program of the proof prints and the
// driver on the host reads: JSON, one object a line.
package protocol

// Engines are the ways to mount one image, in the order of the tables.
var Engines = []string{"overlayfs", "erofs", "erofs-dax", "daxfs"}

// Memory is what one kernel uses at one moment. All sizes are bytes.
type Memory struct {
	// Free counts the pages in the per-CPU lists too, which MemFree does not
	// and which may be more than an image is large.
	Free         int64 `json:"free"`
	Available    int64 `json:"available"` // MemAvailable
	Cached       int64 `json:"cached"`    // Cached and Buffers, less Shmem
	Shmem        int64 `json:"shmem"`
	Slab         int64 `json:"slab"`
	PageTables   int64 `json:"page_tables"`
	KernelStacks int64 `json:"kernel_stacks"`
	Percpu       int64 `json:"percpu"`
	Anon         int64 `json:"anon"` // AnonPages

	// Sums over the processes that hold the image, from smaps_rollup.
	Processes int   `json:"processes"`
	Rss       int64 `json:"rss"`
	PssFile   int64 `json:"pss_file"` // of file mappings, the processes' own program included
	PssAnon   int64 `json:"pss_anon"`
}

// Frames says where the pages of a process's mappings of image files are.
type Frames struct {
	Pages int64 `json:"pages"` // mapped and present
	Equal int64 `json:"equal"` // of these, at the very address of the file's bytes in the pool
}

// Look is one byte of a file, seen in the two ways by a process that has had
// the file mapped since before.
type Look struct {
	Mapped byte `json:"mapped"`
	Read   byte `json:"read"`
}

// Timing is one measurement of one file system.
type Timing struct {
	FS    string `json:"fs"`
	What  string `json:"what"`
	Round int    `json:"round"`
	Ops   int64  `json:"ops"`
	Bytes int64  `json:"bytes,omitempty"`
	Nanos int64  `json:"ns"`
	// Of mappings: faults taken, and pages that were mapped in the end.
	Faults int64 `json:"faults,omitempty"`
	Pages  int64 `json:"pages,omitempty"`
}
