package protocol

// FileSet is files that are copied and imported.
type FileSet struct {
	Name        string
	Bytes       int64 // all together, at least
	Least, Most int64 // bytes of a file
}

// FileSets are two ends of what layers hold: libraries and models; sources and
// configuration.
var FileSets = []FileSet{
	{"large", 256 << 20, 16 << 20, 16 << 20},
	{"small", 64 << 20, 4 << 10, 16 << 10},
}

// RegionSize is that of regions whose size can be chosen: room for each set.
const RegionSize = 320 << 20

// PlainMemory is no region: it is what plain copies go to.
const PlainMemory = "memory"

// What is done with a set of files. In plain memory:
const (
	Copy        = "copy"          // to pages that are there
	CopyFresh   = "copy, fresh"   // to pages that the kernel gives, zeroed, as they are touched
	Hash        = "hash"          // BLAKE3, by which extents are found
	HashAndCopy = "hash and copy" // piece by piece, by one thread: what an import has to do
)

// In a region:
const (
	Write       = "write"         // by Region.WriteAt, without a pool
	Put         = "put"           // into a pool: hash, allocate, write
	Publish     = "publish"       // the layer's index: build, check, write, enter into the catalog
	Sync        = "sync"          // make it outlive a loss of power, where the region can
	PutReopened = "put, reopened" // by an owner that has mapped the region anew
)

// Transfer is one measurement of one set in one memory.
type Transfer struct {
	Memory string `json:"memory"` // PlainMemory or the name of a region
	Set    string `json:"set"`
	What   string `json:"what"`
	Round  int    `json:"round"`
	Files  int    `json:"files"`
	Bytes  int64  `json:"bytes"`
	Nanos  int64  `json:"ns"`
	CPU    int64  `json:"cpu_ns"` // of all threads, in the program and in the kernel
	Faults int64  `json:"faults,omitempty"`
}
