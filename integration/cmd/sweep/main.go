// Command sweep waits until its standard input ends and then removes everything
// that belongs to the lab in $LAB_DIR. A test binary that dies without running
// its cleanup (a timeout, a panic, kill -9) closes the pipe all the same.
//
// The directory comes in the environment, not as an argument: it is by their
// arguments that a lab's processes are found and killed.
package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/daxfs/containerd-daxfs/integration/lab/sweep"
)

func main() {
	// Ctrl-C goes to the whole process group; the cleaning starts after it.
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	_, _ = io.Copy(io.Discard, os.Stdin)
	dir := os.Getenv("LAB_DIR")
	if dir == "" {
		fmt.Fprintln(os.Stderr, "sweep: LAB_DIR is not set")
		os.Exit(2)
	}
	if _, err := os.Lstat(dir); err != nil {
		return // cleaned up properly
	}
	if err := sweep.All(dir); err != nil {
		fmt.Fprintln(os.Stderr, "sweep:", err)
		os.Exit(1)
	}
}
