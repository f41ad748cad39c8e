package inside

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// who asks.
type who struct {
	uid, gid int
	groups   []int
}

func (w who) String() string { return fmt.Sprintf("uid %d, gid %d, groups %v", w.uid, w.gid, w.groups) }

var (
	root     = who{0, 0, nil}
	alice    = who{1000, 1000, nil}
	bob      = who{1001, 1001, nil}
	nobody   = who{65534, 65534, nil}
	grouped  = who{3000, 3000, []int{2000}}
	grouped2 = who{3000, 2000, nil}
)

// TestPermissions: mode bits and ACLs decide who may open what.
func TestPermissions(t *testing.T) {
	onViews(t, "native v8 pool overlay nopages", func(t *testing.T, m *mounted) {
		for _, c := range []struct {
			path    string
			who     who
			allowed bool
		}{
			{"types/file", nobody, true},
			{"modes/file-0", nobody, false},
			{"modes/file-0", root, true},
			{"modes/file-400", nobody, false},
			{"private/readable", nobody, false},
			{"group/readable", nobody, false},
			{"group/readable", grouped, true},
			{"group/readable", grouped2, true},
			{"listonly", nobody, true},
			{"listonly/file", nobody, false},
			{"searchonly", nobody, false},
			{"searchonly/file", nobody, true},

			{"acl/user", alice, true},    // named
			{"acl/user", bob, false},     // named, with nothing
			{"acl/user", nobody, true},   // other
			{"acl/masked", alice, false}, // named, and masked away
			{"acl/group", alice, false},
			{"acl/group", grouped, true},
			{"acl/group", grouped2, true},
			{"acl/dir/file", alice, true},
			{"acl/dir/file", bob, false},
			{"acl/dir", alice, true},
			{"acl/dir", nobody, false}, // the default ACL decides nothing
		} {
			path := m.path(c.path)
			want := unix.EACCES
			if c.allowed {
				want = 0
			}
			var openErr, accessErr error
			asUser(t, c.who.uid, c.who.gid, c.who.groups, func() {
				var fd int
				if fd, openErr = unix.Open(path, unix.O_RDONLY, 0); openErr == nil {
					unix.Close(fd)
				}
				accessErr = unix.Faccessat2(unix.AT_FDCWD, path, unix.R_OK, unix.AT_EACCESS)
			})
			if errno(openErr) != want || errno(accessErr) != want {
				t.Errorf("%s by %v: open: %v, access: %v; want %v", c.path, c.who, openErr, accessErr, want)
			}
		}
	})
}

// TestRCULookupPermissions asks again and again, so that paths are walked in
// the kernel's cache without references, where ACLs are asked without sleeping.
func TestRCULookupPermissions(t *testing.T) {
	onViews(t, "native pool overlay", func(t *testing.T, m *mounted) {
		path := m.path("acl/dir/file")
		for range 3 {
			dropCaches(t)
			for _, c := range []struct {
				who  who
				want error
			}{{alice, nil}, {bob, unix.EACCES}} {
				var got error
				asUser(t, c.who.uid, c.who.gid, nil, func() {
					var st unix.Stat_t
					for range 100 {
						if got = unix.Stat(path, &st); !errors.Is(got, c.want) {
							return
						}
					}
				})
				if !errors.Is(got, c.want) {
					t.Errorf("stat by %v: %v, want %v", c.who, got, c.want)
				}
			}
		}
	})
}

// errno is 0 for nil.
func errno(err error) unix.Errno {
	if err == nil {
		return 0
	}
	e, ok := err.(unix.Errno) //nolint:errorlint // straight from a system call
	if !ok {
		panic(err)
	}
	return e
}

// TestACLText: getfacl, which knows the names of things, reads them.
func TestACLText(t *testing.T) {
	onViews(t, "native v8 overlay", func(t *testing.T, m *mounted) {
		const want = `user::rwx
user:1000:r-x
group::---
mask::r-x
other::---
default:user::rwx
default:user:1000:rw-
default:group::r-x
default:mask::rwx
default:other::---

`
		if got := run(t, "getfacl", "--omit-header", "--numeric", "--absolute-names", "--no-effective", m.path("acl/dir")); got != want {
			t.Errorf("getfacl says\n%swant\n%s", got, want)
		}
	})
}
