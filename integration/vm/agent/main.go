// Command agent is a lab guest's init: it sets up a system on the machine's own
// root file system and runs commands for the driver outside. See package vm.
package main

import (
	"encoding/json"
	"fmt"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/vm/protocol"
)

func main() {
	run := serve
	if os.Getpid() == 1 {
		run = initialize
	}
	err := run()
	// Only a failure gets here; the driver sees it on the console.
	fmt.Fprintln(os.Stderr, "agent:", err)
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		panic(err)
	}
}

// initialize is process 1: it prepares the system, starts itself once more to
// serve, and then only waits for orphans, which os/exec would fight over.
func initialize() error {
	b, err := os.ReadFile(protocol.SetupPath)
	if err != nil {
		return err
	}
	var s protocol.Setup
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	if err := setUp(s); err != nil {
		return err
	}
	server := exec.Command("/proc/self/exe")
	server.Stdout, server.Stderr = os.Stdout, os.Stderr
	server.Env = []string{"PATH=" + s.Path, "HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/sh", "LANG=C.UTF-8", "TERM=dumb"}
	if err := server.Start(); err != nil {
		return err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for children: %w", err)
		}
		if pid == server.Process.Pid {
			return fmt.Errorf("the serving process ended: exit %d, signal %v", status.ExitStatus(), status.Signal())
		}
	}
}

// serve answers the driver until the guest ends.
func serve() error {
	port, err := openPort()
	if err != nil {
		return err
	}
	s := rpc.NewServer()
	if err := s.Register(&Agent{running: map[protocol.ID]*process{}}); err != nil {
		return err
	}
	s.ServeConn(port)
	return fmt.Errorf("the driver hung up")
}

// openPort opens the virtio-serial port whose name is protocol.Port.
func openPort() (*os.File, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, path := range names {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		if strings.TrimSpace(string(b)) == protocol.Port {
			return os.OpenFile(filepath.Join("/dev", filepath.Base(filepath.Dir(path))), os.O_RDWR, 0)
		}
	}
	return nil, fmt.Errorf("no virtio port %q among %d", protocol.Port, len(names))
}
