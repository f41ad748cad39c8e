// Package inside has the tests of engines and regions that run in a guest of
// the lab, on memory that is really there: package engines boots the guests and
// says in Location where the memory is. On any other machine they do nothing.
package inside

// Environment variables of the test binary.
const (
	// LocationVar is where the memory is: "/dev/pmem0", or
	// "phys:ADDRESS,size=SIZE". Without it no test runs.
	LocationVar = "DAXFS_ENGINES_LOCATION"
	// AddressVar is its physical address, as the guest's driver knows it.
	AddressVar = "DAXFS_ENGINES_ADDRESS"
)

// Marker is what some tests leave in the memory, MarkerFromEnd bytes before its
// end.
const (
	Marker        = "bytes of a layer"
	MarkerFromEnd = 4096
)

// Reserved RAM of guests that have some, bytes.
const (
	ReservedAt   = 0x30000000
	ReservedSize = 64 << 20
)
