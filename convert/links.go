package convert

import (
	"slices"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// linkAll finds out what hard links to files of lower layers change about these
// files: a link's entry has attributes, and they are the file's, by all its names.
func (m *merger) linkAll() {
	for i, l := range m.layers {
		m.linkBelow(l.Root, i)
	}
}

func (m *merger) linkBelow(dir *mkdaxfs.Node, layer int) {
	for _, c := range dir.Children {
		if c.Node.IsDir() {
			m.linkBelow(c.Node, layer)
			continue
		}
		path, ok := c.Node.Xattr(MarkLink)
		if !ok {
			continue
		}
		target, err := m.linkTarget(path, layer)
		if err != nil {
			continue // an error of whoever needs the link, if anybody does
		}
		n := *m.file(target)
		if !n.IsSymlink() {
			n.Mode = n.Mode&^0o7777 | c.Node.Mode&0o7777
		}
		n.UID, n.GID, n.Mtime, n.MtimeNsec = c.Node.UID, c.Node.GID, c.Node.Mtime, c.Node.MtimeNsec
		xs := slices.DeleteFunc(slices.Clone(c.Node.Xattrs), func(x disk.Xattr) bool { return isMark(x.Name) })
		n.Xattrs = nil
		n.SetXattrs(over(m.file(target).Xattrs, xs))
		if m.linked == nil {
			m.linked = make(map[*mkdaxfs.Node]*mkdaxfs.Node)
		}
		m.linked[target] = &n
	}
}

// file is a file of a layer as links of higher layers have left it.
func (m *merger) file(n *mkdaxfs.Node) *mkdaxfs.Node {
	if now, ok := m.linked[n]; ok {
		return now
	}
	return n
}
