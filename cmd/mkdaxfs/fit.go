package main

import (
	"fmt"
	"strings"

	"github.com/daxfs/containerd-daxfs/convert"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// maxListed is how many names an error lists.
const maxListed = 20

// unfit says why an image of the given dialect cannot hold n, or "".
func unfit(n *mkdaxfs.Node, v8 bool) string {
	switch {
	case n.IsWhiteout():
		return "character device 0/0, which overlayfs takes for a whiteout"
	case !v8:
		return ""
	}
	switch n.Mode & disk.TypeMask {
	case disk.TypeChar, disk.TypeBlock:
		major, minor := disk.DecodeDev(n.Rdev)
		return fmt.Sprintf("device %d:%d, which v8 cannot express", major, minor)
	case disk.TypeFIFO:
		return "FIFO, which v8 cannot express"
	case disk.TypeSocket:
		return "socket, which v8 cannot express"
	}
	return ""
}

// fit finds what the image cannot hold. With drop it is taken out of the tree
// and returned, else the error lists it.
func fit(t *mkdaxfs.Tree, v8, drop bool) ([]convert.Warning, error) {
	var found []convert.Warning
	names := make(map[*mkdaxfs.Node][]string) // what to take out, by directory
	var walk func(path string, dir *mkdaxfs.Node)
	walk = func(path string, dir *mkdaxfs.Node) {
		for _, c := range dir.Children {
			if reason := unfit(c.Node, v8); reason != "" {
				found = append(found, convert.Warning{Path: path + c.Name, Reason: reason})
				names[dir] = append(names[dir], c.Name)
			}
			if c.Node.IsDir() {
				walk(path+c.Name+"/", c.Node)
			}
		}
	}
	walk("", t.Root)
	if len(found) == 0 {
		return nil, nil
	}
	if !drop {
		var list []string
		for _, w := range found[:min(len(found), maxListed)] {
			list = append(list, fmt.Sprintf("%q (%s)", w.Path, w.Reason))
		}
		if more := len(found) - len(list); more > 0 {
			list = append(list, fmt.Sprintf("and %d more", more))
		}
		return nil, fmt.Errorf("%d files do not fit into the image, --drop leaves them out: %s", len(found), strings.Join(list, ", "))
	}
	for dir, ns := range names {
		for _, n := range ns {
			dir.Delete(n)
		}
	}
	t.Sort()
	return found, nil
}

// hidden counts inodes with what a v8 image keeps in bytes that its public
// readers ignore.
type hidden struct {
	Xattrs int `json:"xattrs"`
	Mtimes int `json:"mtimes"`
}

func (h *hidden) String() string {
	var parts []string
	if h.Xattrs > 0 {
		parts = append(parts, fmt.Sprintf("extended attributes of %d inodes", h.Xattrs))
	}
	if h.Mtimes > 0 {
		parts = append(parts, fmt.Sprintf("modification times of %d inodes", h.Mtimes))
	}
	return strings.Join(parts, " and ")
}

func hiddenFromV8(t *mkdaxfs.Tree) *hidden {
	h := new(hidden)
	seen := make(map[*mkdaxfs.Node]struct{})
	_ = t.Nodes(func(n *mkdaxfs.Node) error {
		if _, ok := seen[n]; ok {
			return nil
		}
		seen[n] = struct{}{}
		if len(n.Xattrs) > 0 {
			h.Xattrs++
		}
		if n.Mtime != 0 || n.MtimeNsec != 0 {
			h.Mtimes++
		}
		return nil
	})
	return h
}

// clampTimes makes limit the latest modification time (SOURCE_DATE_EPOCH).
func clampTimes(t *mkdaxfs.Tree, limit int64) {
	_ = t.Nodes(func(n *mkdaxfs.Node) error {
		if n.Mtime >= limit {
			n.Mtime, n.MtimeNsec = limit, 0
		}
		return nil
	})
}
