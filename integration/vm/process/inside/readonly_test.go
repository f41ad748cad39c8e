package inside

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// TestReadOnly: every way to write is refused, with the number that says so.
func TestReadOnly(t *testing.T) {
	onViews(t, "native v8 pool nopages", func(t *testing.T, m *mounted) {
		file, dir := m.path("types/file"), m.path("types/dir")
		f := m.open(t, "data/8193")
		fd := int(f.Fd())
		opens := func(path string, flags int) func() error {
			return func() error {
				fd, err := unix.Open(path, flags, 0o644)
				if err == nil {
					unix.Close(fd)
				}
				return err
			}
		}
		now := []unix.Timespec{{Sec: 1}, {Sec: 1}}
		for _, c := range []struct {
			what string
			want error
			do   func() error
		}{
			{"open to write", unix.EROFS, opens(file, unix.O_WRONLY)},
			{"open to read and write", unix.EROFS, opens(file, unix.O_RDWR)},
			{"open to append", unix.EROFS, opens(file, unix.O_WRONLY|unix.O_APPEND)},
			{"open and truncate", unix.EROFS, opens(file, unix.O_RDONLY|unix.O_TRUNC)},
			{"create", unix.EROFS, opens(m.path("new"), unix.O_CREAT|unix.O_WRONLY)},
			{"create what is there, to read", nil, opens(file, unix.O_CREAT|unix.O_RDONLY)},
			{"create what is there, exclusively", unix.EEXIST, opens(file, unix.O_CREAT|unix.O_EXCL|unix.O_RDONLY)},
			{"temporary file", unix.EROFS, opens(dir, unix.O_TMPFILE|unix.O_RDWR)},
			{"open a directory to write", unix.EISDIR, opens(dir, unix.O_WRONLY)},
			{"write to a descriptor to read", unix.EBADF, func() error { _, err := unix.Write(fd, []byte("x")); return err }},
			{"ftruncate a descriptor to read", unix.EINVAL, func() error { return unix.Ftruncate(fd, 0) }},
			{"fallocate a descriptor to read", unix.EBADF, func() error { return unix.Fallocate(fd, 0, 0, 1) }},
			{"truncate", unix.EROFS, func() error { return unix.Truncate(file, 0) }},
			{"mkdir", unix.EROFS, func() error { return unix.Mkdir(m.path("new"), 0o755) }},
			{"mkdir what is there", unix.EEXIST, func() error { return unix.Mkdir(dir, 0o755) }},
			{"mknod", unix.EROFS, func() error { return unix.Mknod(m.path("new"), unix.S_IFIFO|0o600, 0) }},
			{"symlink", unix.EROFS, func() error { return unix.Symlink("x", m.path("new")) }},
			{"link", unix.EROFS, func() error { return unix.Link(file, m.path("new")) }},
			{"unlink", unix.EROFS, func() error { return unix.Unlink(file) }},
			{"rmdir", unix.EROFS, func() error { return unix.Rmdir(dir) }},
			{"rename", unix.EROFS, func() error { return unix.Rename(file, m.path("new")) }},
			{"chmod", unix.EROFS, func() error { return unix.Chmod(file, 0o600) }},
			{"fchmod", unix.EROFS, func() error { return unix.Fchmod(fd, 0o600) }},
			{"chown", unix.EROFS, func() error { return unix.Lchown(file, 1, 1) }},
			{"utimes", unix.EROFS, func() error { return unix.UtimesNanoAt(unix.AT_FDCWD, file, now, 0) }},
			{"setxattr user", unix.EROFS, func() error { return unix.Lsetxattr(file, "user.new", nil, 0) }},
			{"setxattr trusted", unix.EROFS, func() error { return unix.Lsetxattr(file, "trusted.new", nil, 0) }},
			{"set an ACL", unix.EROFS, func() error {
				return unix.Lsetxattr(file, "system.posix_acl_access", []byte("\x02\x00\x00\x00"), 0)
			}},
			{"removexattr", unix.EROFS, func() error { return unix.Lremovexattr(m.path("xattr/file"), "user.note") }},
			{"access to write", unix.EROFS, func() error { return unix.Access(file, unix.W_OK) }},
			{"swapon", unix.EROFS, func() error { return swapon(m.path(Big)) }},
			{"map shared to write", unix.EACCES, func() error {
				_, err := unix.Mmap(fd, 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
				return err
			}},
			{"map shared, then protect to write", unix.EACCES, func() error {
				mem := mapFile(t, f, unix.PROT_READ, unix.MAP_SHARED)
				return mem.mprotect(0, pageSize, unix.PROT_READ|unix.PROT_WRITE)
			}},
			{"map shared, touch, then protect to write and execute", unix.EACCES, func() error {
				mem := mapFile(t, f, unix.PROT_READ, unix.MAP_SHARED)
				mem.touch()
				return mem.mprotect(0, len(mem.b), unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC)
			}},
			{"map shared and validated to write", unix.EACCES, func() error {
				_, err := unix.Mmap(fd, 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED_VALIDATE)
				return err
			}},
			{"map synchronously", unix.EOPNOTSUPP, func() error {
				_, err := unix.Mmap(fd, 0, pageSize, unix.PROT_READ, unix.MAP_SHARED_VALIDATE|unix.MAP_SYNC)
				return err
			}},
			{"punch a hole by MADV_REMOVE", unix.EACCES, func() error {
				mem := mapFile(t, f, unix.PROT_READ, unix.MAP_SHARED)
				return mem.madvise(0, pageSize, unix.MADV_REMOVE)
			}},
		} {
			if err := c.do(); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", c.what, err, c.want)
			}
		}
		m.wantUnchanged(t, "data/8193")
	})
}

// TestRemount: a mount stays read-only whatever it is asked to be. The call may
// succeed and change nothing, as on EROFS, or be refused, as on devices that
// are read-only.
func TestRemount(t *testing.T) {
	onViews(t, "native nopages", func(t *testing.T, m *mounted) {
		if err := unix.Mount("none", m.root, "", unix.MS_REMOUNT, ""); err != nil && err != unix.EROFS && err != unix.EACCES {
			t.Errorf("remount to write: %v, want success, %v or %v", err, unix.EROFS, unix.EACCES)
		}
		if err := unix.Mount("", m.root, "", unix.MS_REMOUNT|unix.MS_BIND, ""); err != nil {
			t.Errorf("remount the mount point to write: %v", err)
		}
		if fd, err := unix.Open(m.path("types/file"), unix.O_RDWR, 0); err != unix.EROFS {
			t.Errorf("open to write afterwards: %d, %v, want %v", fd, err, unix.EROFS)
		}
		if err := unix.Mkdir(m.path("new"), 0o755); err != unix.EROFS {
			t.Errorf("mkdir afterwards: %v, want %v", err, unix.EROFS)
		}
		var st unix.Statfs_t
		must(t, unix.Statfs(m.root, &st))
		if st.Flags&unix.ST_RDONLY == 0 {
			t.Errorf("statfs flags are %#x afterwards, want ST_RDONLY", st.Flags)
		}
		if err := unix.Mount("none", m.root, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Errorf("remount to read: %v", err)
		}
		m.wantUnchanged(t, "data/8193")
	})
}

// TestMountWithoutReadOnly: asked for a writable mount the kernel gives a
// read-only one, as for EROFS.
func TestMountWithoutReadOnly(t *testing.T) {
	daxfsOnly(t)
	dir := mountAt(t, "none", "daxfs", 0, options(ImageNative, ""))
	if fd, err := unix.Open(dir+"/types/file", unix.O_RDWR, 0); err != unix.EROFS {
		t.Errorf("open to write: %d, %v, want %v", fd, err, unix.EROFS)
	}
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	if st.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("statfs flags are %#x, want ST_RDONLY", st.Flags)
	}
}

// TestPrivateWrites: what a process writes to its private mapping is its own.
func TestPrivateWrites(t *testing.T) {
	onViews(t, "native v8 pool nopages overlay", func(t *testing.T, m *mounted) {
		const rel = "data/65537"
		for _, c := range []struct {
			what string
			prot int
			pre  func(mem *mapping)
		}{
			{"at once", unix.PROT_READ | unix.PROT_WRITE, func(*mapping) {}},
			{"after reading", unix.PROT_READ | unix.PROT_WRITE, (*mapping).touch},
			{"after mprotect", unix.PROT_READ, func(mem *mapping) {
				must(t, mem.mprotect(0, len(mem.b), unix.PROT_READ|unix.PROT_WRITE))
			}},
			{"after reading and mprotect", unix.PROT_READ, func(mem *mapping) {
				mem.touch()
				must(t, mem.mprotect(0, len(mem.b), unix.PROT_READ|unix.PROT_WRITE))
			}},
			{"after MADV_POPULATE_WRITE", unix.PROT_READ | unix.PROT_WRITE, func(mem *mapping) {
				must(t, mem.madvise(0, 65536, unix.MADV_POPULATE_WRITE))
			}},
		} {
			mem := mapPath(t, m.path(rel), c.prot, unix.MAP_PRIVATE)
			c.pre(mem)
			for i := 0; i < len(mem.b); i += pageSize {
				mem.b[i] ^= 0xff
			}
			want := make([]byte, len(mem.b))
			Fill(want, rel, 0)
			for i := 0; i < len(want); i += pageSize {
				want[i] ^= 0xff
			}
			if string(mem.b) != string(want) {
				t.Errorf("%s: the mapping does not have what was written, or lost the rest", c.what)
			}
			for i, pfn := range mem.frames(t) {
				if config.FS == "daxfs" && inPool(pfn) {
					t.Errorf("%s: page %d has frame %#x of the pool after a write", c.what, i, pfn)
				}
			}
			// Given back, the file's bytes are there again.
			must(t, mem.madvise(0, 65536, unix.MADV_DONTNEED))
			wantFill(t, c.what+", after MADV_DONTNEED", mem.b[:65536], rel, 0)
			mem.unmap()
		}
		m.wantUnchanged(t, rel)
	})
}
