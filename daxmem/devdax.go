package daxmem

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// openDevdax maps a DAX device, /dev/daxX.Y: CXL memory, memory that firmware
// has set aside, or a pmem namespace in mode devdax.
func openDevdax(path string, a access) (Region, error) {
	f, err := os.OpenFile(path, a.mode(), 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, errors.Join(fmt.Errorf("stat %s: %w", path, err), f.Close())
	}
	return mapDevdax(f, fmt.Sprintf("/sys/dev/char/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), path, a)
}

// mapDevdax maps f, which sysfs describes in the directory sys, and takes it
// over.
func mapDevdax(f *os.File, sys, path string, a access) (Region, error) {
	r, err := describeDevdax(sys, path)
	if err == nil && a == toOwn && r.persistent && !canFlush {
		err = fmt.Errorf("%s is persistent memory, whose caches this program cannot flush on this processor: %w", path, ErrUnsupported)
	}
	if err == nil && a == toOwn {
		err = lockFile(f)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	r.f, r.ro = f, a != toOwn
	if err := r.mapAll(); err != nil {
		return nil, err
	}
	if r.persistent && !r.ro {
		return &persistentRegion{mappedRegion: r, flush: flushCache, deepFlush: deepFlushFile(sys)}, nil
	}
	return r, nil
}

// describeDevdax reads what sysfs says about a DAX device
// (Documentation/ABI/testing/sysfs-bus-dax).
func describeDevdax(sys, path string) (*mappedRegion, error) {
	if bus, err := os.Readlink(filepath.Join(sys, "subsystem")); err != nil || filepath.Base(bus) != "dax" {
		return nil, invalidf("%s is a character device, and not a DAX device", path)
	}
	size, err := readNumber(filepath.Join(sys, "size"))
	if err != nil {
		return nil, fmt.Errorf("size of %s: %w", path, err)
	}
	align, err := readNumber(filepath.Join(sys, "align"))
	if err != nil {
		return nil, fmt.Errorf("alignment of %s: %w", path, err)
	}
	if align <= 0 || align%blockSize != 0 || size%align != 0 {
		return nil, invalidf("%s: %d bytes in units of %d, want whole units of whole blocks", path, size, align)
	}
	real, err := filepath.EvalSymlinks(sys)
	if err != nil {
		return nil, err
	}
	r := &mappedRegion{
		kind: KindDevdax, path: path, size: size, unit: align,
		// libnvdimm's devices are below its bus, ndbusN; other memory does not
		// outlive a loss of power.
		persistent: strings.Contains(real, "/ndbus"),
	}
	// A device can be put together from several ranges. It has an address only
	// if there is one.
	ranges, err := filepath.Glob(filepath.Join(sys, "mapping[0-9]*"))
	if err != nil {
		return nil, err
	}
	if len(ranges) <= 1 {
		r.address, _ = readHex(filepath.Join(sys, "resource")) // needed by some only
	}
	return r, nil
}

// readNumber reads a decimal number from a file.
func readNumber(file string) (int64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}
