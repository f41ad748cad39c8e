package convert

import (
	"io"

	"github.com/klauspost/readahead"
)

// Stages of a stream are a goroutine each, which hand on buffers: 2 MiB at most are
// between two of them.
const (
	stageBuffers = 4
	stageSize    = 512 << 10
)

// stage reads r in a goroutine of its own. Close ends it, when a read that is under
// way has ended, and closes r.
func stage(r io.ReadCloser) (io.ReadCloser, error) {
	return readahead.NewReadCloserSize(r, stageBuffers, stageSize)
}

// stages reads r in one goroutine and writes what it has read to diff in another,
// if diff is not nil. Hashing takes as long as decompression, or all that is done
// with files. All was written when the end has been read.
func stages(r io.ReadCloser, diff io.Writer) (io.ReadCloser, error) {
	read, err := stage(r)
	if err != nil || diff == nil {
		return read, err
	}
	return stage(struct {
		io.Reader
		io.Closer
	}{io.TeeReader(read, diff), read})
}
