package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/daxfs/containerd-daxfs/integration/vm"
	"github.com/daxfs/containerd-daxfs/integration/vm/proof/protocol"
)

// guest is a kernel of the lab. Its server, once started, dies with it.
type guest struct {
	*vm.Guest
	kernel string
	inside string
	pool   protocol.Pool
	server context.CancelFunc
}

// socket is the server's, in a directory of the guest's own file system.
const socket = "/run/proof/socket"

// boot boots a kernel of the lab. m says what the machine has besides the
// scratch directory.
func (b *bench) boot(ctx context.Context, kernel string, m vm.Machine) (*guest, error) {
	var err error
	if m.Kernel, err = vm.FindKernel(ctx, kernel); err != nil {
		return nil, err
	}
	m.Shared = b.work
	// QEMU emulates the string instructions, with which kernels copy where the
	// CPU has these features, byte by byte: copying would be all that is measured.
	m.Append += " clearcpuid=erms,fsrm"
	g := &guest{kernel: kernel, inside: b.inside, server: func() {}}
	if g.Guest, err = vm.Boot(ctx, m); err != nil {
		return nil, err
	}
	if m.Pool != "" {
		st, err := os.Stat(m.Pool)
		if err != nil {
			return nil, errors.Join(err, g.close())
		}
		g.pool = protocol.Pool{Phys: int64(g.PoolAddress()), Size: st.Size()}
	}
	return g, nil
}

// run runs a program in the guest and returns what it wrote to standard output.
func (g *guest) run(ctx context.Context, args ...string) ([]byte, error) {
	r, err := g.Run(ctx, vm.Command{Args: args})
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", g.kernel, args[0], err)
	}
	if r.Code != 0 {
		return nil, fmt.Errorf("%s: %q: exit status %d\n%s", g.kernel, args, r.Code, r.Stderr)
	}
	return r.Stdout, nil
}

// startServer starts "inside serve". When it fails, asking it fails too, and
// says why.
func (g *guest) startServer(ctx context.Context) error {
	if _, err := g.run(ctx, "mkdir", filepath.Dir(socket)); err != nil {
		return err
	}
	ctx, g.server = context.WithCancel(ctx)
	go func() {
		if _, err := g.run(ctx, g.inside, "serve", socket); ctx.Err() == nil {
			log.Printf("%s: the server has ended: %v", g.kernel, err)
		}
	}()
	return nil
}

func (g *guest) ask(ctx context.Context, q protocol.Request) (*protocol.Response, error) {
	b, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	out, err := g.run(ctx, g.inside, "ask", socket, string(b))
	if err != nil {
		return nil, err
	}
	var r protocol.Response
	return &r, json.Unmarshal(out, &r)
}

// close ends the guest. What its kernel complained about is an error.
func (g *guest) close() error {
	g.server()
	trouble := g.Trouble()
	if err := g.Close(); err != nil {
		return fmt.Errorf("%s: close: %w", g.kernel, err)
	}
	if len(trouble) > 0 {
		return fmt.Errorf("%s: the kernel complained: %q", g.kernel, trouble)
	}
	return nil
}
