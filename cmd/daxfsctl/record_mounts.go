package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mountTable is this mount namespace's, open: poll reports POLLPRI on it after
// a change.
type mountTable struct{ *os.File }

func openMountTable() (mountTable, error) {
	f, err := os.Open("/proc/self/mountinfo")
	return mountTable{f}, err
}

func (t mountTable) read() ([]*mountinfo.Info, error) {
	if _, err := t.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	infos, err := mountinfo.GetMountsFromReader(t, nil)
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	return infos, nil
}

// watched is a file system whose accesses are recorded: an image's or, where
// the kernel tells nothing about those through an overlay, the overlay's.
type watched struct {
	image   string // as people know it
	dir     string // where the image is mounted
	dev     uint64
	overlay bool
	points  map[string]string // where it is or was mounted: root of the mount by mount point
}

func deviceOf(i *mountinfo.Info) uint64 { return unix.Mkdev(uint32(i.Major), uint32(i.Minor)) }

func isImage(i *mountinfo.Info) bool {
	return (i.FSType == "erofs" || i.FSType == "daxfs") && i.Root == "/"
}

// overlays reports whether a mount is an overlay above dir.
func overlays(i *mountinfo.Info, dir string) bool {
	if i.FSType != "overlay" {
		return false
	}
	for _, o := range strings.Split(i.VFSOptions, ",") {
		name, value, _ := strings.Cut(o, "=")
		if (name == "lowerdir" || name == "lowerdir+") && slices.Contains(strings.Split(value, ":"), dir) {
			return true
		}
	}
	return false
}

// inside turns the path under which the kernel shows an open file into a path
// in the file system. A path that leads through none of its mount points comes
// from a container, whose root the file system is, or from overlayfs, which has
// a mount of its own that hangs nowhere.
func (w *watched) inside(p string) string {
	best := ""
	for at := range w.points {
		if strings.HasPrefix(p, at+"/") && len(at) > len(best) {
			best = at
		}
	}
	if best == "" {
		return p
	}
	return strings.TrimSuffix(w.points[best], "/") + p[len(best):]
}
