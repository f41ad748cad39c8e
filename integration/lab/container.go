package lab

import (
	"context"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"

	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

var serial atomic.Int64

// Container is a container of the lab with its running task.
type Container struct {
	client.Container
	Task client.Task

	lab    *Lab
	exited <-chan client.ExitStatus
	out    testutil.Output
}

// ContainerOpts are the rarer choices in making a container.
type ContainerOpts struct {
	Spec      []oci.SpecOpts            // after the image's configuration
	Container []client.NewContainerOpts // instead of a new snapshot of the image
}

// CreateContainer makes a container with a new snapshot of img, not yet running.
func (l *Lab) CreateContainer(ctx context.Context, img client.Image, snapshotter string, args []string, o ContainerOpts) (client.Container, error) {
	id := fmt.Sprintf("c%d", serial.Add(1))
	// An image that is already unpacked knows for which snapshotter; this makes
	// the container look there.
	opts := []client.NewContainerOpts{
		client.WithSnapshotter(snapshotter), client.WithImage(img),
		// runc keeps its state in /run/containerd/runc otherwise.
		client.WithRuntime("io.containerd.runc.v2", &options.Options{Root: l.path("runc")}),
	}
	if o.Container == nil {
		opts = append(opts, client.WithNewSnapshot(id, img))
	}
	opts = append(opts, o.Container...)
	spec := append([]oci.SpecOpts{oci.WithImageConfig(img), oci.WithProcessArgs(args...)}, o.Spec...)
	opts = append(opts, client.WithNewSpec(spec...))
	return l.client.NewContainer(ctx, id, opts...)
}

// StartContainer makes a container and starts it.
func (l *Lab) StartContainer(ctx context.Context, img client.Image, snapshotter string, args []string, o ContainerOpts) (*Container, error) {
	c, err := l.CreateContainer(ctx, img, snapshotter, args, o)
	if err != nil {
		return nil, err
	}
	started, err := l.StartTask(ctx, c)
	if err != nil {
		c.Delete(ctx, client.WithSnapshotCleanup)
		return nil, err
	}
	return started, nil
}

// MustStartAgain starts the process of a container whose last one has ended,
// perhaps before containerd was restarted.
func (l *Lab) MustStartAgain(ctx context.Context, id string) *Container {
	l.t.Helper()
	c, err := l.Client().LoadContainer(ctx, id)
	if err != nil {
		l.t.Fatal(err)
	}
	started, err := l.StartTask(ctx, c)
	if err != nil {
		l.t.Fatal(err)
	}
	return started
}

// StartTask starts the process of a container that exists.
func (l *Lab) StartTask(ctx context.Context, c client.Container) (*Container, error) {
	s := &Container{Container: c, lab: l}
	var err error
	s.Task, err = c.NewTask(ctx, cio.NewCreator(cio.WithStreams(nil, &s.out, &s.out), cio.WithFIFODir(l.path("fifo"))))
	if err != nil {
		return nil, fmt.Errorf("create task: %w", err)
	}
	if s.exited, err = s.Task.Wait(ctx); err == nil {
		err = s.Task.Start(ctx)
	}
	if err != nil {
		s.Task.Delete(ctx, client.WithProcessKill)
		return nil, fmt.Errorf("start task: %w", err)
	}
	return s, nil
}

// Attach returns a handle on a container that runs already, without its output.
func (l *Lab) Attach(ctx context.Context, c client.Container) (*Container, error) {
	s := &Container{Container: c, lab: l}
	var err error
	if s.Task, err = c.Task(ctx, nil); err != nil {
		return nil, err
	}
	s.exited, err = s.Task.Wait(ctx)
	return s, err
}

// Wait waits for the container's own end and returns what it wrote.
func (c *Container) Wait(ctx context.Context) (string, error) {
	select {
	case st := <-c.exited:
		c.Task.IO().Wait() // Delete cuts off what has not been read yet
		if _, err := c.Task.Delete(ctx); err != nil {
			return c.out.String(), err
		}
		return c.out.String(), exitError(st, c.out.String())
	case <-ctx.Done():
		return c.out.String(), ctx.Err()
	}
}

// Exec runs another process in a running container and returns what it wrote.
func (c *Container) Exec(ctx context.Context, args ...string) (string, error) {
	spec, err := c.Spec(ctx)
	if err != nil {
		return "", err
	}
	p := *spec.Process
	p.Args = args
	var out testutil.Output
	proc, err := c.Task.Exec(ctx, fmt.Sprintf("e%d", serial.Add(1)), &p,
		cio.NewCreator(cio.WithStreams(nil, &out, &out), cio.WithFIFODir(c.lab.path("fifo"))))
	if err != nil {
		return "", err
	}
	exited, err := proc.Wait(ctx)
	if err == nil {
		err = proc.Start(ctx)
	}
	if err != nil {
		proc.Delete(ctx)
		return "", err
	}
	st := <-exited
	proc.IO().Wait() // Delete cuts off what has not been read yet
	if _, err := proc.Delete(ctx); err != nil {
		return out.String(), err
	}
	if err := exitError(st, out.String()); err != nil {
		return out.String(), fmt.Errorf("%q: %w", args, err)
	}
	return out.String(), nil
}

// exitError is nil if a process ended well, and else says what it wrote.
func exitError(st client.ExitStatus, out string) error {
	code, _, err := st.Result()
	if err == nil && code != 0 {
		err = fmt.Errorf("exit status %d: %s", code, out)
	}
	return err
}

// Stop kills the task and keeps the container with its snapshot.
func (c *Container) Stop(ctx context.Context) error {
	if err := c.Task.Kill(ctx, syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	select {
	case <-c.exited:
	case <-time.After(20 * time.Second):
		return fmt.Errorf("container %s does not die", c.ID())
	}
	_, err := c.Task.Delete(ctx)
	return err
}

// Remove stops the container and removes it and its snapshot.
func (c *Container) Remove(ctx context.Context) error {
	if err := c.Stop(ctx); err != nil {
		return err
	}
	return c.Delete(ctx, client.WithSnapshotCleanup)
}

// Run runs a container to its end, removes it, and returns what it wrote.
func (l *Lab) Run(ctx context.Context, img client.Image, snapshotter string, args ...string) (string, error) {
	c, err := l.StartContainer(ctx, img, snapshotter, args, ContainerOpts{})
	if err != nil {
		return "", err
	}
	out, err := c.Wait(ctx)
	if derr := c.Delete(ctx, client.WithSnapshotCleanup); err == nil {
		err = derr
	}
	return out, err
}
