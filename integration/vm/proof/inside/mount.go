package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/vm/proof/protocol"
)

const (
	disk = "/dev/vda"
	pmem = "/dev/pmem0" // the pool, while nd_pmem is bound to it
)

// mountImage mounts the image at the beginning of the pool or, for "overlayfs",
// the disk.
func mountImage(pool protocol.Pool, engine, at string) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	source, fs, options := pmem, "erofs", ""
	switch engine {
	case "overlayfs":
		source, fs = disk, "ext4"
	case "erofs":
		options = "dax=never"
	case "erofs-dax":
		options = "dax=always"
	case "daxfs":
		source, fs, options = "none", "daxfs", fmt.Sprintf("phys=%#x,size=%d", pool.Phys, pool.Size)
	default:
		return fmt.Errorf("no engine %q", engine)
	}
	if source != disk {
		if err := bindPmem(source == pmem); err != nil {
			return err
		}
	}
	if err := unix.Mount(source, at, fs, unix.MS_RDONLY, options); err != nil {
		return fmt.Errorf("mount %s of %s (%s): %w", fs, source, options, err)
	}
	// The kernel drops DAX silently where a device has none.
	shown, err := mountOptions(at)
	if err != nil {
		return err
	}
	if dax := strings.Contains(shown, "dax=always"); dax != (engine == "erofs-dax") {
		return fmt.Errorf("%s is mounted with options %q", engine, shown)
	}
	return nil
}

func mountOptions(at string) (string, error) {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 3 && f[1] == at {
			return f[3], nil
		}
	}
	return "", fmt.Errorf("%s is not mounted", at)
}

// loadPmem loads the kernel's pmem driver and leaves it without a device.
func loadPmem() error {
	if err := os.WriteFile("/sys/bus/nd/drivers_autoprobe", []byte("0"), 0); err != nil {
		return err
	}
	if out, err := exec.Command("modprobe", "nd_pmem").CombinedOutput(); err != nil {
		return fmt.Errorf("modprobe nd_pmem: %w\n%s", err, out)
	}
	return nil
}

// bindPmem binds the pmem driver to the pool or takes it away: EROFS needs its
// block device, DAXFS the range for itself.
func bindPmem(want bool) error {
	const driver = "/sys/bus/nd/drivers/nd_pmem"
	bound, err := filepath.Glob(driver + "/namespace*")
	if err != nil || want == (len(bound) > 0) {
		return err
	}
	control := driver + "/bind"
	if !want {
		control = driver + "/unbind"
	}
	if err := os.WriteFile(control, []byte("namespace0.0"), 0); err != nil {
		return fmt.Errorf("write namespace0.0 to %s: %w", control, err)
	}
	return nil
}
