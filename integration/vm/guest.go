package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/vm/protocol"
)

const (
	// bootTimeout is many times what a boot takes on a machine that has nothing
	// else to do.
	bootTimeout = 5 * time.Minute
	// bootAttempts bounds how often a boot that died of QEMU's int3 oops is
	// tried again.
	bootAttempts = 5
	// closeTimeout is how long a guest may take to power off.
	closeTimeout = 20 * time.Second
)

// Guest is a running machine. Its methods may be called at the same time.
type Guest struct {
	Machine

	pool    uint64 // address
	console *console
	agent   *rpc.Client
	qemu    *exec.Cmd
	ended   chan struct{} // closed when QEMU has ended and console is complete
	waitErr error         // QEMU's, once ended
}

// Boot starts a guest and waits until it runs commands; ctx bounds that and not
// the guest's life, which lasts until Close or Kill. Emulated kernels sometimes
// die at boot of an int3 that QEMU runs after the kernel has patched it away:
// such a boot is tried again.
func Boot(ctx context.Context, m Machine) (*Guest, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	initrd, err := m.initrd(ctx)
	if err != nil {
		return nil, fmt.Errorf("make an initrd for %s: %w", m.Kernel.Release, err)
	}
	for attempt := 1; ; attempt++ {
		g, err := boot(ctx, m, initrd)
		if err == nil {
			return g, nil
		}
		if attempt == bootAttempts || !diedOfInt3(g.Console()) {
			return nil, fmt.Errorf("boot %s, attempt %d: %w\n%s", m.Kernel.Release, attempt, err, tail(g.Console()))
		}
	}
}

// boot returns a Guest with its console even when it fails.
func boot(ctx context.Context, m Machine, initrd []byte) (_ *Guest, err error) {
	g := &Guest{Machine: m, console: &console{}, ended: make(chan struct{})}
	if err := g.start(initrd); err != nil {
		return g, err
	}
	defer func() {
		if err != nil {
			g.Kill()
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	if err := g.call(ctx, protocol.Ready, protocol.Nothing{}, &protocol.Nothing{}); err != nil {
		return g, err
	}
	if m.Pool == "" {
		return g, nil
	}
	r, err := g.Run(ctx, Command{Args: []string{"cat", "/sys/bus/nd/devices/region0/resource"}})
	if err != nil {
		return g, err
	}
	g.pool, err = strconv.ParseUint(strings.TrimSpace(string(r.Stdout)), 0, 64)
	if err != nil {
		return g, fmt.Errorf("address of the pool: %w: %s", err, r.Stderr)
	}
	return g, nil
}

// start starts QEMU.
func (g *Guest) start(initrd []byte) error {
	args, err := g.arguments()
	if err != nil {
		return err
	}
	agent, agentTheirs, err := socketPair("agent")
	if err != nil {
		return err
	}
	defer agentTheirs.Close()
	output, outputTheirs, err := socketPair("console")
	if err != nil {
		agent.Close()
		return err
	}
	defer outputTheirs.Close()
	file, err := memfd("initrd", initrd)
	if err != nil {
		agent.Close()
		output.Close()
		return err
	}
	defer file.Close()

	g.agent = rpc.NewClient(agent)
	g.qemu = exec.Command("qemu-system-x86_64", args...)
	var complaints bytes.Buffer
	g.qemu.Stderr = &complaints
	g.qemu.ExtraFiles = []*os.File{agentTheirs, outputTheirs, file} // as the constants count
	// Its own process group: an interrupt from the terminal is ours to handle.
	g.qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	go func() {
		// The death signal comes when the thread that started QEMU ends, not
		// the process: keep it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := g.qemu.Start()
		started <- err
		if err != nil {
			return
		}
		err = g.qemu.Wait()
		<-g.console.complete
		g.waitErr = fmt.Errorf("guest %s has ended", g.Kernel.Release)
		if err != nil {
			g.waitErr = fmt.Errorf("%w: QEMU: %w: %s", g.waitErr, err, complaints.Bytes())
		}
		if lines := g.Trouble(); len(lines) > 0 {
			g.waitErr = fmt.Errorf("%w: %s", g.waitErr, strings.Join(lines, "\n"))
		}
		g.agent.Close()
		close(g.ended)
	}()
	g.console.complete = make(chan struct{})
	go g.console.read(output)
	if err := <-started; err != nil {
		g.agent.Close()
		return fmt.Errorf("start QEMU: %w", err)
	}
	return nil
}

// Command is a program to run in a guest.
type Command struct {
	Args []string
	Env  []string // added to PATH, HOME and what else a session has
	Dir  string   // "" means /
	// Stdout and Stderr receive output as it comes; where nil, it is collected
	// in Result.
	Stdout, Stderr io.Writer
}

// Result is how a command ended.
type Result struct {
	Stdout, Stderr []byte
	Code           int // exit status, or 128 + signal
}

// Run runs a command and waits until it has ended and closed its output. A
// command that cannot be started, a guest that ends and a ctx that ends (which
// kills the command's process group) are errors; an exit status is not.
func (g *Guest) Run(ctx context.Context, c Command) (*Result, error) {
	dir := c.Dir
	if dir == "" {
		dir = "/"
	}
	var id protocol.ID
	if err := g.call(ctx, protocol.Start, protocol.Command{Args: c.Args, Env: c.Env, Dir: dir}, &id); err != nil {
		return nil, fmt.Errorf("run %q: %w", c.Args, err)
	}
	var stdout, stderr bytes.Buffer
	if c.Stdout == nil {
		c.Stdout = &stdout
	}
	if c.Stderr == nil {
		c.Stderr = &stderr
	}
	for {
		var p protocol.Progress
		if err := g.call(ctx, protocol.Output, id, &p); err != nil {
			if ctx.Err() != nil {
				g.agent.Go(protocol.Stop, id, &protocol.Nothing{}, nil)
			}
			return nil, fmt.Errorf("run %q: %w", c.Args, err)
		}
		_, err1 := c.Stdout.Write(p.Stdout)
		_, err2 := c.Stderr.Write(p.Stderr)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("run %q: pass on output: %w", c.Args, err)
		}
		if p.Done {
			return &Result{Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), Code: p.Code}, nil
		}
	}
}

// call calls the agent. The error says so if the guest has ended.
func (g *Guest) call(ctx context.Context, method string, arg, result any) error {
	call := g.agent.Go(method, arg, result, make(chan *rpc.Call, 1))
	select {
	case <-call.Done:
	case <-ctx.Done():
		return ctx.Err()
	}
	var remote rpc.ServerError
	if call.Error == nil || errors.As(call.Error, &remote) {
		return call.Error
	}
	// The connection is gone: so is, or in a moment, the guest.
	select {
	case <-g.ended:
		return g.waitErr
	case <-ctx.Done():
		return errors.Join(call.Error, ctx.Err())
	}
}

// PoolAddress is the physical address of the pool in this guest, 0 without one.
func (g *Guest) PoolAddress() uint64 { return g.pool }

// Console returns the kernel's log so far; all of it after Close or Kill.
func (g *Guest) Console() string { return g.console.String() }

// Trouble returns the lines of the console in which the kernel reports a defect
// of its own: see trouble.
func (g *Guest) Trouble() []string { return trouble(g.Console()) }

// Close powers the guest off. A guest that is gone already or does not power
// off in time is an error; it is gone afterwards in any case.
func (g *Guest) Close() error {
	if g.over() {
		return g.waitErr
	}
	g.agent.Go(protocol.PowerOff, protocol.Nothing{}, &protocol.Nothing{}, nil)
	select {
	case <-g.ended:
		return nil
	case <-time.After(closeTimeout):
		g.Kill()
		return fmt.Errorf("guest %s did not power off within %s", g.Kernel.Release, closeTimeout)
	}
}

// Kill ends the guest at once, as a power failure would.
func (g *Guest) Kill() {
	// It may have ended by itself, which is as good.
	_ = g.qemu.Process.Kill()
	<-g.ended
}

// over reports whether the guest has ended.
func (g *Guest) over() bool {
	select {
	case <-g.ended:
		return true
	default:
		return false
	}
}

// socketPair returns a connection and the end for another process.
func socketPair(name string) (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	defer ours.Close() // FileConn duplicates
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn, theirs, nil
}

// memfd returns an anonymous file with the content.
func memfd(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make an anonymous file: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(content); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
