package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	dmControl = "/dev/mapper/control"
	dmPrefix  = "daxfs-" // of our devices' names: daxfs-PID-NUMBER
	sector    = 512      // of device-mapper tables, bytes
)

var dmSerial atomic.Int64

// dmRequest is what goes through the ioctls of device-mapper
// (include/uapi/linux/dm-ioctl.h): a header and, for loading, a table of one
// target with its parameters.
type dmRequest struct {
	unix.DmIoctl
	target unix.DmTargetSpec
	params [64]byte
}

// linear makes a read-only device over [off, off+n) of the block device dev,
// and returns it open. The kernel removes it when its last user is gone: that
// may be the descriptor, or a mount.
//
// It takes a device, and not an offset to mount at, since the kernel knows a
// superblock by its device: a second image at another offset of the same
// device would be the first one again (fs/super.c, get_tree_bdev).
func linear(dev *os.File, off, n int64) (_ *os.File, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make a device of [%d,+%d) of %s: %w", off, n, dev.Name(), err)
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(int(dev.Fd()), &st); err != nil {
		return nil, err
	}
	control, err := os.OpenFile(dmControl, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	name := fmt.Sprintf("%s%d-%d", dmPrefix, os.Getpid(), dmSerial.Add(1))
	made, err := dm(control, unix.DM_DEV_CREATE, name, 0, nil)
	if err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	defer func() {
		// Once in use, it goes with its last user. Before that, at once.
		if _, rerr := dm(control, unix.DM_DEV_REMOVE, name, unix.DM_DEFERRED_REMOVE, nil); rerr != nil {
			err = errors.Join(err, fmt.Errorf("remove: %w", rerr))
		}
	}()
	table := &dmRequest{target: unix.DmTargetSpec{Length: uint64(n) / sector}}
	copy(table.target.Target_type[:], "linear")
	copy(table.params[:], fmt.Sprintf("%d:%d %d", unix.Major(st.Rdev), unix.Minor(st.Rdev), off/sector))
	if _, err := dm(control, unix.DM_TABLE_LOAD, name, unix.DM_READONLY_FLAG, table); err != nil {
		return nil, fmt.Errorf("load table: %w", err)
	}
	if _, err := dm(control, unix.DM_DEV_SUSPEND, name, 0, nil); err != nil { // without DM_SUSPEND_FLAG: resume
		return nil, fmt.Errorf("resume: %w", err)
	}
	return os.Open(fmt.Sprintf("/dev/dm-%d", unix.Minor(made.Dev)))
}

// dm does one request for the device called name and returns what the kernel
// answered. table may be nil.
func dm(control *os.File, request uint, name string, flags uint32, table *dmRequest) (*dmRequest, error) {
	r := table
	if r == nil {
		r = &dmRequest{}
	} else {
		r.Target_count = 1
	}
	r.Version = [3]uint32{unix.DM_VERSION_MAJOR, 0, 0}
	r.Data_size = uint32(unsafe.Sizeof(*r))
	r.Data_start = uint32(unsafe.Offsetof(r.target))
	r.Flags = flags
	copy(r.Name[:], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), uintptr(request), uintptr(unsafe.Pointer(r))); errno != 0 {
		return nil, errno
	}
	return r, nil
}

// removeStale removes devices of ours that a process made and died before it
// could say that they go with their last user. One that is in use stays.
func removeStale() error {
	names, err := filepath.Glob("/sys/block/dm-*/dm/name")
	if err != nil || len(names) == 0 {
		return err
	}
	control, err := os.OpenFile(dmControl, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer control.Close()
	var errs []error
	for _, file := range names {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // removed meanwhile
		}
		name := strings.TrimSpace(string(b))
		rest, ours := strings.CutPrefix(name, dmPrefix)
		maker, _, _ := strings.Cut(rest, "-")
		pid, err := strconv.Atoi(maker)
		if !ours || err != nil || unix.Kill(pid, 0) != unix.ESRCH {
			continue
		}
		if _, err := dm(control, unix.DM_DEV_REMOVE, name, 0, nil); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENXIO) {
			errs = append(errs, fmt.Errorf("remove device %s, which a dead process left: %w", name, err))
		}
	}
	return errors.Join(errs...)
}
