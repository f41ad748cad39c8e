package inside

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long one image may take before it counts as a hang. Healthy
// ones take a second or two in an emulated guest on a busy machine.
const patience = 90 * time.Second

// begin tells the watcher that a process is alive and what it begins with.
func begin(n int) { fmt.Printf("begin %d\n", n) }

// process is a child that works.
type process struct {
	name  string
	cmd   *exec.Cmd
	lines chan string
	err   error
}

// spawn starts this program in another mode.
func spawn(mode string, args ...int) *process {
	p := &process{name: mode, lines: make(chan string)}
	p.cmd = exec.Command("/proc/self/exe", mode)
	for _, a := range args {
		p.cmd.Args = append(p.cmd.Args, fmt.Sprint(a))
	}
	p.name = strings.Join(p.cmd.Args[1:], " ")
	p.cmd.Stderr = os.Stderr
	// Threads on two CPUs cost an emulated guest much at each unmapping.
	p.cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "GOGC=1000")
	out, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		p.err = err
		close(p.lines)
		return p
	}
	go p.read(out)
	return p
}

func (p *process) read(out io.Reader) {
	defer close(p.lines)
	s := bufio.NewScanner(out)
	s.Buffer(nil, 1<<24)
	for s.Scan() {
		p.lines <- s.Text()
	}
	p.err = p.cmd.Wait()
}

// watch waits for processes and adds their reports. One that says nothing for
// too long has its stacks told and is killed.
func watch(rep *Report, procs []*process) {
	var wg sync.WaitGroup
	for _, p := range procs {
		wg.Go(func() { p.watch(rep) })
	}
	wg.Wait()
}

// watch is the part of watch for one process.
func (p *process) watch(rep *Report) {
	last, killed := "nothing", false
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				if p.err != nil {
					rep.locked(func() { rep.broken("%s ended after %q: %v", p.name, last, p.err) })
				}
				return
			}
			var o Report
			if strings.HasPrefix(line, "begin ") {
				last = line
			} else if err := json.Unmarshal([]byte(line), &o); err != nil {
				rep.locked(func() { rep.broken("%s says %q", p.name, line) })
			} else {
				rep.locked(func() { rep.add(&o) })
			}
		case <-time.After(patience):
			stacks := p.stacks()
			rep.locked(func() { rep.broken("%s hangs since %q, killed %t:\n%s", p.name, last, killed, stacks) })
			if killed {
				return
			}
			killed = true
			_ = p.cmd.Process.Signal(unix.SIGKILL)
		}
	}
}

// stacks are where the process's threads are in the kernel.
func (p *process) stacks() string {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stack", p.cmd.Process.Pid))
	var out strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		fmt.Fprintf(&out, "%s: %v\n%s", f, err, b)
	}
	return out.String()
}
