// Package convert turns OCI layers and directories into file trees: it is the
// only package that knows tar, whiteouts and overlayfs's marks.
//
// A layer tree follows the conventions of an overlayfs upper directory: a
// whiteout is a character device 0/0, an opaque directory carries
// trusted.overlay.opaque=y (Documentation/filesystems/overlayfs.rst). Two marks
// of our own say what an upper directory cannot: MarkImplicit and MarkLink.
// Merge resolves them all into the one tree of an image.
package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

const (
	// MarkOpaque hides what lower layers have in the directory.
	MarkOpaque = "trusted.overlay.opaque"
	// MarkImplicit says that the layer has no entry of its own for the
	// directory: it exists for its children, and everything about it but its
	// names comes from the layer below.
	MarkImplicit = "trusted.daxfs.implicit"
	// MarkLink says that the file is a hard link to the path in its value,
	// which the layer itself does not have. Mode, owner, time and other
	// attributes are what the link gives to that file.
	MarkLink = "trusted.daxfs.link"

	overlayPrefix = "trusted.overlay."
	// overlayEscaped is how overlayfs stores a trusted.overlay.* attribute of
	// a file that is not meant for itself (Linux 6.7 and later).
	overlayEscaped = "trusted.overlay.overlay."
	daxfsPrefix    = "trusted.daxfs."
)

// ErrBadLayer is wrapped by errors about layers that break the OCI or tar
// rules.
var ErrBadLayer = fmt.Errorf("bad layer: %w", errdefs.ErrInvalidArgument)

// ErrTruncated is wrapped by errors about archives that end too early.
var ErrTruncated = fmt.Errorf("truncated archive: %w", errdefs.ErrInvalidArgument)

// ErrTooLarge is wrapped by errors about layers and images that are larger than
// was allowed, or would take more memory.
var ErrTooLarge = fmt.Errorf("too large: %w", errdefs.ErrOutOfRange)

// Store keeps file contents. mkdaxfs.Builder puts them into an image file, the
// snapshotter's adapter of daxmem.Import into the pool.
type Store interface {
	// Put stores exactly size bytes of r, and fails if there are fewer.
	Put(ctx context.Context, r io.Reader, size int64) (mkdaxfs.Extent, error)
}

// Warning is a loss that containerd's own unpack accepts too, so that it is
// reported instead of refused.
type Warning struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

// whiteout returns a new whiteout node.
func whiteout() *mkdaxfs.Node { return &mkdaxfs.Node{Mode: disk.TypeChar} }

func isOpaque(n *mkdaxfs.Node) bool {
	v, ok := n.Xattr(MarkOpaque)
	return ok && v == "y"
}

func isImplicit(n *mkdaxfs.Node) bool {
	_, ok := n.Xattr(MarkImplicit)
	return ok
}

// implicitDir is a directory without an entry of its own: what containerd and
// others make, with a time that does not depend on when.
func implicitDir() *mkdaxfs.Node {
	return &mkdaxfs.Node{Mode: disk.TypeDir | 0o755, Xattrs: []disk.Xattr{{Name: MarkImplicit, Value: "y"}}}
}

// isMark reports whether an attribute is for Merge and not for the image.
func isMark(name string) bool {
	return strings.HasPrefix(name, daxfsPrefix) ||
		strings.HasPrefix(name, overlayPrefix) && !strings.HasPrefix(name, overlayEscaped)
}

// storeError gives errors of the file system below a Store the class that
// containerd's clients understand.
func storeError(err error) error {
	if errors.Is(err, unix.ENOSPC) && !errdefs.IsResourceExhausted(err) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	}
	if os.IsPermission(err) && !errdefs.IsPermissionDenied(err) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrPermissionDenied)
	}
	return err
}
