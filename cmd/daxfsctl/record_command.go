package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/term"
)

// exitStatus is that of a command which daxfsctl has run, and so daxfsctl's.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// runCommand runs a command to its end and returns its exit status, 128 and
// the signal's number if a signal ended it, as shells have it. An error means
// that it could not be started. Signals go on to the command.
func runCommand(args []string, stdout, stderr io.Writer) (exitStatus, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, stdout, stderr
	// Before it starts: no signal may end this program and leave the command.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			// A terminal sends what is typed there to both.
			if typed := s == syscall.SIGINT || s == syscall.SIGQUIT; !typed || !term.IsTerminal(int(os.Stdin.Fd())) {
				_ = cmd.Process.Signal(s) // it may have ended
			}
		case err := <-ended:
			if cmd.ProcessState == nil {
				return 0, err
			}
			ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if ok && ws.Signaled() {
				return exitStatus(128 + int(ws.Signal())), nil
			}
			return exitStatus(cmd.ProcessState.ExitCode()), nil
		}
	}
}
