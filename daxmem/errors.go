package daxmem

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/containerd/errdefs"
)

// Sentinels. Each wraps the errdefs class that containerd's clients see.
var (
	// ErrFull: no free range is large enough, or the file system under the
	// region is full. Nothing was allocated; the caller may collect and retry.
	// The error is always a *FullError.
	ErrFull = fmt.Errorf("daxmem: pool full: %w", errdefs.ErrResourceExhausted)

	// ErrInUse: the record is pinned, or an image draws from the layer.
	ErrInUse = fmt.Errorf("daxmem: in use: %w", errdefs.ErrFailedPrecondition)

	// ErrNotFound: the catalog has no sound record with that key.
	ErrNotFound = fmt.Errorf("daxmem: not in the catalog: %w", errdefs.ErrNotFound)

	// ErrOwned: another process owns the region.
	ErrOwned = fmt.Errorf("daxmem: region has another owner: %w", errdefs.ErrUnavailable)

	// ErrSeats: no seat at the pool, or not the one that was meant.
	ErrSeats = fmt.Errorf("daxmem: no such seat: %w", errdefs.ErrUnavailable)

	// ErrNoSwap: the region has no compare-and-swap, and the seat was not given.
	ErrNoSwap = fmt.Errorf("daxmem: no compare-and-swap: %w", errdefs.ErrInvalidArgument)

	// ErrFenced: another kernel has taken over what this one had, the pool or
	// its seat. What is mounted stays as it is; nothing new can be done.
	ErrFenced = fmt.Errorf("daxmem: fenced: %w", errdefs.ErrAborted)

	// ErrFault: the memory under a mapping is gone.
	ErrFault = fmt.Errorf("daxmem: fault: %w", errdefs.ErrDataLoss)

	// ErrClosed: the pool, or the import, has ended.
	ErrClosed = fmt.Errorf("daxmem: closed: %w", errdefs.ErrUnavailable)

	// ErrReadOnly: the pool was opened for inspection only.
	ErrReadOnly = fmt.Errorf("daxmem: opened read-only: %w", errdefs.ErrFailedPrecondition)

	// ErrNotPool: the region holds something else than a pool.
	ErrNotPool = fmt.Errorf("daxmem: not a pool: %w", errdefs.ErrInvalidArgument)

	// ErrUnsupported: a pool of another layout version, or with features that
	// this program does not know.
	ErrUnsupported = fmt.Errorf("daxmem: unsupported pool: %w", errdefs.ErrNotImplemented)

	// ErrCorrupt: bytes of the pool are not what they were.
	ErrCorrupt = fmt.Errorf("daxmem: corrupt pool: %w", errdefs.ErrDataLoss)

	// ErrTooSmall: the configured maximum is below what is in use.
	ErrTooSmall = fmt.Errorf("daxmem: maximum below use: %w", errdefs.ErrFailedPrecondition)

	// ErrInvalid: the caller's arguments, or the segment it built, are wrong.
	ErrInvalid = fmt.Errorf("daxmem: invalid argument: %w", errdefs.ErrInvalidArgument)
)

// FullError says what did not fit. All numbers are bytes.
type FullError struct {
	Path    string
	What    string // "extent", "segment", "catalog"
	Wanted  int64
	Free    int64 // in the whole pool, metadata reserve included
	Largest int64 // largest contiguous free range
	Maximum int64 // what the pool may use
	Cause   error // of the file system (ENOSPC), or nil when the pool itself is full
}

func (e *FullError) Error() string {
	s := fmt.Sprintf("%v: %s: no room for %s of %d bytes: %d free, largest %d, maximum %d",
		ErrFull, e.Path, e.What, e.Wanted, e.Free, e.Largest, e.Maximum)
	if e.Cause != nil {
		s += fmt.Sprintf(": file system: %v", e.Cause)
	}
	return s
}

// Unwrap makes both ErrFull and the cause visible to errors.Is.
func (e *FullError) Unwrap() []error {
	if e.Cause == nil {
		return []error{ErrFull}
	}
	return []error{ErrFull, e.Cause}
}

// isNoSpace reports whether err says that the medium under the region is full.
func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

func corruptf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrCorrupt)...)
}

func invalidf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrInvalid)...)
}
