package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/vm/protocol"
)

// Agent is the service. Its methods run at the same time.
type Agent struct {
	mu      sync.Mutex
	last    protocol.ID
	running map[protocol.ID]*process
}

// Ready answers once the guest can run commands.
func (a *Agent) Ready(protocol.Nothing, *protocol.Nothing) error { return nil }

// Start starts a command in a session of its own.
func (a *Agent) Start(c protocol.Command, id *protocol.ID) error {
	if len(c.Args) == 0 {
		return errors.New("start: no command")
	}
	p := &process{cmd: exec.Command(c.Args[0], c.Args[1:]...)}
	p.changed.L = &p.mu
	p.cmd.Dir = c.Dir
	p.cmd.Env = append(os.Environ(), c.Env...)
	p.cmd.Stdout = p.writer(&p.progress.Stdout)
	p.cmd.Stderr = p.writer(&p.progress.Stderr)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	go p.wait()

	a.mu.Lock()
	defer a.mu.Unlock()
	a.last++
	a.running[a.last] = p
	*id = a.last
	return nil
}

// Output waits until the command has written something or has ended.
func (a *Agent) Output(id protocol.ID, out *protocol.Progress) error {
	p, err := a.process(id)
	if err != nil {
		return err
	}
	*out = p.take()
	if out.Done {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.running, id)
	}
	return nil
}

// Stop kills the command and what is in its process group.
func (a *Agent) Stop(id protocol.ID, _ *protocol.Nothing) error {
	p, err := a.process(id)
	if err != nil {
		return err
	}
	return unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
}

// PowerOff ends the guest without a word to what runs in it.
func (a *Agent) PowerOff(protocol.Nothing, *protocol.Nothing) error {
	unix.Sync()
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func (a *Agent) process(id protocol.ID) (*process, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p, ok := a.running[id]
	if !ok {
		return nil, fmt.Errorf("no command %d", id)
	}
	return p, nil
}

// maxBuffered bounds what a command may have written and the driver not read;
// beyond it the command blocks in write, as on any pipe.
const maxBuffered = 1 << 20

// process is a started command and what the driver has not read of it.
type process struct {
	cmd *exec.Cmd

	mu       sync.Mutex
	changed  sync.Cond // progress
	progress protocol.Progress
}

// take waits for progress and hands it over.
func (p *process) take() protocol.Progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.progress.Stdout) == 0 && len(p.progress.Stderr) == 0 && !p.progress.Done {
		p.changed.Wait()
	}
	got := p.progress
	p.progress.Stdout, p.progress.Stderr = nil, nil
	p.changed.Broadcast()
	return got
}

// wait notes the end of the process, after all that it wrote.
func (p *process) wait() {
	err := p.cmd.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.progress.Done = true
	status := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	p.progress.Code = status.ExitStatus()
	if status.Signaled() {
		p.progress.Code = 128 + int(status.Signal())
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		p.progress.Stderr = fmt.Appendf(p.progress.Stderr, "agent: %v\n", err)
	}
	p.changed.Broadcast()
}

// writer appends to one of the fields of p.progress.
func (p *process) writer(to *[]byte) io.Writer {
	return writerFunc(func(b []byte) (int, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		for len(*to) > maxBuffered {
			p.changed.Wait()
		}
		*to = append(*to, b...)
		p.changed.Broadcast()
		return len(b), nil
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
