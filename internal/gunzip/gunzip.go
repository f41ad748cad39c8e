// Package gunzip runs the programs with which containerd decompresses gzip, through
// pipes that do not slow them down.
package gunzip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// pipeSize is what an ordinary user may have (pipe(7), pipe-max-size). With the
// kernel's 64 KiB a program that makes 600 MB in a second waits for its reader more
// than half of the time, and the reader for it.
const pipeSize = 1 << 20

// Program returns the path of the program that containerd would use, igzip or
// unpigz, by the same environment variables (containerd
// pkg/archive/compression); "": none. It looks once.
var Program = sync.OnceValue(func() string {
	for _, p := range []struct{ name, disabled string }{
		{"igzip", "CONTAINERD_DISABLE_IGZIP"}, {"unpigz", "CONTAINERD_DISABLE_PIGZ"},
	} {
		if off, _ := strconv.ParseBool(os.Getenv(p.disabled)); off {
			continue
		}
		if path, err := exec.LookPath(p.name); err == nil {
			return path
		}
	}
	return ""
})

// NewReader returns what a program that takes gzip's -d and -c makes of r. The end
// of the program, with what it said, is an error of Read, if it failed. r is read
// by a goroutine, until the program has had enough; Close ends the program and
// waits until a read of r that is under way has ended.
func NewReader(program string, r io.Reader) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{cmd: exec.CommandContext(ctx, program, "-d", "-c"), cancel: cancel}
	if err := p.start(r); err != nil {
		cancel()
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	return p, nil
}

type process struct {
	cmd    *exec.Cmd
	cancel func()
	out    *os.File
	said   bytes.Buffer
	fed    chan error // what went wrong with its input
	ended  sync.Once
	err    error // how it ended
}

func (p *process) start(r io.Reader) error {
	stdin, in, err := pipe()
	if err != nil {
		return err
	}
	out, stdout, err := pipe()
	if err != nil {
		return errors.Join(err, stdin.Close(), in.Close())
	}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr, p.out = stdin, stdout, &p.said, out
	err = p.cmd.Start()
	// The program has its own.
	if cerr := errors.Join(stdin.Close(), stdout.Close()); err == nil {
		err = cerr
	}
	if err != nil {
		return errors.Join(err, in.Close(), out.Close())
	}
	p.fed = make(chan error, 1)
	go func() {
		_, err := io.Copy(in, r)
		if errors.Is(err, syscall.EPIPE) {
			err = nil // what it has not read is not part of it
		}
		p.fed <- errors.Join(err, in.Close())
	}()
	return nil
}

// pipe returns both ends of a large pipe.
func pipe() (r, w *os.File, err error) {
	if r, w, err = os.Pipe(); err != nil {
		return nil, nil, err
	}
	raw, err := r.SyscallConn()
	if err == nil {
		// It works with a smaller one.
		err = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) })
	}
	if err != nil {
		return nil, nil, errors.Join(err, r.Close(), w.Close())
	}
	return r, w, nil
}

// Read implements io.Reader.
func (p *process) Read(b []byte) (int, error) {
	n, err := p.out.Read(b)
	if err == io.EOF { //nolint:errorlint // the pipe's own
		if failed := p.wait(); failed != nil {
			err = failed
		}
	}
	return n, err
}

// wait returns how the program ended.
func (p *process) wait() error {
	p.ended.Do(func() {
		p.err = p.cmd.Wait()
		if p.err != nil {
			p.err = fmt.Errorf("%s: %w: %s", p.cmd.Path, p.err, bytes.TrimSpace(p.said.Bytes()))
		}
		if err := <-p.fed; err != nil {
			p.err = fmt.Errorf("feed %s: %w", p.cmd.Path, err)
		}
	})
	return p.err
}

// Close implements io.Closer.
func (p *process) Close() error {
	p.cancel()
	_ = p.wait() // Read has said it, or nobody wants to know
	return p.out.Close()
}
