package inside

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// dir is where everything is mounted: on a tmpfs.
const dir = "/run/hostile"

// mount mounts an image read-only, without device files and set-uid programs.
func mount(r region, offset int64, at, name string, more ...string) error {
	options := append([]string{fmt.Sprintf("offset=%d,name=%s", offset, name)}, more...)
	if r.dmabuf != nil {
		return mountDmabuf(r.dmabuf, at, strings.Split(strings.Join(options, ","), ","))
	}
	options = append(options, fmt.Sprintf("phys=%#x,size=%d", r.phys, r.size))
	if r.nopages {
		options = append(options, "nopages")
	}
	return unix.Mount("none", at, "daxfs", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID, strings.Join(options, ","))
}

// mountDmabuf is mount for a descriptor, which only fsconfig(2) takes.
func mountDmabuf(dmabuf *os.File, at string, options []string) error {
	fs, err := unix.Fsopen("daxfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetFd(fs, "dmabuf", int(dmabuf.Fd())); err != nil {
		return err
	}
	for _, o := range options {
		if key, value, ok := strings.Cut(o, "="); ok {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return err
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return err
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	return unix.MoveMount(mount, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// unmount unmounts what nobody uses: a reference that stays is a leak.
func unmount(at string) error {
	var err error
	// Ends of processes take a moment.
	for range 100 {
		if err = unix.Unmount(at, 0); !errors.Is(err, unix.EBUSY) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

// anchorAt is where the task's sound image is mounted.
const anchorAt = dir + "/anchor"

// anchor mounts the task's sound image and makes sure that dir is there.
func anchor(task *Task, r region) (release func() error, err error) {
	if err := os.MkdirAll(anchorAt, 0o755); err != nil {
		return nil, err
	}
	if err := mount(r, task.Anchor, anchorAt, "anchor"); err != nil {
		return nil, fmt.Errorf("mount the anchor: %w", err)
	}
	return func() error { return unmount(anchorAt) }, nil
}

// anchorDmabuf returns the anchor's region as a dma-buf.
func anchorDmabuf() (*os.File, error) {
	f, err := os.Open(anchorAt)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), 'D'<<8|1, 0)
	if errno != 0 {
		return nil, fmt.Errorf("ask %s for a dma-buf: %w", anchorAt, errno)
	}
	return os.NewFile(fd, "dma-buf"), nil
}

// places makes n mount points.
func places(n int, prefix string) ([]string, error) {
	var out []string
	for i := range n {
		at := filepath.Join(dir, fmt.Sprintf("%s%d", prefix, i))
		if err := os.MkdirAll(at, 0o755); err != nil {
			return nil, err
		}
		out = append(out, at)
	}
	return out, nil
}
