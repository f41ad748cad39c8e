package protocol

import "fmt"

// What the image that "inside speed" measures on holds: a file BigFile of
// BigFileSize random bytes, and for each of DirSizes a directory DirName with
// as many empty files, named EntryName(0) and so on.
const (
	BigFile     = "big"
	BigFileSize = 64 << 20
)

var DirSizes = []int{100, 10_000, 1_000_000}

func DirName(n int) string { return fmt.Sprint("d", n) }

// EntryName scatters the names over the order of a sorted directory.
func EntryName(i int) string { return fmt.Sprintf("entry-%08x", uint32(i)*2654435761) }
