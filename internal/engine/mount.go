package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount is a mounted image.
type Mount struct {
	Engine string `json:"engine"`
	// Method is how the engine did it, for example "file+directio" or "phys".
	Method string `json:"method"`
	Target string `json:"target"`
	// Superblocks are the kernel's names of which one is this mount's:
	// directories below /sys/fs, or, from a daemon that knew EROFS only, names
	// below /sys/fs/erofs. As long as it is there, the kernel may read the
	// image, whatever became of the mount point. It can be empty: unknown.
	Superblocks []string `json:"superblocks,omitempty"`
	// Inodes are those of the directories. EROFS gives a superblock the name of
	// its device, which another one may have later.
	Inodes []uint64 `json:"inodes,omitempty"`

	ended bool // seen to end with its unmount
}

// on says which superblocks may be the mount's.
func (m *Mount) on(superblocks []string) *Mount {
	m.Superblocks, m.Inodes = superblocks, nil
	for _, s := range superblocks {
		m.Inodes = append(m.Inodes, inode(s))
	}
	return m
}

// inode is a directory's, or 0 if there is none.
func inode(path string) uint64 {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return 0
	}
	return st.Ino
}

// daxfsMagic is f_type of daxfs in statfs(2).
const daxfsMagic = 0x64617835

// Mounted reports whether an image is mounted at path, by any engine.
func Mounted(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && (st.Type == unix.EROFS_SUPER_MAGIC_V1 || st.Type == daxfsMagic)
}

// Unmount takes the mount point away, at once, also when the file system on it
// is in use. Gone tells when the kernel is done with it.
func Unmount(m *Mount) error {
	before := superblocks()
	if len(m.Superblocks) == 0 {
		// Its daemon was killed before it could write the name down.
		m.on(mountedSuperblock(m.Target))
	}
	if err := unix.Unmount(m.Target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil // not mounted
		}
		return fmt.Errorf("unmount %s: %w", m.Target, err)
	}
	if len(m.Superblocks) == 0 && len(superblocks()) < len(before) {
		m.ended = true
	}
	return nil
}

// Gone reports whether the kernel has let go of a mount that was unmounted. A
// mount whose superblock was never named counts as gone only after a reboot,
// which the caller has to know.
func (m *Mount) Gone() bool {
	if m.ended || len(m.Superblocks) == 0 {
		return m.ended
	}
	for i, s := range m.Superblocks {
		if !strings.Contains(s, "/") {
			s = filepath.Join(sysErofs, s)
		}
		now := inode(s)
		if now != 0 && (i >= len(m.Inodes) || m.Inodes[i] == 0 || m.Inodes[i] == now) {
			return false
		}
	}
	return true
}

const (
	sysErofs = "/sys/fs/erofs"
	sysDaxfs = "/sys/fs/daxfs"
)

// superblocks lists the kernel's superblocks of EROFS and daxfs: each has a
// directory in sysfs from mount to its very end (fs/erofs/sysfs.c,
// kmod/sysfs.c), also while only an overlay or an open file keeps it. EROFS
// names them by their devices, which are used again; daxfs never uses one twice.
func superblocks() []string {
	var out []string
	for _, dir := range []string{sysErofs, sysDaxfs} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // no such file system
		}
		for _, e := range entries {
			if e.IsDir() && e.Name() != "features" {
				out = append(out, filepath.Join(dir, e.Name()))
			}
		}
	}
	return out
}

// Ending returns what tells, after the image on target was unmounted, whether the
// kernel has let go of it. Which superblock is that of an EROFS on a file cannot
// be told: the next one that ends is taken for it.
func Ending(target string) (gone func() bool) {
	m := (&Mount{Target: target}).on(mountedSuperblock(target))
	if len(m.Superblocks) > 0 {
		return m.Gone
	}
	before := len(superblocks())
	return func() bool { return len(superblocks()) < before }
}

// mountedSuperblock names the superblock of the image that is mounted at target,
// or nothing where that cannot be told: EROFS on a file.
func mountedSuperblock(target string) []string {
	var st unix.Stat_t
	switch {
	case !Mounted(target) || unix.Stat(target, &st) != nil:
		return nil
	case unix.Major(st.Dev) == 0:
		return daxfsSuperblock(target)
	}
	device, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return nil
	}
	return []string{filepath.Join(sysErofs, filepath.Base(device))}
}

// erofsSuperblocks names the superblock of an EROFS that was mounted at target.
// On a device it has the device's name, which a superblock that ended meanwhile
// may have had before: what is new in sysfs does not tell. On a file its name is
// not to be had, and never used twice: it is one of those that were not there
// before, some of which other processes may have mounted.
func erofsSuperblocks(target string, before []string) []string {
	if named := mountedSuperblock(target); named != nil {
		return named
	}
	return slices.DeleteFunc(superblocks(), func(s string) bool { return slices.Contains(before, s) })
}

// option is a mount option: a flag where value and fd are not set.
type option struct {
	key, value string
	fd         *os.File
}

// mountNew mounts a new superblock of a file system type at target, read-only.
// Errors have the kernel's own words, which mount(2) writes to its log only.
func mountNew(fstype string, options []option, target string) error {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open file system type %s: %w", fstype, err)
	}
	defer func() { _ = unix.Close(fs) }() // nothing is left to go wrong
	for _, o := range append([]option{{key: "ro"}}, options...) {
		switch {
		case o.fd != nil:
			err = unix.FsconfigSetFd(fs, o.key, int(o.fd.Fd()))
		case o.value != "":
			err = unix.FsconfigSetString(fs, o.key, o.value)
		default:
			err = unix.FsconfigSetFlag(fs, o.key)
		}
		if err != nil {
			return fmt.Errorf("mount option %s: %w%s", o.key, err, messages(fs))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("mount %s: %w%s", fstype, err, messages(fs))
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOATIME)
	if err != nil {
		return fmt.Errorf("mount %s: %w%s", fstype, err, messages(fs))
	}
	defer func() { _ = unix.Close(mount) }()
	if err := unix.MoveMount(mount, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move mount to %s: %w", target, err)
	}
	return nil
}

// messages is what the kernel says about a file system that is being mounted
// (Documentation/filesystems/mount_api.rst): one message a read, each with a
// letter for its kind before it.
func messages(fs int) string {
	var all []string
	b := make([]byte, 1024)
	for {
		n, err := unix.Read(fs, b)
		if err != nil || n < 2 {
			break
		}
		all = append(all, strings.TrimSpace(string(b[2:n])))
	}
	if len(all) == 0 {
		return ""
	}
	return " (" + strings.Join(all, "; ") + ")"
}
