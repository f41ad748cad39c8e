// Package disk defines the DAXFS image format and converts its records to and
// from bytes. It does no I/O and trusts no field: Decode only moves bits, Check
// decides whether they make sense.
//
// All integers are little-endian. Offsets are bytes; "relative to base" means
// from Superblock.BaseOffset, "address" means from the superblock itself.
// Normative source: docs/format.md.
package disk

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// Sizes and identities of the format (docs/format.md, "Constants").
const (
	Magic = 0x64617835 // "dax5"

	// BlockSize is the only block size written so far: the page size of
	// x86-64. A mount needs block size = page size.
	BlockSize = 4096

	// VersionV8 is the dialect of the public module, VersionNative ours: a
	// number that the public module refuses.
	VersionV8     = 8
	VersionNative = 0x00010000

	SuperblockSize = 1024 // what the DAXFS part may use; the EROFS view starts behind it
	InodeSize      = 64
	DirentSize     = 12  // native, without the name
	DirHeaderSize  = 8   // native
	DirentV8Stride = 272 // v8: distance between two entries
	DirentV8Count  = 271 // v8: what the size of a directory is counted in
	RootIno        = 1
	MaxNameLen     = 255
	MaxLinkLen     = 4095 // bytes of a symlink's target, without NUL (PATH_MAX - 1)
	ExtentSize     = 48
	LayerRefSize   = 32

	// MaxXattrValue is what one entry can hold (16-bit size). Linux allows one
	// byte more (XATTR_SIZE_MAX, include/uapi/linux/limits.h).
	MaxXattrValue = 65535

	// HugeSize is the alignment of large extents: one PMD on x86-64.
	HugeSize = 2 << 20
)

// Incompatible features: a reader that does not know a set bit refuses the
// image. Read-only compatible and compatible bits are reserved.
const (
	IncompatLayer = 1 << 0 // a layer index, not a mountable image

	IncompatKnown = IncompatLayer
)

// Compatible features tell what an image holds; any reader may ignore them.
const (
	CompatErofs = 1 << 0 // an EROFS view of the same files is present
	CompatPool  = 1 << 1 // file data is shared with other images of a pool

	CompatKnown = CompatErofs | CompatPool
)

// ErrCorrupt is wrapped by every error about bytes that break the format.
var ErrCorrupt = fmt.Errorf("corrupt DAXFS image: %w", errdefs.ErrDataLoss)

// ErrNotDAXFS is returned for bytes without the magic number.
var ErrNotDAXFS = fmt.Errorf("not a DAXFS image: %w", errdefs.ErrInvalidArgument)

// ErrUnsupported is wrapped by errors about images that may be sound, but are
// not for this reader: another version, page size or incompatible feature.
var ErrUnsupported = fmt.Errorf("unsupported DAXFS image: %w", errdefs.ErrNotImplemented)

// IsBad reports whether err says that an image cannot be used because of its
// bytes, in contrast to an I/O error.
func IsBad(err error) bool {
	return errors.Is(err, ErrCorrupt) || errors.Is(err, ErrNotDAXFS) || errors.Is(err, ErrUnsupported)
}

// Corruptf returns an error that wraps ErrCorrupt.
func Corruptf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrCorrupt)...)
}

var le = binary.LittleEndian

// AlignUp rounds n up to a multiple of align, a power of two.
func AlignUp[T int64 | uint64 | int](n, align T) T { return (n + align - 1) &^ (align - 1) }

// Inside reports whether [off, off+n) lies in [0, size) without overflow.
func Inside(off, n, size uint64) bool { return off <= size && n <= size-off }
