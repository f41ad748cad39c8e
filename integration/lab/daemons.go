package lab

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"github.com/daxfs/containerd-daxfs/integration/lab/sweep"
)

// StartContainerd starts containerd, again after KillContainerd.
func (l *Lab) StartContainerd() {
	l.t.Helper()
	l.ctrd = l.start("containerd", tool("containerd"), "--config", l.path("containerd.toml"))
	l.waitFor(l.ctrd, func(ctx context.Context) error {
		c, err := client.New(l.path("c.sock"), client.WithTimeout(time.Second))
		if err != nil {
			return err
		}
		if _, err := c.Version(ctx); err != nil {
			c.Close()
			return err
		}
		l.client = c
		return nil
	})
}

// StartDaemon starts our daemon, again after KillDaemon.
func (l *Lab) StartDaemon() {
	l.t.Helper()
	binary := l.built.Daemon
	if l.Standin {
		binary = l.built.Standin
	}
	args := []string{"--config", l.path("daxfs.toml")}
	if !l.Examples {
		args = append(args, "--root", l.Root(), "--address", l.Socket(), "--log-level", l.logLevel())
	}
	if l.Measured {
		args = append(args, "--debug-address", l.DebugSocket())
	}
	l.daemon = l.start("daemon", binary, args...)
	l.waitFor(l.daemon, func(context.Context) error {
		c, err := net.Dial("unix", l.Socket())
		if err == nil {
			c.Close()
		}
		return err
	})
	if l.client == nil {
		return
	}
	// containerd's connection to a proxy that went away waits up to three
	// seconds before it dials again, and fails all calls meanwhile. Stat and
	// its like would not tell: containerd answers them itself.
	l.waitFor(l.daemon, func(ctx context.Context) error {
		ctx = namespaces.WithNamespace(ctx, filepath.Base(l.Dir)+"-probe")
		sn := l.client.SnapshotService(Daxfs)
		if _, err := sn.Prepare(ctx, "probe", ""); err != nil && !errdefs.IsAlreadyExists(err) {
			return err
		}
		return sn.Remove(ctx, "probe")
	})
}

// ContainerdEnded is closed when the containerd that runs now has ended, for
// tests that end it themselves.
func (l *Lab) ContainerdEnded() <-chan struct{} { return l.ctrd.done }

// KillContainerd ends containerd with SIGKILL. Containers go on.
func (l *Lab) KillContainerd() {
	if l.client != nil {
		l.client.Close()
		l.client = nil
	}
	l.ctrd.kill(syscall.SIGKILL)
}

// RestartContainerd stops containerd properly and starts it again.
func (l *Lab) RestartContainerd() {
	l.t.Helper()
	l.client.Close()
	l.ctrd.kill(syscall.SIGTERM)
	l.StartContainerd()
}

// KillDaemon ends our daemon with SIGKILL.
func (l *Lab) KillDaemon() { l.daemon.kill(syscall.SIGKILL) }

// StopDaemon ends our daemon with SIGTERM, the graceful way.
func (l *Lab) StopDaemon() { l.daemon.kill(syscall.SIGTERM) }

// Reboot does what a crash of the machine would: everything that runs is gone
// with its mounts and loop devices, /run is empty, the disk stays as it is.
// A pool in memory is empty. The daemon starts before containerd.
// Only the page cache survives that should not; daemons that forget fsync are
// not found out this way.
func (l *Lab) Reboot() {
	l.t.Helper()
	l.KillContainerd()
	l.KillDaemon()
	for _, f := range []func(string) error{sweep.Processes, sweep.Mounts, sweep.Loops} {
		if err := f(l.Dir); err != nil {
			l.t.Fatal(err)
		}
	}
	sweep.ShimSockets(l.Dir)
	for _, d := range []string{"state", "runc", "fifo", "tmp"} {
		if err := os.RemoveAll(l.path(d)); err != nil {
			l.t.Fatal(err)
		}
	}
	for _, d := range []string{"fifo", "tmp"} {
		if err := os.Mkdir(l.path(d), 0o711); err != nil {
			l.t.Fatal(err)
		}
	}
	l.mountMemory()
	l.StartDaemon()
	l.StartContainerd()
}
