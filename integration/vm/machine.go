package vm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/daxfs/containerd-daxfs/integration/vm/protocol"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

// PoolAlign is what a pool's size must be a multiple of, in bytes: the
// granularity at which a kernel gives page structs to device memory.
const PoolAlign = 2 * mib

// Machine describes a guest.
type Machine struct {
	Kernel Kernel
	// Memory is the guest's own RAM in bytes; 0 means 1 GiB.
	Memory int64
	// Pool is a file that the guest and whoever else maps it share as memory,
	// typically from NewPool; "" for none. In the guest it is the physical range
	// at Guest.PoolAddress, a virtio-pmem region.
	Pool string
	// Ivshmem is a file as Pool is, which the guest has as BAR 2 of an ivshmem
	// device; "" for none.
	Ivshmem string
	// NdPmem loads nd_pmem, which makes the pool /dev/pmem0 and claims its
	// physical range. Without it the range is nobody's.
	NdPmem bool
	// Daxfs builds and loads our module.
	Daxfs bool
	// Modules are further kernel modules to load, by name. Loaded anyway are
	// those of overlay, erofs, ext4, loop devices and device-mapper.
	Modules []string
	// Append is added to the kernel's command line.
	Append string
	// Shared is a directory that the guest sees read-write and uncached at the
	// same path; "" for none.
	Shared string
	// Disk is a file of a raw disk image, /dev/vda in the guest; "" for none.
	Disk string
	// Args are further arguments of QEMU's.
	Args []string
}

// defaultModules are what every guest loads if its kernel has them as modules.
var defaultModules = []string{
	"virtio_pci", "virtio_console", "9p", "9pnet_virtio", "overlay", // to get at the userland
	"virtio_pmem", "virtio_blk", "loop", "dm_mod",
	"crc32c_generic", // libcrc32c asks for one by its algorithm
	"erofs", "ext4",
}

func (m Machine) memory() int64 {
	if m.Memory == 0 {
		return gib
	}
	return m.Memory
}

// check tells what QEMU would say less clearly or not at all.
func (m Machine) check() error {
	if m.Kernel.Image == "" {
		return errors.New("machine without a kernel")
	}
	if m.memory() < 256*mib {
		return fmt.Errorf("guest memory %d bytes, want at least %d", m.Memory, 256*mib)
	}
	if m.NdPmem && m.Pool == "" {
		return errors.New("nd_pmem without a pool")
	}
	for _, pool := range []string{m.Pool, m.Ivshmem} {
		if pool == "" {
			continue
		}
		info, err := os.Stat(pool)
		if err != nil {
			return fmt.Errorf("pool: %w", err)
		}
		if size := info.Size(); size == 0 || size%PoolAlign != 0 {
			return fmt.Errorf("pool %s has %d bytes, want a multiple of %d", pool, size, PoolAlign)
		}
	}
	if m.Shared != "" && !filepath.IsAbs(m.Shared) {
		return fmt.Errorf("shared directory %q is not absolute", m.Shared)
	}
	return nil
}

// Descriptors that QEMU inherits.
const (
	agentFD = 3 + iota
	consoleFD
	initrdFD
)

// arguments are QEMU's.
func (m Machine) arguments() ([]string, error) {
	args := []string{
		"-name", "lab-" + m.Kernel.Name,
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-monitor", "none",
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2",
		"-kernel", m.Kernel.Image,
		"-initrd", fmt.Sprintf("/proc/self/fd/%d", initrdFD),
		"-append", m.commandLine(),
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", consoleFD),
		"-serial", "chardev:console",
		"-device", "virtio-serial-pci",
		"-chardev", fmt.Sprintf("socket,id=agent,fd=%d", agentFD),
		"-device", "virtserialport,chardev=agent,name=" + protocol.Port,
		"-virtfs", "local,path=/,mount_tag=" + protocol.TagRoot + ",security_model=none,readonly=on,multidevs=remap",
	}
	if m.Shared != "" {
		args = append(args, "-virtfs", "local,path="+commas(m.Shared)+",mount_tag="+protocol.TagShared+",security_model=none,multidevs=remap")
	}
	if m.Disk != "" {
		args = append(args,
			"-drive", "file="+commas(m.Disk)+",if=none,format=raw,id=disk",
			"-device", "virtio-blk-pci,drive=disk")
	}
	if m.Ivshmem != "" {
		backend, err := memoryBackend("ivshmem", m.Ivshmem)
		if err != nil {
			return nil, err
		}
		args = append(args, "-object", backend, "-device", "ivshmem-plain,memdev=ivshmem")
	}
	args = append(args, m.Args...)
	memory := m.memory()
	if m.Pool == "" {
		return append(args, "-m", fmt.Sprintf("%dB", memory)), nil
	}
	info, err := os.Stat(m.Pool)
	if err != nil {
		return nil, err
	}
	backend, err := memoryBackend("pool", m.Pool)
	if err != nil {
		return nil, err
	}
	return append(args,
		"-m", fmt.Sprintf("%dB,slots=2,maxmem=%dB", memory, memory+info.Size()+gib),
		"-object", backend, "-device", "virtio-pmem-pci,memdev=pool"), nil
}

// memoryBackend is QEMU's object for a file that is memory.
func memoryBackend(id, file string) (string, error) {
	info, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("memory-backend-file,id=%s,share=on,mem-path=%s,size=%dB", id, commas(file), info.Size()), nil
}

// commandLine is the kernel's. An oops ends the guest, so that what comes after
// it is not taken for a result. Watchdogs bark late, because the machine may be
// busy; for the same reason a timer may come too late for the kernel's check of
// it. QEMU's time stamp counters agree, which 6.1 does not find out. Self-tests
// of ciphers take a second or two.
func (m Machine) commandLine() string {
	return strings.TrimSpace("console=ttyS0 loglevel=7 panic=-1 oops=panic " +
		"watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=120 no_timer_check tsc=reliable cryptomgr.notests mitigations=off " + m.Append)
}

// commas quotes a value in an option of QEMU's.
func commas(s string) string { return strings.ReplaceAll(s, ",", ",,") }
