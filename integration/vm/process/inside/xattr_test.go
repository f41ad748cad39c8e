package inside

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func listxattr(t *testing.T, path string) []string {
	t.Helper()
	b := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, b)
	if err != nil {
		t.Errorf("llistxattr %s: %v", path, err) // not Fatalf: may be a user's thread
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00")
}

func getxattr(path, name string) (string, error) {
	b := make([]byte, 64<<10)
	n, err := unix.Lgetxattr(path, name, b)
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

// TestXattrCalls: sizes, buffers and errors; TestTree has the values.
func TestXattrCalls(t *testing.T) {
	onViews(t, "native v8 pool overlay", func(t *testing.T, m *mounted) {
		path := m.path("xattr/file")
		for name, value := range m.Tree["xattr/file"].Xattrs {
			if n, err := unix.Lgetxattr(path, name, nil); n != len(value) || err != nil {
				t.Errorf("size of %s: %d, %v, want %d", name, n, err, len(value))
			}
			if len(value) == 0 {
				continue
			}
			if n, err := unix.Lgetxattr(path, name, make([]byte, len(value)-1)); len(value) > 1 && err != unix.ERANGE {
				t.Errorf("%s into a buffer one byte short: %d, %v, want %v", name, n, err, unix.ERANGE)
			}
			b := bytes.Repeat([]byte{0xaa}, len(value)+8)
			if n, err := unix.Lgetxattr(path, name, b[:len(value)]); n != len(value) || err != nil || string(b[:n]) != value || b[n] != 0xaa {
				t.Errorf("%s into a buffer that just fits: %d, %v, %q, want %q", name, n, err, b, value)
			}
		}
		want := 0
		for name := range m.Tree["xattr/file"].Xattrs {
			want += len(name) + 1
		}
		if n, err := unix.Llistxattr(path, nil); n != want || err != nil {
			t.Errorf("size of the list: %d, %v, want %d", n, err, want)
		}
		if n, err := unix.Llistxattr(path, make([]byte, want-1)); err != unix.ERANGE {
			t.Errorf("list into a buffer one byte short: %d, %v, want %v", n, err, unix.ERANGE)
		}
		if n, err := unix.Llistxattr(m.path("types/file"), make([]byte, 64)); n != 0 || err != nil {
			t.Errorf("list of a file without attributes: %d, %v", n, err)
		}
		if got := listxattr(t, m.path("xattr/crowd")); len(got) != 60 {
			t.Errorf("%d attributes of xattr/crowd, want 60: %q", len(got), got)
		}
		for _, c := range []struct {
			path, name string
			want       error
		}{
			{"xattr/file", "user.not", unix.ENODATA},
			{"xattr/file", "user.note2", unix.ENODATA},
			{"xattr/file", "user.not\xff", unix.ENODATA},
			{"xattr/file", "trusted.other", unix.ENODATA},
			{"xattr/file", "security.other", unix.ENODATA},
			{"xattr/file", "system.posix_acl_access", unix.ENODATA},
			{"types/file", "user.note", unix.ENODATA},
			{"xattr/file", "user." + strings.Repeat("n", 251), unix.ERANGE}, // longer than a name can be
			{"xattr/file", "system.other", unix.EOPNOTSUPP},
			{"xattr/file", "nonsense.note", unix.EOPNOTSUPP},
			{"xattr/file", "user.", unix.EINVAL},
			{"xattr/symlink", "user.note", unix.ENODATA}, // links have none of users, see xattr(7)
			{"xattr/none", "user.note", unix.ENOENT},
		} {
			v, err := getxattr(m.path(c.path), c.name)
			if c.name == "user." && errors.Is(err, unix.ENODATA) {
				continue // overlayfs does not ask the lower file system
			}
			if !errors.Is(err, c.want) {
				t.Errorf("%s of %s: %q, %v, want %v", c.name, c.path, v, err, c.want)
			}
		}
	})
}

// TestTrustedXattrs are for CAP_SYS_ADMIN only, and not even listed otherwise.
func TestTrustedXattrs(t *testing.T) {
	onViews(t, "native v8 overlay", func(t *testing.T, m *mounted) {
		path := m.path("xattr/file")
		var names []string
		var trusted, user, security error
		asUser(t, 1000, 1000, nil, func() {
			names = listxattr(t, path)
			_, trusted = getxattr(path, "trusted.note")
			_, user = getxattr(path, "user.note")
			_, security = getxattr(path, "security.note")
		})
		if l := fmt.Sprint(names); strings.Contains(l, "trusted.") || !strings.Contains(l, "user.note") || !strings.Contains(l, "security.note") {
			t.Errorf("a user lists %q, want user.* and security.* only", names)
		}
		if !errors.Is(trusted, unix.ENODATA) || user != nil || security != nil {
			t.Errorf("a user reads trusted: %v, user: %v, security: %v; want %v, nil, nil", trusted, user, security, unix.ENODATA)
		}
		if m.overlay {
			return // it asks for the whole list and takes out what is not for users
		}
		// A list without trusted.* fits where one with it would not.
		asUser(t, 1000, 1000, nil, func() {
			want := len(strings.Join(names, "\x00")) + 1
			if n, err := unix.Llistxattr(path, make([]byte, want)); n != want || err != nil {
				t.Errorf("a user's list into %d bytes: %d, %v", want, n, err)
			}
		})
	})
}
