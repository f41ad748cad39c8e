package convert

import (
	"archive/tar"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// node makes a node with a header's metadata.
func (t *tarImport) node(hdr *tar.Header, path string) (*mkdaxfs.Node, error) {
	n := &mkdaxfs.Node{Mode: uint32(hdr.Mode & 0o7777)}
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont, '\x00':
		n.Mode |= disk.TypeRegular
		if hdr.Size < 0 {
			return nil, fmt.Errorf("size %d: %w", hdr.Size, ErrBadLayer)
		}
	case tar.TypeDir:
		n.Mode |= disk.TypeDir
	case tar.TypeSymlink:
		// What Linux shows for every symlink.
		n.Mode = disk.TypeSymlink | 0o777
		if n.Link = hdr.Linkname; n.Link == "" || len(n.Link) > disk.MaxLinkLen || strings.IndexByte(n.Link, 0) >= 0 {
			return nil, fmt.Errorf("symlink target of %d bytes, want 1 to %d without NUL: %w", len(n.Link), disk.MaxLinkLen, ErrBadLayer)
		}
	case tar.TypeChar:
		n.Mode |= disk.TypeChar
	case tar.TypeBlock:
		n.Mode |= disk.TypeBlock
	case tar.TypeFifo:
		n.Mode |= disk.TypeFIFO
	default:
		return nil, fmt.Errorf("type %q is not known: %w", hdr.Typeflag, ErrBadLayer)
	}
	if disk.HasRdev(n.Mode) {
		if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
			return nil, fmt.Errorf("device %d:%d, want at most %d:%d: %w", hdr.Devmajor, hdr.Devminor, 1<<12-1, 1<<20-1, ErrBadLayer)
		}
		n.Rdev = disk.EncodeDev(uint32(hdr.Devmajor), uint32(hdr.Devminor))
	}
	return n, t.attributes(n, hdr, path)
}

// attributes gives a node the owner and time of a header, and its extended
// attributes beside those that it has.
func (t *tarImport) attributes(n *mkdaxfs.Node, hdr *tar.Header, path string) error {
	for _, id := range []int{hdr.Uid, hdr.Gid} {
		if id < 0 || uint64(id) >= math.MaxUint32 {
			return fmt.Errorf("owner %d:%d, want ids of 0 to %d: %w", hdr.Uid, hdr.Gid, uint32(math.MaxUint32-1), ErrBadLayer)
		}
	}
	n.UID, n.GID = uint32(hdr.Uid), uint32(hdr.Gid)
	n.Mtime, n.MtimeNsec = hdr.ModTime.Unix(), uint32(hdr.ModTime.Nanosecond())
	clampTime(n, t.opts.MaxTime)
	var xs []disk.Xattr
	for _, key := range slices.Sorted(maps.Keys(hdr.PAXRecords)) { // for the order of warnings
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok {
			continue
		}
		value := hdr.PAXRecords[key]
		if reason := xattrLoss(n, name, value); reason != "" {
			t.warn(path, reason)
			continue
		}
		xs = append(xs, disk.Xattr{Name: name, Value: value})
	}
	if len(xs) == 0 {
		return nil
	}
	n.SetXattrs(over(n.Xattrs, xs))
	return mkdaxfs.CheckXattrs(path, n.Xattrs)
}

// again gives a file what a hard link's entry says about it. containerd's own differ
// loses security.capability at this, because the kernel drops it when an owner is
// set (fs/attr.c, ATTR_KILL_PRIV): that is no word of the archive's.
func (t *tarImport) again(n *mkdaxfs.Node, hdr *tar.Header) error {
	if !n.IsSymlink() {
		n.Mode = n.Mode&^0o7777 | uint32(hdr.Mode&0o7777)
	}
	return t.attributes(n, hdr, hdr.Name)
}

// over returns attributes with others in the place of those of the same name.
func over(old, xs []disk.Xattr) []disk.Xattr {
	kept := slices.DeleteFunc(slices.Clone(old), func(o disk.Xattr) bool {
		return slices.ContainsFunc(xs, func(x disk.Xattr) bool { return x.Name == o.Name })
	})
	return append(kept, xs...)
}

// xattrLoss says why an attribute of an archive is left out, or "". They are
// those that no Linux file system would take, and overlayfs's own, with which
// an image could steer its own merge.
func xattrLoss(n *mkdaxfs.Node, name, value string) string {
	if strings.HasPrefix(name, overlayPrefix) || strings.HasPrefix(name, daxfsPrefix) {
		return fmt.Sprintf("xattr %q is reserved", name)
	}
	if strings.HasPrefix(name, "user.") && !n.IsRegular() && !n.IsDir() {
		return fmt.Sprintf("xattr %q is possible on files and directories only", name)
	}
	if _, _, ok := disk.SplitXattr(name); !ok {
		return fmt.Sprintf("xattr %q is in no namespace that the format knows", name)
	}
	return ""
}

func clampTime(n *mkdaxfs.Node, limit int64) {
	if limit != 0 && (n.Mtime > limit || n.Mtime == limit && n.MtimeNsec > 0) {
		n.Mtime, n.MtimeNsec = limit, 0
	}
}
