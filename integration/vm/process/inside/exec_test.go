package inside

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// output runs a program as a user and returns what it says.
func output(t *testing.T, uid uint32, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s %q as uid %d: %v\n%s", name, args, uid, err, out)
	}
	return strings.TrimSpace(string(out))
}

// TestExec: programs, static and dynamic, and scripts run.
func TestExec(t *testing.T) {
	onViews(t, "native v8 pool nopages overlay", func(t *testing.T, m *mounted) {
		const nobody = "1000 1000 1000 1000 0000000000000000"
		for _, c := range []struct {
			what string
			args []string
			want string
		}{
			{"static", []string{m.path("bin/subject-static"), "ids"}, nobody},
			{"dynamic", []string{m.path("bin/subject"), "ids"}, nobody},
			{"script", []string{m.path("bin/script"), "a", "b c"}, "from a script: a b c"},
			{"by the dynamic linker", []string{"/lib64/ld-linux-x86-64.so.2", m.path("bin/subject"), "ids"}, nobody},
		} {
			if got := output(t, 1000, c.args[0], c.args[1:]...); got != c.want {
				t.Errorf("%s: %q, want %q", c.what, got, c.want)
			}
		}
		// The interpreter is on the image too, found from where we are.
		cmd := exec.Command("./bin/odd-script")
		cmd.Dir = m.root
		if out, err := cmd.CombinedOutput(); string(out) != "#! ./bin/odd-script\n" {
			t.Errorf("script with an interpreter of the image: %q, %v", out, err)
		}
		// Without a name.
		f := m.open(t, "bin/subject-static")
		if got := output(t, 0, fmt.Sprintf("/proc/%d/fd/%d", unix.Getpid(), f.Fd()), "ids"); !strings.HasPrefix(got, "0 0 0 0 ") {
			t.Errorf("by a descriptor: %q", got)
		}
		for _, c := range []struct {
			path string
			want error
		}{
			{"bin/not-executable", unix.EACCES},
			{"types/dir", unix.EACCES},
			{"types/fifo", unix.EACCES},
			{"modes/file-755", unix.ENOEXEC}, // one byte
			{"bin/none", unix.ENOENT},
		} {
			if m.image == ImageV8 && c.path == "types/fifo" {
				continue // v8 cannot say it
			}
			if err := exec.Command(m.path(c.path)).Run(); !errors.Is(err, c.want) {
				t.Errorf("run %s: %v, want %v", c.path, err, c.want)
			}
		}
	})
}

// TestExecMany runs one program many times at once.
func TestExecMany(t *testing.T) {
	onViews(t, "native nopages overlay", func(t *testing.T, m *mounted) {
		var all []*subject
		for i := range 16 {
			name := "subject"
			if i%2 == 1 {
				name = "subject-static"
			}
			all = append(all, m.subject(t, name, "spin"))
		}
		for range 3 {
			for _, s := range all {
				number(t, s)
			}
		}
		for _, s := range all {
			s.kill()
		}
	})
}

// TestExecPrivileges: setuid and setgid bits and file capabilities count, and
// do not on a nosuid mount.
func TestExecPrivileges(t *testing.T) {
	onViews(t, "native v8 pool nopages overlay", func(t *testing.T, m *mounted) {
		for _, c := range []struct{ program, want string }{
			{"setuid", "1000 1234 1000 1000 0000000000000000"},
			{"setgid", "1000 1000 1000 1234 0000000000000000"},
			{"caps", "1000 1000 1000 1000 0000000000002000"},
		} {
			if got := output(t, 1000, m.path("bin/"+c.program), "ids"); got != c.want {
				t.Errorf("%s: %q, want %q", c.program, got, c.want)
			}
		}
		must(t, unix.Mount("", m.root, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID, ""))
		for _, program := range []string{"setuid", "setgid", "caps"} {
			const want = "1000 1000 1000 1000 0000000000000000"
			if got := output(t, 1000, m.path("bin/"+program), "ids"); got != want {
				t.Errorf("%s on a nosuid mount: %q, want %q", program, got, want)
			}
		}
	})
}

// TestExecKeepsMount: a program that runs keeps its file system busy.
func TestExecKeepsMount(t *testing.T) {
	onViews(t, "native nopages", func(t *testing.T, m *mounted) {
		s := m.subject(t, "subject-static", "spin")
		number(t, s)
		if err := unix.Unmount(m.root, 0); err != unix.EBUSY {
			t.Errorf("unmount under a running program: %v, want %v", err, unix.EBUSY)
		}
		must(t, unix.Unmount(m.root, unix.MNT_DETACH))
		for range 3 {
			number(t, s)
		}
		s.kill()
	})
}

// TestLibrary: a library of the image in a program that is not.
func TestLibrary(t *testing.T) {
	onViews(t, "native pool nopages overlay", func(t *testing.T, m *mounted) {
		program := filepath.Join(scratch(t), "subject")
		run(t, "cp", m.path("bin/subject"), program)
		cmd := exec.Command(program, "spin")
		cmd.Env = []string{"LD_LIBRARY_PATH=" + m.path("lib")}
		s := start(t, cmd)
		number(t, s)
		m.wantText(t, s.pid(), "lib/libpart.so")
		s.kill()
	})
}
