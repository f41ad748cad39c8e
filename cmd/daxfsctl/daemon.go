package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/daxfs/containerd-daxfs/internal/config"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// callWait bounds a call to a daemon that does not answer. Cleanup may wait
// for imports that run.
const callWait = time.Minute

// errNoDaemon says that nobody serves on the socket.
var errNoDaemon = fmt.Errorf("no daemon serves there: %w", errdefs.ErrUnavailable)

// connect returns the daemon's snapshots service. errNoDaemon is wrapped when
// there is no socket or nobody behind it.
func connect(cfg *config.Config) (snapshots.Snapshotter, func(), error) {
	probe, err := net.DialTimeout("unix", cfg.Address, time.Second)
	if err != nil {
		if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
			return nil, nil, fmt.Errorf("%s: %w", cfg.Address, errNoDaemon)
		}
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w (run as root)", err)
		}
		return nil, nil, err
	}
	probe.Close()
	conn, err := grpc.NewClient("unix://"+cfg.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, fmt.Errorf("connect to %s: %w", cfg.Address, err)
	}
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), ""), func() { shut(conn) }, nil
}

// findRefs finds out which snapshots use what: from the daemon, or, where none
// runs, from its metadata. from is "daemon" or "metadata".
func findRefs(ctx context.Context, cfg *config.Config) (refs *snapshotter.Refs, from string, err error) {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	sn, done, err := connect(cfg)
	if errors.Is(err, errNoDaemon) {
		infos, _, err := readMetadata(ctx, cfg)
		if err != nil {
			return nil, "", err
		}
		return snapshotter.FindRefs(infos), "metadata", nil
	}
	if err != nil {
		return nil, "", err
	}
	defer done()
	var infos []snapshots.Info
	if err := sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		infos = append(infos, info)
		return nil
	}); err != nil && !errdefs.IsNotFound(err) {
		return nil, "", fmt.Errorf("ask the daemon at %s for its snapshots: %w", cfg.Address, err)
	}
	return snapshotter.FindRefs(infos), "daemon", nil
}

// readMetadata reads metadata.db without changing it, and the names of
// snapshots by the names of their directories. No file is the same as no
// snapshot.
func readMetadata(ctx context.Context, cfg *config.Config) (infos []snapshots.Info, ids map[string]string, err error) {
	path := filepath.Join(cfg.Root, "metadata.db")
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(cfg.Root); err != nil {
			return nil, nil, fmt.Errorf("read snapshots: %w", err)
		}
		return nil, nil, nil
	}
	ms, err := storage.NewMetaStore(path, func(o *bolt.Options) error {
		o.ReadOnly, o.Timeout = true, time.Second
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	defer shut(ms)
	err = ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		var err error
		if ids, err = storage.IDMap(ctx); err != nil {
			return err
		}
		return storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			infos = append(infos, info)
			return nil
		})
	})
	if errors.Is(err, bolterrors.ErrTimeout) || errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w: another process has it open, but no daemon serves on %s: is --address right?", err, cfg.Address)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, nil, fmt.Errorf("read %s: %w", path, err)
	}
	return infos, ids, nil
}
