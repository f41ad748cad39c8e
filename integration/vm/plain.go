package vm

import (
	"context"
	"fmt"
)

// RunInitrd boots a guest from an initrd of the caller's, without our agent, and
// waits until it powers off. It returns the guest's console, also with an error;
// an emulated boot that died of QEMU's int3 oops is tried again, as by Boot.
// What the guest does is up to Machine.Append; of a Machine, Daxfs, NdPmem,
// Modules and Shared are the agent's and mean nothing here.
func RunInitrd(ctx context.Context, m Machine, initrd []byte) (console string, err error) {
	if err := m.check(); err != nil {
		return "", err
	}
	for attempt := 1; ; attempt++ {
		console, err := m.runOnce(ctx, initrd)
		if err == nil || attempt == bootAttempts || !diedOfInt3(console) {
			return console, err
		}
	}
}

func (m Machine) runOnce(ctx context.Context, initrd []byte) (string, error) {
	g := &Guest{Machine: m, console: &console{}, ended: make(chan struct{})}
	if err := g.start(initrd); err != nil {
		return "", err
	}
	select {
	case <-g.ended:
	case <-ctx.Done():
		g.Kill()
		return g.Console(), fmt.Errorf("guest %s: %w\n%s", m.Kernel.Release, ctx.Err(), tail(g.Console()))
	}
	if len(g.Trouble()) > 0 || !g.qemu.ProcessState.Success() {
		return g.Console(), g.waitErr
	}
	return g.Console(), nil
}
