package lab

import (
	"context"
	"os"
)

// Peers are other snapshotters for the lab's containerd. Its overlayfs is there
// anyway.
type Peers struct {
	// MkfsErofs is a directory with an mkfs.erofs that containerd's erofs differ
	// can use, 1.8.2 at least. Empty: no erofs.
	MkfsErofs string
	// Stargz is the binary of integration/bench/stargz. Empty: no stargz.
	Stargz string
}

// startPeers starts those peers that are daemons.
func (l *Lab) startPeers() {
	l.t.Helper()
	if l.Peers.Stargz == "" {
		return
	}
	l.stargz = l.start("stargz", l.Peers.Stargz, l.path("stargz"), l.path("stargz.sock"))
	l.waitFor(l.stargz, func(context.Context) error {
		_, err := os.Stat(l.path("stargz.sock"))
		return err
	})
}

// Daemons returns the process IDs of what works at a pull: containerd, and the
// daemons of snapshotters.
func (l *Lab) Daemons() map[string]int {
	pids := map[string]int{"containerd": l.ctrd.cmd.Process.Pid, Daxfs: l.daemon.cmd.Process.Pid}
	if l.stargz != nil {
		pids[Stargz] = l.stargz.cmd.Process.Pid
	}
	return pids
}

// SnapshotsDir is where a snapshotter of the lab keeps what is on disk.
func (l *Lab) SnapshotsDir(snapshotter string) string {
	switch snapshotter {
	case Daxfs:
		return l.Root()
	case Stargz:
		return l.path("stargz")
	}
	return l.path("root/io.containerd.snapshotter.v1." + snapshotter)
}

// DebugSocket is where our daemon serves profiles.
func (l *Lab) DebugSocket() string { return l.path("debug.sock") }
