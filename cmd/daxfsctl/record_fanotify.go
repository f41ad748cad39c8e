package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// accesses is a fanotify group: the kernel's queue of the files that are opened
// on the file systems that were added (fanotify(7)). Every use of a file, by
// read, mmap or exec, begins with its opening. Not safe for concurrent use.
type accesses struct{ fd int }

func newAccesses() (*accesses, error) {
	fd, err := unix.FanotifyInit(
		unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_UNLIMITED_QUEUE|unix.FAN_UNLIMITED_MARKS,
		unix.O_RDONLY|unix.O_LARGEFILE|unix.O_CLOEXEC|unix.O_NOATIME)
	switch {
	case err == nil:
		return &accesses{fd}, nil
	case errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("fanotify_init: %w: recording needs root (CAP_SYS_ADMIN in the first user namespace): %w", err, errdefs.ErrPermissionDenied)
	case errors.Is(err, unix.ENOSYS):
		return nil, fmt.Errorf("fanotify_init: %w: recording needs a kernel with CONFIG_FANOTIFY: %w", err, errdefs.ErrNotImplemented)
	}
	return nil, fmt.Errorf("fanotify_init: %w", err)
}

func (a *accesses) Close() error { return unix.Close(a.fd) }

// add begins to watch the file system that is mounted on dir, if it is still
// the one with that device number.
func (a *accesses) add(dir string, dev uint64) (added bool, err error) {
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer func() { _ = unix.Close(at) }()
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil || st.Dev != dev {
		return false, err // unmounted meanwhile: below it is the host's file system
	}
	err = unix.FanotifyMark(a.fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_OPEN, at, ".")
	if errors.Is(err, unix.EINVAL) {
		return false, fmt.Errorf("fanotify_mark of the file system on %s: %w: recording needs Linux 4.20 or later: %w", dir, err, errdefs.ErrNotImplemented)
	}
	if err != nil {
		return false, fmt.Errorf("fanotify_mark of the file system on %s: %w", dir, err)
	}
	return true, nil
}

// take calls f for each event in the queue, oldest first, and before ahead of
// each batch of them, which have happened by then. fd is a file that is open for
// reading until f returns. lost says that the kernel had no memory for events.
func (a *accesses) take(before func() error, f func(fd, pid int)) (lost bool, err error) {
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(a.fd, buf)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return lost, nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return lost, fmt.Errorf("read fanotify events: %w", err)
		}
		failed := before()
		for b := buf[:n]; len(b) >= unix.FAN_EVENT_METADATA_LEN; {
			// struct fanotify_event_metadata, in the machine's byte order.
			size := binary.NativeEndian.Uint32(b)
			if b[4] != unix.FANOTIFY_METADATA_VERSION || size < unix.FAN_EVENT_METADATA_LEN || int(size) > len(b) {
				return lost, fmt.Errorf("fanotify event of version %d and %d bytes, want version %d: %w", b[4], size, unix.FANOTIFY_METADATA_VERSION, errdefs.ErrNotImplemented)
			}
			mask := binary.NativeEndian.Uint64(b[8:])
			fd := int(int32(binary.NativeEndian.Uint32(b[16:])))
			pid := int(int32(binary.NativeEndian.Uint32(b[20:])))
			if mask&unix.FAN_Q_OVERFLOW != 0 {
				lost = true
			}
			if fd >= 0 {
				if failed == nil {
					f(fd, pid)
				}
				// At once: an open file keeps its file system from being unmounted.
				_ = unix.Close(fd)
			}
			b = b[size:]
		}
		if failed != nil {
			return lost, failed
		}
	}
}
