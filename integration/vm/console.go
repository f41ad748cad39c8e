package vm

import (
	"bytes"
	"io"
	"regexp"
	"strings"
	"sync"
)

// console collects what a guest's kernel writes to its serial port.
type console struct {
	complete chan struct{} // closed at the end

	mu  sync.Mutex
	log bytes.Buffer
}

// read reads until the other end is closed, which QEMU's end brings about.
func (c *console) read(r io.ReadCloser) {
	defer close(c.complete)
	defer r.Close()
	_, _ = io.Copy(c, r)
}

func (c *console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.log.Write(bytes.ReplaceAll(b, []byte("\r"), nil))
	return len(b), nil
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.log.String()
}

// tail is what one wants to see of a console in an error.
func tail(console string) string {
	lines := strings.SplitAfter(console, "\n")
	return strings.Join(lines[max(0, len(lines)-60):], "")
}

// int3Oops is what a kernel says that ran into a breakpoint of its own.
var int3Oops = regexp.MustCompile(`(?m)\] (Oops: )?int3: 0000 \[#\d+\]`)

func diedOfInt3(console string) bool { return int3Oops.MatchString(console) }
