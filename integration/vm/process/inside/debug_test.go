package inside

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDebugger: gdb attaches to a program of the image, stops it at a
// breakpoint, and lets it go; another process of the same program does not
// notice.
func TestDebugger(t *testing.T) {
	for _, c := range []struct{ view, program, function string }{
		{"native", "subject-static", "work"},
		{"nopages", "subject-static", "work"},
		{"overlay", "subject", "part"}, // in the library
	} {
		t.Run(c.view, func(t *testing.T) {
			if config.FS != "daxfs" && c.view == "nopages" {
				t.Skipf("%s has no such view", config.FS)
			}
			m := findView(t, c.view).mount(t)
			s := m.subject(t, c.program, "spin")
			other := m.subject(t, c.program, "spin")
			number(t, s)
			number(t, other)

			out := run(t, "gdb", "-nx", "-batch", "-p", strconv.Itoa(s.pid()),
				"-ex", "set pagination off",
				"-ex", "break "+c.function,
				"-ex", "continue",
				"-ex", "backtrace",
				"-ex", "set var $before = n",
				"-ex", "continue",
				"-ex", "print n - $before",
				"-ex", "x/2i $pc",
				"-ex", "delete",
				"-ex", "detach")
			for _, want := range []string{
				"Breakpoint 1, " + c.function + " (n=", // twice, without an address: at a line
				" main (",
				"$1 = 1", // one call further
				"detached]",
			} {
				if !strings.Contains(out, want) {
					t.Errorf("gdb does not say %q:\n%s", want, out)
				}
			}

			before, beforeOther := number(t, s), number(t, other)
			for range 3 {
				number(t, s)
				number(t, other)
			}
			if n := number(t, s); n <= before {
				t.Errorf("the program says %d, then %d, after gdb let it go", before, n)
			}
			if n := number(t, other); n <= beforeOther {
				t.Errorf("the other process says %d, then %d", beforeOther, n)
			}
			m.wantText(t, s.pid(), m.programFile(c.program, c.function))
			m.wantText(t, other.pid(), m.programFile(c.program, c.function))
			if m.inPlace() {
				// The page with the breakpoint was copied, perhaps one or two where
				// gdb has breakpoints of its own; all others stayed.
				copies := 0
				for _, r := range maps(t, s.pid(), "/"+m.programFile(c.program, c.function)) {
					if r.perms != "r-xp" {
						continue
					}
					for _, pfn := range frames(t, s.pid(), r.start, r.pages()) {
						if pfn != 0 && !inPool(pfn) {
							copies++
						}
					}
				}
				if copies < 1 || copies > 3 {
					t.Errorf("%d pages of text are copies, want 1 to 3", copies)
				}
			}
		})
	}
}

// number reads the next line of a spinning subject.
func number(t *testing.T, s *subject) int {
	t.Helper()
	n, err := strconv.Atoi(s.line())
	must(t, err)
	return n
}

// programFile is the path of the file with a function of a program.
func (m *mounted) programFile(program, function string) string {
	if function == "part" && program == "subject" {
		return "lib/libpart.so"
	}
	return "bin/" + program
}

// wantText checks that a process has the text of a file as it is.
func (m *mounted) wantText(t *testing.T, pid int, rel string) {
	t.Helper()
	file, err := os.ReadFile(m.path(rel))
	must(t, err)
	mem := open(t, fmt.Sprintf("/proc/%d/mem", pid))
	n := 0
	for _, r := range maps(t, pid, "/"+rel) {
		if r.perms != "r-xp" {
			continue
		}
		n++
		b := make([]byte, min(int64(r.end-r.start), int64(len(file))-r.off))
		if _, err := mem.ReadAt(b, int64(r.start)); err != nil {
			t.Errorf("read the text of %s in process %d: %v", rel, pid, err)
			continue
		}
		if !bytes.Equal(b, file[r.off:r.off+int64(len(b))]) {
			t.Errorf("the text of %s in process %d is not the file's", rel, pid)
		}
	}
	if n == 0 {
		t.Errorf("process %d has no text of %s", pid, rel)
	}
}

// TestCoreDump: the core of a process has the bytes of a file that it had
// mapped.
func TestCoreDump(t *testing.T) {
	daxfsOnly(t)
	onViews(t, "native v8 pool nopages overlay", func(t *testing.T, m *mounted) {
		const rel = "data/65536"
		dir := scratch(t)
		old, err := os.ReadFile("/proc/sys/kernel/core_pattern")
		must(t, err)
		writeFile(t, "/proc/sys/kernel/core_pattern", dir+"/core")
		t.Cleanup(func() { os.WriteFile("/proc/sys/kernel/core_pattern", old, 0) })
		filter, err := os.ReadFile("/proc/self/coredump_filter")
		must(t, err)
		writeFile(t, "/proc/self/coredump_filter", "0x7f") // files too; inherited
		t.Cleanup(func() { os.WriteFile("/proc/self/coredump_filter", append([]byte("0x"), filter...), 0) })
		limit := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
		must(t, unix.Setrlimit(unix.RLIMIT_CORE, &limit))

		cmd := exec.Command(m.path("bin/subject-static"), "crash", m.path(rel))
		out, err := cmd.Output()
		if cmd.ProcessState == nil || cmd.ProcessState.Success() || !strings.Contains(err.Error(), "core dumped") {
			t.Fatalf("the program ended with %v, want a core dump", err)
		}
		var shared, private, written uint64
		if _, err := fmt.Sscanf(string(out), "0x%x 0x%x 0x%x", &shared, &private, &written); err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		cores, err := filepath.Glob(dir + "/core*")
		must(t, err)
		if len(cores) != 1 {
			t.Fatalf("cores %q, want one", cores)
		}
		core, err := elf.Open(cores[0])
		must(t, err)
		defer core.Close()
		for _, c := range []struct {
			what string
			addr uint64
		}{{"shared", shared}, {"private", private}, {"written", written}} {
			var got []byte
			for _, p := range core.Progs {
				// Neighbours may be in one segment.
				if p.Type == elf.PT_LOAD && p.Vaddr <= c.addr && c.addr+65536 <= p.Vaddr+p.Filesz {
					got, err = io.ReadAll(io.NewSectionReader(p, int64(c.addr-p.Vaddr), 65536))
					must(t, err)
				}
			}
			if c.what == "shared" && m.nopages() {
				// The kernel cannot get at such pages and leaves them out.
				if got != nil && !bytes.Equal(got, make([]byte, len(got))) {
					t.Error("shared: the core has something of a mapping without page structs, want zeros or nothing")
				}
				continue
			}
			if got == nil {
				t.Errorf("%s: the core does not have the mapping", c.what)
				continue
			}
			if c.what == "written" {
				if got[0] != 0xee {
					t.Errorf("written: the core has %#x, want 0xee", got[0])
				}
				wantFill(t, "core, written", got[1:], rel, 1)
				continue
			}
			wantFill(t, "core, "+c.what, got, rel, 0)
		}
		m.wantUnchanged(t, rel)
	})
}

// TestTraceIntoShared: a debugger cannot write to a shared mapping, which would
// be everybody's.
func TestTraceIntoShared(t *testing.T) {
	onViews(t, "native pool overlay", func(t *testing.T, m *mounted) {
		const rel = "data/65536"
		s := m.subject(t, "subject-static", "map", m.path(rel), "shared")
		addr := s.addresses()[0]
		out, err := exec.Command("gdb", "-nx", "-batch", "-p", strconv.Itoa(s.pid()),
			"-ex", fmt.Sprintf("set var *(int *)%#x = 1", addr),
			"-ex", fmt.Sprintf("x/1xw %#x", addr), "-ex", "detach").CombinedOutput()
		must(t, err)
		if !strings.Contains(string(out), "Cannot access memory") {
			t.Errorf("gdb writes to a shared mapping:\n%s", out)
		}
		s.end()
		m.wantUnchanged(t, rel)
	})
}
