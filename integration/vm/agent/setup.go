package main

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/vm/protocol"
)

// mnt is one mount(2).
type mnt struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func (m mnt) mount() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
	}
	return nil
}

// setUp loads the modules, changes to the machine's root file system and mounts
// what a system has.
func setUp(s protocol.Setup) error {
	for _, path := range s.Modules {
		if err := loadModule(path); err != nil {
			return err
		}
	}
	const root = "/new/root"
	for _, m := range []mnt{
		// The machine's files do not change for most of a guest's life, and
		// asking again for each would be slow.
		{protocol.TagRoot, "/new/lower", "9p", unix.MS_RDONLY, "trans=virtio,version=9p2000.L,cache=loose,msize=512000"},
		{"tmpfs", "/new/tmp", "tmpfs", 0, "mode=755"},
	} {
		if err := m.mount(); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/new/tmp/upper", "/new/tmp/work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	mounts := []mnt{
		{"overlay", root, "overlay", 0, "lowerdir=/new/lower,upperdir=/new/tmp/upper,workdir=/new/tmp/work"},
		{"proc", root + "/proc", "proc", 0, ""},
		{"sysfs", root + "/sys", "sysfs", 0, ""},
		{"cgroup2", root + "/sys/fs/cgroup", "cgroup2", 0, ""},
		{"debugfs", root + "/sys/kernel/debug", "debugfs", 0, ""},
		{"tracefs", root + "/sys/kernel/tracing", "tracefs", 0, ""},
		{"devtmpfs", root + "/dev", "devtmpfs", 0, ""},
		{"devpts", root + "/dev/pts", "devpts", 0, "ptmxmode=666"},
		{"tmpfs", root + "/dev/shm", "tmpfs", 0, "mode=1777"},
		{"mqueue", root + "/dev/mqueue", "mqueue", 0, ""},
		{"tmpfs", root + "/run", "tmpfs", 0, "mode=755"},
	}
	if s.Shared != "" {
		// Both sides change it: nothing is cached.
		mounts = append(mounts, mnt{protocol.TagShared, root + s.Shared, "9p", 0, "trans=virtio,version=9p2000.L,cache=none,msize=512000"})
	}
	for _, m := range mounts {
		if err := m.mount(); err != nil {
			return err
		}
	}
	if err := switchRoot(root); err != nil {
		return err
	}
	for _, l := range []struct{ target, path string }{
		{"/proc/self/fd", "/dev/fd"},
		{s.ModuleDir, filepath.Join("/lib/modules", filepath.Base(s.ModuleDir))},
		// Programs look here for mounts; the machine's own file is stale.
		{"/proc/self/mounts", "/etc/mtab"},
	} {
		if err := link(l.target, l.path); err != nil {
			return err
		}
	}
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	return loopbackUp()
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil {
		return fmt.Errorf("load %s: %w", path, err)
	}
	return nil
}

// switchRoot makes root the root directory of every process, kernel threads
// included, which share it with process 1.
func switchRoot(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s to /: %w", root, err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot to %s: %w", root, err)
	}
	return os.Chdir("/")
}

// link makes a symbolic link in the place of whatever is there.
func link(target, path string) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.Symlink(target, path)
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	return nil
}
