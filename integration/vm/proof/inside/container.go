package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/vm/proof/protocol"
)

// A container here is what runc makes of one as far as memory goes: an overlay
// of the mounted image and a writable directory as the root, and namespaces of
// its own. Its process 1 is this program, which starts the others.
type container struct {
	cmd *exec.Cmd
	in  *json.Encoder
	out *json.Decoder
}

// order is what process 1 of a container is asked to do; it answers with a report.
type order struct {
	Workers int      `json:"workers,omitempty"` // start as many more
	Run     []string `json:"run,omitempty"`     // run a program of the image
	Ask     string   `json:"ask,omitempty"`     // pass a line on to the first worker
}

type report struct {
	Err    string          `json:"err,omitempty"`
	Output string          `json:"output,omitempty"` // of Run
	Answer json.RawMessage `json:"answer,omitempty"` // of Ask
}

// startContainer starts container number n on the image mounted at lower. Its
// writable directory is on scratch, a tmpfs.
func startContainer(n int, lower, scratch, manifest string) (*container, error) {
	dir := filepath.Join(scratch, fmt.Sprint("container", n))
	for _, d := range []string{"upper", "work", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	list, err := os.Open(manifest)
	if err != nil {
		return nil, err
	}
	defer list.Close()
	cmd := exec.Command("/proc/self/exe", "container", lower, dir)
	cmd.Env = smallRuntime
	cmd.ExtraFiles = []*os.File{list} // descriptor 3
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  unix.SIGKILL,
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &container{cmd, json.NewEncoder(in), json.NewDecoder(out)}
	if _, err := c.do(order{}); err != nil {
		return nil, errors.Join(fmt.Errorf("start container %d: %w", n, err), c.stop())
	}
	return c, nil
}

// smallRuntime keeps the Go runtime's own memory small.
var smallRuntime = []string{"GOMAXPROCS=1", "GOGC=off"}

func (c *container) do(o order) (*report, error) {
	if err := c.in.Encode(o); err != nil {
		return nil, err
	}
	var r report
	if err := c.out.Decode(&r); err != nil {
		return nil, fmt.Errorf("the container's process 1 is gone: %w", err)
	}
	if r.Err != "" {
		return nil, errors.New(r.Err)
	}
	return &r, nil
}

// stop kills the container; the kernel kills what runs in it.
func (c *container) stop() error {
	if err := c.cmd.Process.Kill(); err != nil {
		return err
	}
	if err := c.cmd.Wait(); c.cmd.ProcessState == nil {
		return err
	}
	return nil
}

// containerMain is process 1 of a container.
func containerMain(lower, dir string) error {
	if err := enterRoot(lower, dir); err != nil {
		return err
	}
	manifest := os.NewFile(3, "manifest")
	var workers []*workerProcess
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o order
		switch err := in.Decode(&o); {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
		var r report
		err := func() (err error) {
			if o.Workers > 0 {
				more, err := startWorkers(o.Workers, manifest, len(workers) == 0)
				workers = append(workers, more...)
				if err != nil {
					return err
				}
			}
			if len(o.Run) > 0 {
				b, err := exec.Command(o.Run[0], o.Run[1:]...).CombinedOutput()
				if r.Output = string(b); err != nil {
					return fmt.Errorf("run %q: %w\n%s", o.Run, err, b)
				}
			}
			if o.Ask != "" {
				if len(workers) == 0 {
					return fmt.Errorf("ask %q: no worker runs", o.Ask)
				}
				r.Answer, err = workers[0].ask(o.Ask)
			}
			return err
		}()
		if err != nil {
			r = report{Err: err.Error()}
		}
		if err := out.Encode(r); err != nil {
			return err
		}
	}
}

func enterRoot(lower, dir string) error {
	root := filepath.Join(dir, "root")
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, dir, dir)
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount overlay (%s): %w", options, err)
	}
	if err := unix.Mount("proc", filepath.Join(root, "proc"), "proc", 0, ""); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	if err := unix.Chroot(root); err != nil {
		return fmt.Errorf("chroot %s: %w", root, err)
	}
	return unix.Chdir("/")
}

type workerProcess struct {
	in  io.Writer
	out *bufio.Reader
}

// startWorkers starts n workers, the first of which may be thorough, and waits
// until each has touched all of the image.
func startWorkers(n int, manifest *os.File, thorough bool) ([]*workerProcess, error) {
	workers := make([]*workerProcess, n)
	var g errgroup.Group
	// No more at once than run at once, or all of them wait for all.
	g.SetLimit(2)
	for i := range workers {
		g.Go(func() (err error) {
			var more []string
			if thorough && i == 0 {
				more = []string{"thorough"}
			}
			workers[i], err = startWorker(manifest, more...)
			return err
		})
	}
	return workers, g.Wait()
}

func startWorker(manifest *os.File, more ...string) (*workerProcess, error) {
	// This program is not in the container's root; the link leads to it.
	cmd := exec.Command("/proc/self/exe", append([]string{"worker", "/proc/self/fd/3"}, more...)...)
	cmd.Env = smallRuntime
	cmd.ExtraFiles = []*os.File{manifest}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	w := &workerProcess{in, bufio.NewReader(out)}
	line, err := w.out.ReadString('\n')
	if err != nil || line != "ready\n" {
		return nil, errors.Join(fmt.Errorf("worker said %q: %w", line, err), cmd.Wait())
	}
	return w, nil
}

func (w *workerProcess) ask(line string) (json.RawMessage, error) {
	if _, err := io.WriteString(w.in, line+"\n"); err != nil {
		return nil, err
	}
	b, err := w.out.ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("worker was asked %q: %w", line, err)
	}
	return json.RawMessage(strings.TrimSpace(string(b))), nil
}

// askAll asks the first worker of each container.
func askAll[T protocol.Frames | protocol.Look](containers []*container, line string) ([]T, error) {
	var all []T
	for _, c := range containers {
		r, err := c.do(order{Ask: line})
		if err != nil {
			return nil, err
		}
		var answer T
		if err := json.Unmarshal(r.Answer, &answer); err != nil {
			return nil, err
		}
		all = append(all, answer)
	}
	return all, nil
}
