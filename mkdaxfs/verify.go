package mkdaxfs

import (
	"io"
	"slices"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// Verify decodes what Emit returned for the same place, record by record as a
// reader of a foreign image would, and compares the result with the tree that
// the layout was made of. It is what stands between a fault of the emitter and
// a published image; for images from elsewhere there is Check.
func (l *Layout) Verify(super, meta []byte, at Place) error {
	img, err := Open(&emitted{super, meta, at.Meta - at.Super}, at.End-at.Super)
	if err != nil {
		return err
	}
	d, err := newDecoder(img, at.Super)
	if err != nil {
		return err
	}
	if _, err := d.tree(); err != nil {
		return err
	}
	if len(d.nodes) != len(l.nodes) {
		return disk.Corruptf("emitted image: %d inodes, the tree has %d", len(d.nodes), len(l.nodes))
	}
	for i, want := range l.nodes {
		got := d.nodes[i]
		if got.Mode != want.Mode || got.UID != want.UID || got.GID != want.GID || got.Rdev != want.Rdev ||
			got.Mtime != want.Mtime || got.MtimeNsec != want.MtimeNsec || got.Link != want.Link ||
			got.Size != want.Size || got.Size > 0 && got.Extent.Offset != want.Extent.Offset ||
			l.opts.Layer && got.Size > 0 && got.Extent.Digest != want.Extent.Digest ||
			!slices.Equal(got.Xattrs, want.Xattrs) || len(got.Children) != len(want.Children) {
			return disk.Corruptf("emitted image: inode %d is not the tree's", i+1)
		}
		for j, c := range want.Children {
			if g := got.Children[j]; g.Name != c.Name || g.Node != d.nodes[c.Node.ino-1] {
				return disk.Corruptf("emitted image: inode %d: entry %d is %q, the tree has %q", i+1, j, g.Name, c.Name)
			}
		}
	}
	return nil
}

// emitted reads an image that is not written yet, without its file data.
type emitted struct {
	super, meta []byte
	metaAddr    int64
}

func (e *emitted) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	if off < int64(len(e.super)) {
		n = copy(p, e.super[off:])
	} else if in := off - e.metaAddr; in >= 0 && in < int64(len(e.meta)) {
		n = copy(p, e.meta[in:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
