package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// recorder notes which files of which images are opened, in the order of their
// first opening.
//
// Since Linux 6.5 overlayfs tells the watchers of a lower file system when a
// file of it is opened through the overlay ("ovl: enable fsnotify events on
// underlying real files"). So it is enough to watch the image: what a container
// wrote itself lies elsewhere and is not seen, and the path is that in the
// image, in whichever mount namespace the overlay is. On older kernels the
// overlays above the image are watched too, and what is not the image's is
// left out by its inode number.
//
// An image that is not mounted yet when recording begins is found as soon as
// the mount table changes. Its files can be opened only after something else
// was mounted above it, be it for a moment, as ctr does to read /etc/passwd.
// Where there may have been such a mount before the image was watched, opens
// may have been missed, which is said.
//
// One goroutine runs it.
type recorder struct {
	events   *accesses
	mounts   mountTable
	stop     int                             // an eventfd
	choose   func(dir string) (string, bool) // whether to record the image that is mounted there, and its name
	since    func(dir string) (uint64, bool) // mountsSince
	overlays bool                            // watch overlays as well
	ids      map[int]bool                    // mounts that were seen
	byDev    map[uint64]*watched             // file systems that are watched
	seen     map[[2]string]bool              // by image and path
	files    []recorded
	late     []string // images whose first accesses may be missing
	lost     bool     // the kernel dropped events
	unknown  int      // accesses of files whose path in the image could not be told
}

// recorded is one file, which was opened.
type recorded struct {
	image, path string
	size        int64
}

// newRecorder begins to watch the images that are mounted now.
func newRecorder(choose func(dir string) (string, bool)) (_ *recorder, err error) {
	r := &recorder{
		mounts: -1, stop: -1, choose: choose, since: mountsSince, overlays: !kernelAtLeast(kernelRelease(), 6, 5),
		ids: make(map[int]bool), byDev: make(map[uint64]*watched), seen: make(map[[2]string]bool),
	}
	if r.events, err = newAccesses(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			shut(r)
		}
	}()
	if r.mounts, err = openMountTable(); err != nil {
		return nil, err
	}
	if r.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return r, r.scan(false)
}

func (r *recorder) Close() error {
	if r.mounts >= 0 {
		shut(r.mounts)
	}
	if r.stop >= 0 {
		_ = unix.Close(r.stop)
	}
	return r.events.Close()
}

// end makes run return when it has noted all that happened before.
func (r *recorder) end() {
	_, _ = unix.Write(r.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // cannot fail or block
}

// run notes what happens until end is called.
func (r *recorder) run() error {
	fds := []unix.PollFd{
		{Fd: int32(r.events.fd), Events: unix.POLLIN},
		{Fd: int32(r.stop), Events: unix.POLLIN},
		{Fd: int32(r.mounts), Events: unix.POLLPRI},
	}
	for {
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("poll: %w", err)
		}
		if fds[2].Revents&unix.POLLPRI != 0 { // first: a container starts soon
			if err := r.scan(true); err != nil {
				return err
			}
		}
		// What events are about may have been mounted just before them.
		lost, err := r.events.take(r.rescan, r.note)
		r.lost = r.lost || lost
		if err != nil || fds[1].Revents != 0 {
			return err
		}
	}
}

// rescan is scan if the mount table has changed.
func (r *recorder) rescan() error {
	changed, err := r.mounts.changed()
	if err != nil || !changed {
		return err
	}
	return r.scan(true)
}

// scan begins to watch what the mount table has that it had not before.
func (r *recorder) scan(late bool) error {
	infos, err := r.mounts.read()
	if err != nil {
		return err
	}
	var fresh []*watched
	now := make(map[int]bool, len(infos))
	dirs := make(map[string]string) // names of the images by where they are mounted
	for _, i := range infos {
		now[i.ID] = true
		if !isImage(i) {
			continue
		}
		image, ok := r.choose(i.Mountpoint)
		if !ok {
			continue
		}
		dirs[i.Mountpoint] = image
		if r.ids[i.ID] {
			continue
		}
		w, err := r.watch(i, image, i.Mountpoint, false)
		if err != nil {
			return err
		}
		if w != nil {
			fresh = append(fresh, w)
		}
	}
	for _, i := range infos {
		if !r.overlays || r.ids[i.ID] {
			continue
		}
		for dir, image := range dirs {
			if !overlays(i, dir) {
				continue
			}
			w, err := r.watch(i, image, dir, true)
			if err != nil {
				return err
			}
			if w != nil {
				fresh = append(fresh, w)
			}
		}
	}
	r.ids = now
	if late && len(fresh) > 0 {
		if infos, err = r.mounts.read(); err != nil {
			return err
		}
		for _, w := range fresh {
			if r.inUse(w, infos) && !slices.Contains(r.late, w.image) {
				r.late = append(r.late, w.image)
			}
		}
	}
	for _, i := range infos {
		if w := r.byDev[deviceOf(i)]; w != nil && i.Mountpoint != "/" {
			w.points[i.Mountpoint] = i.Root
		}
	}
	return nil
}

// watch begins to watch one file system; nil if it is gone already.
func (r *recorder) watch(i *mountinfo.Info, image, dir string, overlay bool) (*watched, error) {
	ok, err := r.events.add(i.Mountpoint, deviceOf(i))
	if !ok {
		return nil, err
	}
	w := &watched{image: image, dir: dir, dev: deviceOf(i), overlay: overlay, points: make(map[string]string)}
	// Of an earlier file system the number means nothing any more.
	r.byDev[w.dev] = w
	return w, nil
}

// inUse reports whether files of w may have been opened before it was watched.
func (r *recorder) inUse(w *watched, infos []*mountinfo.Info) bool {
	if w.overlay {
		// A container's process enters its root before it opens anything.
		roots, _ := filepath.Glob("/proc/[0-9]*/root")
		return slices.ContainsFunc(roots, func(p string) bool {
			var st unix.Stat_t
			return unix.Stat(p, &st) == nil && st.Dev == w.dev
		})
	}
	if n, ok := r.since(w.dir); ok && n > 0 {
		return true
	}
	return slices.ContainsFunc(infos, func(i *mountinfo.Info) bool {
		return deviceOf(i) == w.dev && i.Mountpoint != w.dir || !r.overlays && overlays(i, w.dir)
	})
}

// note takes one event.
func (r *recorder) note(fd, pid int) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size == 0 || pid == os.Getpid() {
		return
	}
	p, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		r.unknown++
		return
	}
	w := r.byDev[st.Dev]
	if w == nil {
		// An overlay shows a file under a device number that it has for the
		// file system that the file is on.
		if w, p = r.below(p, &st); w == nil {
			return
		}
	} else {
		var ok bool
		if p, ok = w.locate(p, &st); !ok {
			r.unknown++
			return
		}
	}
	id := [2]string{w.image, p}
	if r.seen[id] {
		return
	}
	r.seen[id] = true
	r.files = append(r.files, recorded{w.image, p, st.Size})
}

// below finds the image and the path of a file that was opened on an overlay,
// if it is the image's.
func (r *recorder) below(p string, st *unix.Stat_t) (*watched, string) {
	for _, w := range r.byDev {
		if !w.overlay {
			continue
		}
		name := w.inside(strings.TrimSuffix(p, " (deleted)"))
		if w.is(name, st) {
			return w, name
		}
	}
	return nil, ""
}

// images counts the files and bytes of each image, those with most files first.
func (r *recorder) images() []recordedImage {
	var all []recordedImage
	for _, f := range r.files {
		i := slices.IndexFunc(all, func(x recordedImage) bool { return x.Image == f.image })
		if i < 0 {
			i = len(all)
			all = append(all, recordedImage{Image: f.image})
		}
		all[i].Files++
		all[i].Bytes += f.size
	}
	slices.SortStableFunc(all, func(a, b recordedImage) int { return cmp.Compare(b.Files, a.Files) })
	return all
}

// paths is the list, in the order of first use.
func (r *recorder) paths() []string {
	var paths []string
	seen := make(map[string]bool)
	for _, f := range r.files {
		if !seen[f.path] {
			seen[f.path] = true
			paths = append(paths, f.path)
		}
	}
	return paths
}
