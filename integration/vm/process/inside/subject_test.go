package inside

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// subject is a running program of the tree (testdata/subject.c).
type subject struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.Closer
	out   *bufio.Scanner
	ended bool
}

// start runs a program, which ends with the test if not before.
func start(t *testing.T, cmd *exec.Cmd) *subject {
	t.Helper()
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %q: %v", cmd.Args, err)
	}
	s := &subject{t: t, cmd: cmd, stdin: in, out: bufio.NewScanner(out)}
	t.Cleanup(s.kill)
	return s
}

// subject starts bin/NAME of the view.
func (m *mounted) subject(t *testing.T, name string, args ...string) *subject {
	t.Helper()
	return start(t, exec.Command(m.path("bin/"+name), args...))
}

func (s *subject) pid() int { return s.cmd.Process.Pid }

// debugged runs f on a thread that is the program's debugger meanwhile.
func (s *subject) debugged(f func()) {
	s.t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	must(s.t, unix.PtraceAttach(s.pid()))
	var status unix.WaitStatus
	_, err := unix.Wait4(s.pid(), &status, unix.WALL, nil)
	must(s.t, err)
	if !status.Stopped() {
		s.t.Fatalf("wait for %q to stop: status %#x", s.cmd.Args, status)
	}
	f()
	must(s.t, unix.PtraceDetach(s.pid()))
}

// linuxMajor returns the first number of the kernel's release.
func linuxMajor(t *testing.T) int {
	t.Helper()
	var u unix.Utsname
	must(t, unix.Uname(&u))
	major, _, _ := strings.Cut(unix.ByteSliceToString(u.Release[:]), ".")
	n, err := strconv.Atoi(major)
	must(t, err)
	return n
}

// line returns the next line of output.
func (s *subject) line() string {
	s.t.Helper()
	if !s.out.Scan() {
		s.t.Fatalf("%q ended its output early: %v", s.cmd.Args, s.cmd.Wait())
	}
	return s.out.Text()
}

// addresses reads a line of C pointers.
func (s *subject) addresses() []uintptr {
	s.t.Helper()
	line := s.line()
	var out []uintptr
	for _, w := range strings.Fields(line) {
		var a uintptr
		if _, err := fmt.Sscanf(w, "0x%x", &a); err != nil {
			continue // a process id
		}
		out = append(out, a)
	}
	if len(out) == 0 {
		s.t.Fatalf("%q said %q, want addresses", s.cmd.Args, line)
	}
	return out
}

// end closes its input and expects a good end.
func (s *subject) end() {
	s.t.Helper()
	s.stdin.Close()
	for s.out.Scan() {
	}
	s.ended = true
	if err := s.cmd.Wait(); err != nil {
		s.t.Errorf("%q: %v", s.cmd.Args, err)
	}
}

func (s *subject) kill() {
	if s.ended {
		return
	}
	s.ended = true
	s.cmd.Process.Kill()
	s.cmd.Wait()
}
