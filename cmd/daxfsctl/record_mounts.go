package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mountTable is this mount namespace's, open: poll reports POLLPRI on it once
// after each change. It is no os.File, since the runtime's poller would take
// those reports.
type mountTable int

func openMountTable() (mountTable, error) {
	fd, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open mount table: %w", err)
	}
	return mountTable(fd), nil
}

func (t mountTable) Close() error { return unix.Close(int(t)) }

func (t mountTable) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(int(t), p)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

func (t mountTable) read() ([]*mountinfo.Info, error) {
	if _, err := unix.Seek(int(t), 0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	infos, err := mountinfo.GetMountsFromReader(t, nil)
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	return infos, nil
}

// changed reports whether the table is another one than when changed, or another
// poll, was asked before.
func (t mountTable) changed() (bool, error) {
	fds := []unix.PollFd{{Fd: int32(t), Events: unix.POLLPRI}}
	for {
		_, err := unix.Poll(fds, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("poll mount table: %w", err)
		}
		return fds[0].Revents&unix.POLLPRI != 0, nil
	}
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

// locate turns the path under which the kernel shows an open file of an image
// into the path in the image. It is right as it is where it comes from a
// container, whose root the image is, or from overlayfs, which has a mount of
// its own that hangs nowhere. Others lead through a mount point, perhaps of a
// mount namespace that is not ours.
func (w *watched) locate(p string, st *unix.Stat_t) (string, bool) {
	best := w.inside(p)
	var top unix.Stat_t
	if unix.Lstat(w.dir, &top) != nil || top.Dev != w.dev {
		return best, true // unmounted since: nothing is left to compare with
	}
	for name := best; ; name = p {
		if w.is(name, st) {
			return name, true
		}
		if name == p {
			break
		}
	}
	for {
		i := strings.IndexByte(p[1:], '/')
		if i < 0 {
			return "", false
		}
		if p = p[1+i:]; w.is(p, st) {
			return p, true
		}
	}
}

// is reports whether a path in the image is that of the file.
func (w *watched) is(name string, st *unix.Stat_t) bool {
	var own unix.Stat_t
	return unix.Lstat(w.dir+name, &own) == nil && own.Ino == st.Ino && own.Size == st.Size && own.Mtim == st.Mtim
}

// inside takes the mount point away from a path, as far as it is known.
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

// mountsSince counts the mounts that were made on this machine after the one
// on dir, since gone ones included. It is not known before Linux 6.8, which
// numbers mounts for good.
func mountsSince(dir string) (n uint64, ok bool) {
	id := func(fd int, path string, flags int) uint64 {
		var st unix.Statx_t
		if unix.Statx(fd, path, flags, unix.STATX_MNT_ID_UNIQUE, &st) != nil || st.Mask&unix.STATX_MNT_ID_UNIQUE == 0 {
			return 0
		}
		return st.Mnt_id
	}
	then := id(unix.AT_FDCWD, dir, 0)
	// The last number is that of a new mount, which hangs nowhere.
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil || then == 0 {
		return 0, false
	}
	defer func() { _ = unix.Close(fd) }()
	now := id(fd, "", unix.AT_EMPTY_PATH)
	return now - then - 1, now > then
}
