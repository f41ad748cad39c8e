package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"
)

const (
	pageSize = 4096
	hugeSize = 2 << 20
)

// frameNumbers returns the frame number of each page of a mapping of this
// process, 0 where none is mapped. pagemap is /proc/self/pagemap, opened with
// CAP_SYS_ADMIN (else the kernel shows every number as 0;
// Documentation/admin-guide/mm/pagemap.rst).
func frameNumbers(pagemap *os.File, data []byte) ([]int64, error) {
	const (
		entry     = 8
		present   = 1 << 63
		frameMask = 1<<55 - 1
	)
	first := int64(uintptr(unsafe.Pointer(unsafe.SliceData(data)))) / pageSize
	raw := make([]byte, entry*((len(data)+pageSize-1)/pageSize))
	if _, err := pagemap.ReadAt(raw, entry*first); err != nil {
		return nil, fmt.Errorf("read pagemap of %d pages: %w", len(raw)/entry, err)
	}
	frames := make([]int64, len(raw)/entry)
	for i := range frames {
		e := binary.LittleEndian.Uint64(raw[entry*i:])
		if e&present == 0 {
			continue
		}
		if frames[i] = int64(e & frameMask); frames[i] == 0 {
			return nil, fmt.Errorf("the kernel hides frame numbers: CAP_SYS_ADMIN is missing")
		}
	}
	return frames, nil
}
