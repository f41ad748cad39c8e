package lab

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// process is a daemon of the lab, with its log in a file.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
}

func (l *Lab) start(name, binary string, args ...string) *process {
	l.t.Helper()
	p := &process{name: name, log: l.path(name + ".log"), done: make(chan struct{})}
	f, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	p.cmd = exec.Command(binary, args...)
	p.cmd.Stdout, p.cmd.Stderr = f, f
	// containerd looks for its shim, and the shim for runc, in PATH.
	path := tool("") + ":" + os.Getenv("PATH")
	if l.Peers.MkfsErofs != "" {
		path = l.Peers.MkfsErofs + ":" + path
	}
	p.cmd.Env = append(os.Environ(), "PATH="+path, "TMPDIR="+l.path("tmp"))
	// Its own process group: Ctrl-C is for the test, which then cleans up.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		l.t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		p.cmd.Wait()
		close(p.done)
	}()
	return p
}

// waitFor polls until ready returns nil, and fails the test when the process
// ends before that or half a minute passes.
func (l *Lab) waitFor(p *process, ready func(context.Context) error) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return
		}
		select {
		case <-p.done:
			p.showLog(l.t)
			l.t.Fatalf("%s ended before it was ready: %v", p.name, p.cmd.ProcessState)
		case <-ctx.Done():
			p.showLog(l.t)
			l.t.Fatalf("%s is not ready: %v", p.name, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// kill sends a signal and waits for the end; after ten seconds it is SIGKILL.
func (p *process) kill(sig syscall.Signal) {
	if p == nil {
		return
	}
	p.cmd.Process.Signal(sig)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		p.cmd.Process.Kill()
		<-p.done
	}
}

// showLog puts the end of the process's log, without containerd's debug chatter,
// into the test's.
func (p *process) showLog(t testing.TB) {
	if p == nil {
		return
	}
	b, err := os.ReadFile(p.log)
	if err != nil {
		return
	}
	var keep [][]byte
	for _, line := range bytes.Split(b, []byte("\n")) {
		if p.name != "containerd" || !bytes.Contains(line, []byte("level=debug")) && !bytes.Contains(line, []byte("loading plugin")) {
			keep = append(keep, line)
		}
	}
	if len(keep) > 60 {
		keep = keep[len(keep)-60:]
	}
	t.Logf("end of the log of %s:\n%s", p.name, bytes.Join(keep, []byte("\n")))
}
