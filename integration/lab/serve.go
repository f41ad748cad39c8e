package lab

import (
	"errors"
	"os"
	"syscall"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/daxfs/containerd-daxfs/integration/lab/sweep"
)

// Serve starts the daemon alone, with its files in root, and returns a client of
// its snapshots service. The function it returns stops the daemon and removes
// what it holds.
func (b *Built) Serve(t testing.TB, root string) (snapshots.Snapshotter, func() error, error) {
	l := &Lab{Dir: root, t: t, built: b, running: &running{}}
	if err := os.Mkdir(l.Root(), 0o711); err != nil {
		return nil, nil, err
	}
	if err := os.Mkdir(l.path("tmp"), 0o700); err != nil {
		return nil, nil, err
	}
	disarm := b.Watch(t, root)
	l.writeConfigs()
	l.StartDaemon()
	conn, err := grpc.NewClient("unix://"+l.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	sn := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), Daxfs)
	return sn, func() error {
		conn.Close()
		l.daemon.kill(syscall.SIGTERM)
		if t.Failed() {
			l.daemon.showLog(t)
		}
		// A graceful stop leaves mounts to containers. The suite removes the
		// directory and would fail in them.
		err := errors.Join(sweep.Processes(root), sweep.Mounts(root), sweep.Loops(root))
		if err == nil {
			err = os.RemoveAll(root)
		}
		disarm()
		return err
	}, nil
}
