package daxmem

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// udmabuf is the device that makes dma-bufs of memfds, since Linux 4.20
// (CONFIG_UDMABUF).
type udmabuf struct {
	device string
	// limit is a file with the most MiB that a dma-buf may have, a parameter of
	// the module.
	limit string
}

var systemUdmabuf = udmabuf{"/dev/udmabuf", "/sys/module/udmabuf/parameters/size_limit_mb"}

const (
	// UDMABUF_CREATE of include/uapi/linux/udmabuf.h takes struct udmabuf_create:
	// memfd, flags (32 bits each), offset, size (64 bits each).
	udmabufCreate      = 0x40187542
	udmabufFlagCloexec = 1
)

// make makes a dma-buf of the first size bytes of a memfd.
func (u udmabuf) make(memfd int, size int64) (*os.File, error) {
	control, err := os.OpenFile(u.device, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	fd, err := ioctl(int(control.Fd()), udmabufCreate, udmabufArgument(memfd, size))
	if errors.Is(err, unix.EINVAL) {
		if limit, lerr := readNumber(u.limit); lerr == nil && size > limit<<20 {
			return nil, fmt.Errorf("%d bytes, %s allows %d MiB: write a larger number there: %w", size, u.limit, limit, err)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", u.device, err)
	}
	return os.NewFile(uintptr(fd), "dma-buf"), nil
}

func udmabufArgument(memfd int, size int64) []byte {
	b := hostOrder.AppendUint32(nil, uint32(memfd))
	b = hostOrder.AppendUint32(b, udmabufFlagCloexec)
	b = hostOrder.AppendUint64(b, 0)
	return hostOrder.AppendUint64(b, uint64(size))
}
