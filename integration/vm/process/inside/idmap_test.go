package inside

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// userns returns a user namespace in which ids from 0 on are those of ours from
// first on. It lives as long as the descriptor.
func userns(t *testing.T, first int) *os.File {
	t.Helper()
	cmd := exec.Command("sleep", "infinity")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: first, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	must(t, cmd.Start())
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	return open(t, fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
}

// idmapped mounts what is at root once more, with ids from 0 on shown as those
// from first on.
func idmapped(t *testing.T, root string, first int) string {
	t.Helper()
	fd, err := unix.OpenTree(unix.AT_FDCWD, root, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	must(t, err)
	defer unix.Close(fd)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns(t, first).Fd())}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		t.Fatalf("mount_setattr with MOUNT_ATTR_IDMAP: %v", err)
	}
	dir := mountPoint(t)
	must(t, unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH))
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

// TestIDMapped: owners, permissions, ACLs and setuid programs are those of the
// mapped ids; also below an overlay.
func TestIDMapped(t *testing.T) {
	const first = 100000
	for _, overlay := range []bool{false, true} {
		t.Run(fmt.Sprintf("overlay=%v", overlay), func(t *testing.T) {
			onViews(t, "native v8 pool nopages", func(t *testing.T, m *mounted) {
				root := idmapped(t, m.root, first)
				if overlay {
					root = mountOverlay(t, root, scratch(t), "")
				}
				for path, e := range m.Tree {
					if e.UID >= 65536 || e.GID >= 65536 || path == "." {
						continue // not mapped; the root is the overlay's
					}
					var st unix.Stat_t
					must(t, unix.Lstat(filepath.Join(root, path), &st))
					if st.Uid != e.UID+first || st.Gid != e.GID+first || st.Mode != e.Mode {
						t.Errorf("%q: owner %d:%d, mode %#o, want %d:%d, %#o", path, st.Uid, st.Gid, st.Mode, e.UID+first, e.GID+first, e.Mode)
					}
				}
				// Owners without a place in the map are nobody.
				var st unix.Stat_t
				must(t, unix.Lstat(filepath.Join(root, "owners/65536"), &st))
				if st.Uid != 65534 {
					t.Errorf("owner that is not mapped: %d, want 65534", st.Uid)
				}
				for _, c := range []struct {
					path string
					who  who
					want error
				}{
					{"modes/file-400", who{first, first, nil}, nil},
					{"modes/file-400", who{1000, 1000, nil}, unix.EACCES},
					{"group/readable", who{1, first + 2000, nil}, nil},
					{"group/readable", grouped, unix.EACCES},
					{"acl/user", who{first + 1000, first + 1000, nil}, nil},
					{"acl/user", who{first + 1001, first + 1001, nil}, unix.EACCES},
					{"acl/user", bob, nil}, // somebody else now: other
					{"acl/dir/file", who{first + 1000, first + 1000, nil}, nil},
					{"acl/dir/file", alice, unix.EACCES},
				} {
					var got error
					asUser(t, c.who.uid, c.who.gid, c.who.groups, func() {
						var fd int
						if fd, got = unix.Open(filepath.Join(root, c.path), unix.O_RDONLY, 0); got == nil {
							unix.Close(fd)
						}
					})
					if !errors.Is(got, c.want) {
						t.Errorf("open %s by %v: %v, want %v", c.path, c.who, got, c.want)
					}
				}
				if acl := run(t, "getfacl", "--numeric", "--absolute-names", filepath.Join(root, "acl/dir")); !strings.Contains(acl, "user:101000:r-x") || !strings.Contains(acl, "default:user:101000:rw-") {
					t.Errorf("getfacl says\n%swant user 101000 in both lists", acl)
				}
				want := fmt.Sprintf("1000 %d 1000 1000 0000000000000000", first+1234)
				if got := output(t, 1000, filepath.Join(root, "bin/setuid"), "ids"); got != want {
					t.Errorf("setuid program: %q, want %q", got, want)
				}
				if v, err := getxattr(filepath.Join(root, "xattr/file"), "user.note"); v != "of a user" || err != nil {
					t.Errorf("user.note: %q, %v", v, err)
				}
				b, err := os.ReadFile(filepath.Join(root, "data/65537"))
				must(t, err)
				wantFill(t, "read", b, "data/65537", 0)
				mem := mapPath(t, filepath.Join(root, "data/65537"), unix.PROT_READ, unix.MAP_SHARED)
				mem.touch()
				if m.inPlace() {
					m.wantFrames(t, "data/65537", 0, mem.frames(t))
				}
			})
		})
	}
}

// TestUserNamespace: who is root in a user namespace only cannot mount physical
// memory.
func TestUserNamespace(t *testing.T) {
	daxfsOnly(t)
	dir := mountPoint(t)
	cmd := exec.Command("mount", "-t", "daxfs", "-o", byHand(ImageNative), "none", dir)
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, UidMappings: ids, GidMappings: ids}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "permission denied") {
		t.Errorf("mount in a user namespace: %v, %q, want permission denied", err, out)
	}
}
