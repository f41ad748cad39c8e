package process

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/vm/process/inside"
)

// source makes the tree that the images are made of: whatever a file system
// may hold, below a directory on the host's disk.
type source struct {
	t    *testing.T
	root string
}

func makeSource(t *testing.T) string {
	t.Helper()
	s := source{t, t.TempDir()}
	defer unix.Umask(unix.Umask(0))
	s.types()
	s.modes()
	s.times()
	s.links()
	s.names()
	s.many()
	s.xattrs()
	s.acls()
	s.data()
	s.programs()
	s.dir("empty", 0o755)
	return s.root
}

func (s source) path(rel string) string { return filepath.Join(s.root, rel) }

func (s source) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("make source tree: %v", err)
	}
}

func (s source) dir(rel string, mode uint32) {
	s.t.Helper()
	s.must(unix.Mkdir(s.path(rel), mode))
	s.must(unix.Chmod(s.path(rel), mode))
}

func (s source) file(rel string, mode uint32, content string) {
	s.t.Helper()
	s.must(os.WriteFile(s.path(rel), []byte(content), 0o600))
	s.must(unix.Chmod(s.path(rel), mode))
}

func (s source) types() {
	s.dir("types", 0o755)
	s.file("types/file", 0o644, "file\n")
	s.dir("types/dir", 0o750)
	s.must(os.Symlink("file", s.path("types/symlink")))
	for _, n := range []struct {
		name string
		mode uint32
		dev  uint64
	}{
		{"fifo", unix.S_IFIFO | 0o622, 0},
		{"socket", unix.S_IFSOCK | 0o755, 0},
		{"null", unix.S_IFCHR | 0o666, unix.Mkdev(1, 3)},
		{"char", unix.S_IFCHR | 0o600, unix.Mkdev(4095, 1<<20-1)},
		{"block", unix.S_IFBLK | 0o660, unix.Mkdev(259, 70000)},
	} {
		s.must(unix.Mknod(s.path("types/"+n.name), n.mode, int(n.dev)))
	}
}

func (s source) modes() {
	s.dir("modes", 0o755)
	for _, mode := range []uint32{0, 0o400, 0o755, 0o1777, 0o2755, 0o4711, 0o6777, 0o7777} {
		s.file(fmt.Sprintf("modes/file-%o", mode), mode, "x")
		s.dir(fmt.Sprintf("modes/dir-%o", mode), mode)
	}
	s.dir("owners", 0o755)
	for _, id := range []int{0, 1, 1000, 65534, 65536, 1<<31 + 5, 1<<32 - 2} {
		rel := fmt.Sprintf("owners/%d", id)
		s.file(rel, 0o644, "x")
		s.must(unix.Lchown(s.path(rel), id, id/2))
	}
	// Who may do what, asked by users that are not root.
	s.dir("private", 0o700)
	s.file("private/readable", 0o644, "hidden by its directory\n")
	s.dir("group", 0o750)
	s.must(unix.Lchown(s.path("group"), 0, 2000))
	s.file("group/readable", 0o640, "for the group\n")
	s.must(unix.Lchown(s.path("group/readable"), 0, 2000))
	s.dir("listonly", 0o744)
	s.file("listonly/file", 0o644, "x")
	s.dir("searchonly", 0o711)
	s.file("searchonly/file", 0o644, "x")
}

func (s source) times() {
	s.dir("times", 0o755)
	for name, ts := range map[string]time.Time{
		"epoch":        time.Unix(0, 0),
		"before-epoch": time.Unix(-2, 500000000),
		"last-ns":      time.Unix(1700000000, 999999999),
		"one-ns":       time.Unix(1700000000, 1),
		"after-2038":   time.Unix(1<<31+7, 42),
		"year-2300":    time.Date(2300, 1, 2, 3, 4, 5, 6, time.UTC),
		"year-1902":    time.Unix(-1<<31+1, 0),
	} {
		s.file("times/"+name, 0o644, "x")
		s.must(os.Chtimes(s.path("times/"+name), ts, ts))
	}
}

func (s source) links() {
	s.dir("links", 0o755)
	s.dir("links/sub", 0o755)
	s.file("links/a", 0o644, "three names\n")
	s.must(os.Link(s.path("links/a"), s.path("links/b")))
	s.must(os.Link(s.path("links/a"), s.path("links/sub/c")))
	s.must(os.Link(s.path("types/fifo"), s.path("links/fifo")))

	s.dir("symlinks", 0o755)
	s.must(os.Symlink("../links/a", s.path("symlinks/relative")))
	s.must(os.Symlink("../links", s.path("symlinks/dir")))
	s.must(os.Symlink("/nowhere/at/all", s.path("symlinks/dangling")))
	s.must(os.Symlink("loop", s.path("symlinks/loop")))
	// 4095 bytes is the longest target, without its NUL.
	for _, n := range []int{1, 59, 60, 63, 64, 255, 1023, 4000, 4094, 4095} {
		s.must(os.Symlink(strings.Repeat("t", n), s.path(fmt.Sprintf("symlinks/long-%d", n))))
	}
	s.must(os.Symlink(strings.Repeat("./", 2000)+"../links/a", s.path("symlinks/long-way")))
}

func (s source) names() {
	s.dir("names", 0o755)
	var last string
	for c := 1; c < 256; c++ {
		if c == '/' || c == '.' {
			continue
		}
		s.file("names/"+string([]byte{byte(c)}), 0o644, "")
		last = string([]byte{byte(c)})
	}
	for _, n := range []string{
		strings.Repeat("n", 255), strings.Repeat(last, 255), strings.Repeat("\n", 254) + " ",
		"...", ".hidden", "a\xffb", "日本語", "name with space", "trailing ", "-rf", "a.", "A", "aa", "ab", "b",
	} {
		s.file("names/"+n, 0o644, n)
	}
}

func (s source) many() {
	s.dir("many", 0o755)
	for i := range inside.ManyNames {
		s.file("many/"+inside.ManyName(i), 0o644, "")
	}
}

func (s source) xattr(rel, name, value string) {
	s.t.Helper()
	if err := unix.Lsetxattr(s.path(rel), name, []byte(value), 0); err != nil {
		s.t.Fatalf("make source tree: set %s of %s: %v", name, rel, err)
	}
}

func (s source) xattrs() {
	s.dir("xattr", 0o755)
	s.file("xattr/file", 0o644, "x")
	for _, x := range [][2]string{
		{"user.note", "of a user"},
		{"user.empty", ""},
		{"user.binary", "\x00\x01\xfe\xff"},
		{"user." + strings.Repeat("n", 250), "longest name"},
		{"trusted.note", "of root"},
		{"security.note", "of a module"},
		{"security.selinux", "system_u:object_r:bin_t:s0\x00"},
	} {
		s.xattr("xattr/file", x[0], x[1])
	}
	s.file("xattr/large", 0o644, "x")
	s.xattr("xattr/large", "user.large", strings.Repeat("v", 3000))
	s.file("xattr/crowd", 0o644, "x")
	for i := range 60 {
		s.xattr("xattr/crowd", fmt.Sprintf("user.%02d", i), fmt.Sprint(i))
	}
	s.dir("xattr/dir", 0o755)
	s.xattr("xattr/dir", "user.note", "of a directory")
	s.must(os.Symlink("file", s.path("xattr/symlink")))
	s.xattr("xattr/symlink", "trusted.note", "of a link")
	s.xattr("types/null", "trusted.note", "of a device")
}

// ACL tags and the value of "no id" (include/uapi/linux/posix_acl_xattr.h).
const (
	aclUserObj, aclUser, aclGroupObj, aclGroup, aclMask, aclOther = 1, 2, 4, 8, 16, 32

	noID = 1<<32 - 1
)

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

func acl(entries ...aclEntry) string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return string(b)
}

// acls: what inside's TestACL expects of each is in its table.
func (s source) acls() {
	const access, dflt = "system.posix_acl_access", "system.posix_acl_default"
	s.dir("acl", 0o755)
	s.file("acl/user", 0o600, "x")
	s.xattr("acl/user", access, acl(
		aclEntry{aclUserObj, 6, noID}, aclEntry{aclUser, 4, 1000}, aclEntry{aclUser, 0, 1001},
		aclEntry{aclGroupObj, 0, noID}, aclEntry{aclMask, 4, noID}, aclEntry{aclOther, 4, noID}))
	s.file("acl/masked", 0o600, "x")
	s.xattr("acl/masked", access, acl(
		aclEntry{aclUserObj, 6, noID}, aclEntry{aclUser, 4, 1000},
		aclEntry{aclGroupObj, 4, noID}, aclEntry{aclMask, 0, noID}, aclEntry{aclOther, 0, noID}))
	s.file("acl/group", 0o600, "x")
	s.xattr("acl/group", access, acl(
		aclEntry{aclUserObj, 6, noID}, aclEntry{aclGroupObj, 0, noID},
		aclEntry{aclGroup, 4, 2000}, aclEntry{aclMask, 4, noID}, aclEntry{aclOther, 0, noID}))
	s.dir("acl/dir", 0o700)
	s.file("acl/dir/file", 0o644, "x")
	s.xattr("acl/dir", access, acl(
		aclEntry{aclUserObj, 7, noID}, aclEntry{aclUser, 5, 1000},
		aclEntry{aclGroupObj, 0, noID}, aclEntry{aclMask, 5, noID}, aclEntry{aclOther, 0, noID}))
	s.xattr("acl/dir", dflt, acl(
		aclEntry{aclUserObj, 7, noID}, aclEntry{aclUser, 6, 1000},
		aclEntry{aclGroupObj, 5, noID}, aclEntry{aclMask, 7, noID}, aclEntry{aclOther, 0, noID}))
}

func (s source) fill(rel string, size int64) {
	s.t.Helper()
	b := make([]byte, size)
	inside.Fill(b, rel, 0)
	s.file(rel, 0o644, string(b))
}

func (s source) data() {
	s.dir("data", 0o755)
	for _, size := range inside.FillSizes {
		s.fill(inside.FillName(size), size)
	}
	s.dir(filepath.Dir(inside.Big), 0o755)
	s.fill(inside.Big, inside.BigSize)
	s.dir(filepath.Dir(inside.Live), 0o755)
	s.file(inside.Live, 0o644, strings.Repeat("\x00", inside.LiveSize))
	s.disk()
}

// disk is a disk image in a file, with a file in it.
func (s source) disk() {
	content := s.t.TempDir()
	b := make([]byte, 65536)
	inside.Fill(b, inside.DiskFile, 0)
	s.must(os.WriteFile(filepath.Join(content, inside.DiskFile), b, 0o644))
	s.dir(filepath.Dir(inside.Disk), 0o755)
	out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", content, s.path(inside.Disk), "1m").CombinedOutput()
	if err != nil {
		s.t.Fatalf("make disk image: %v\n%s", err, out)
	}
}

func (s source) programs() {
	s.must(buildSubject(s.root))
	s.file("bin/script", 0o755, "#!/bin/sh\necho from a script: \"$@\"\n")
	s.file("bin/odd-script", 0o755, "#!/proc/self/cwd/bin/subject-static #!\n")
	s.file("bin/not-executable", 0o644, "#!/bin/sh\nexit 0\n")
	static, err := os.ReadFile(s.path("bin/subject-static"))
	s.must(err)
	for _, p := range []struct {
		name     string
		mode     uint32
		uid, gid int
	}{{"setuid", 0o4755, 1234, 0}, {"setgid", 0o2755, 0, 1234}, {"caps", 0o755, 0, 0}} {
		rel := "bin/" + p.name
		s.file(rel, 0o755, string(static))
		s.must(unix.Lchown(s.path(rel), p.uid, p.gid))
		s.must(unix.Chmod(s.path(rel), p.mode)) // chown cleared the bits
	}
	// struct vfs_cap_data, revision 2, effective: CAP_NET_RAW (13) permitted.
	b := binary.LittleEndian.AppendUint32(nil, 0x02000001)
	for _, w := range []uint32{1 << 13, 0, 0, 0} {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	s.xattr("bin/caps", "security.capability", string(b))
}
