package main

import (
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/vm/proof/protocol"
)

// pieceSize is the most that an import hashes and writes at a time.
const pieceSize = 1 << 20

// fileSet is the contents of a set of files.
type fileSet struct {
	name  string
	files [][]byte
	bytes int64
}

// newFileSet makes contents that no two files share.
func newFileSet(d protocol.FileSet) (*fileSet, error) {
	b, err := plainMemory(d.Bytes + d.Most)
	if err != nil {
		return nil, err
	}
	if _, err := rand.NewChaCha8([32]byte{1}).Read(b); err != nil {
		return nil, err
	}
	sizes := rand.New(rand.NewPCG(1, 2))
	set := &fileSet{name: d.Name}
	for set.bytes < d.Bytes {
		n := d.Least + sizes.Int64N(d.Most-d.Least+1)
		set.files = append(set.files, b[set.bytes:][:n:n])
		set.bytes += n
	}
	return set, nil
}

// space is what the files take, each in pages of its own.
func (set *fileSet) space() (n int64) {
	for _, f := range set.files {
		n += pages(f)
	}
	return n
}

func pages(f []byte) int64 { return (int64(len(f)) + pageSize - 1) / pageSize * pageSize }

// each gives all files to do in pieces, with places for them one behind the
// other.
func (set *fileSet) each(do func(piece []byte, at int64) error) error {
	at := int64(0)
	for _, f := range set.files {
		for i := 0; i < len(f); i += pieceSize {
			if err := do(f[i:min(i+pieceSize, len(f))], at+int64(i)); err != nil {
				return err
			}
		}
		at += pages(f)
	}
	return nil
}

func (set *fileSet) copyTo(to []byte) error {
	return set.each(func(piece []byte, at int64) error {
		copy(to[at:], piece)
		return nil
	})
}

// hash hashes each file, and copies it too where there is a place for it.
func (set *fileSet) hash(to []byte) error {
	h := blake3.New()
	var digest [32]byte
	at := int64(0)
	for _, f := range set.files {
		h.Reset()
		for i := 0; i < len(f); i += pieceSize {
			piece := f[i:min(i+pieceSize, len(f))]
			if _, err := h.Write(piece); err != nil {
				return err
			}
			if to != nil {
				copy(to[at+int64(i):], piece)
			}
		}
		h.Sum(digest[:0])
		at += pages(f)
	}
	return nil
}

// plainMemory is memory without a file, in pages of 4 KiB as most regions have
// them.
func plainMemory(n int64) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", n, err)
	}
	if err := unix.Madvise(b, unix.MADV_NOHUGEPAGE); err != nil && !errors.Is(err, unix.EINVAL) { // a kernel without
		return nil, fmt.Errorf("ask for small pages: %w", err)
	}
	return b, nil
}
