package engine

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// attachLoop binds a free loop device to src, read-only, and returns it open.
// containerd's mount package has no offset. The device frees itself when the
// last user closes it, so none is left behind by a crash.
func attachLoop(src Source, direct bool) (*os.File, error) {
	backing, err := os.Open(src.Region.Path())
	if err != nil {
		return nil, fmt.Errorf("attach loop device: %w", err)
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("attach loop device: %w", err)
	}
	defer control.Close()
	cfg := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: 4096}
	cfg.Info.Offset = uint64(src.Offset)
	cfg.Info.Sizelimit = uint64(src.Size)
	cfg.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
	if direct {
		cfg.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	// Another process can take the free device first.
	const tries = 20
	for try := 0; ; try++ {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("attach loop device: find a free one: %w", err)
		}
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDONLY, 0)
		if err != nil {
			return nil, fmt.Errorf("attach loop device: %w", err)
		}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &cfg)
		if err == nil && direct {
			err = checkDirect(dev)
		}
		if err == nil {
			return dev, nil
		}
		dev.Close()
		if !errors.Is(err, unix.EBUSY) || try == tries {
			return nil, fmt.Errorf("attach %v to %s: %w", src, dev.Name(), err)
		}
	}
}

// checkDirect reports whether the kernel kept direct I/O, which it drops
// silently where the file system has none.
func checkDirect(dev *os.File) error {
	info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
	if err != nil {
		return err
	}
	if info.Flags&unix.LO_FLAGS_DIRECT_IO == 0 {
		return errors.New("loop device has no direct I/O on this file system")
	}
	return nil
}
