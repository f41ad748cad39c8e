package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/contrib/diffservice"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/coreos/go-systemd/v22/daemon"
	"google.golang.org/grpc"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/config"
	"github.com/daxfs/containerd-daxfs/internal/differ"
	"github.com/daxfs/containerd-daxfs/internal/engine"
	"github.com/daxfs/containerd-daxfs/internal/version"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// stopWait is how long a stop waits for calls that run. What it cuts off is
// put in order at the next start.
const stopWait = 10 * time.Second

// serve runs the daemon until ctx ends. Containers and mounts stay.
func serve(ctx context.Context, cfg *config.Config) (retErr error) {
	if err := makeDirectories(cfg); err != nil {
		return err
	}
	listener, err := listen(cfg.Address)
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }()
	pools, err := openPools(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, pools.Close()) }()
	undertaker, err := newUndertaker(cfg, pools)
	if err != nil {
		return err
	}
	sn, err := snapshotter.New(ctx, snapshotter.Options{
		Root: cfg.Root, Pool: pools.own, Engine: pools.engine, Shared: pools.shared, SharedEngine: pools.sharedEngine,
		Missing: cfg.Share.Missing, AskWait: time.Duration(cfg.Share.AskTimeout), Former: pools.former, Convert: converter(cfg),
		KeepMounted: time.Duration(cfg.Engine.KeepMounted),
		Keep:        pools.keep, Spill: pools.spill, Content: pools.content, ImageOf: imageOf(cfg),
	})
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, sn.Close()) }()

	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(sn))
	if cfg.Containerd != "" && pools.own != nil {
		// It connects with the first call, in which containerd is there.
		cl, err := client.New(cfg.Containerd, client.WithTimeout(dialWait))
		if err != nil {
			return fmt.Errorf("connect to containerd: %w", err)
		}
		defer func() { retErr = errors.Join(retErr, cl.Close()) }()
		diffapi.RegisterDiffServer(server, diffservice.FromApplierAndComparer(differ.New(sn, differ.NewBlobs(cl.ContentStore(), cl.IntrospectionService())), nil))
	}
	working, stop := context.WithCancel(ctx)
	var background sync.WaitGroup
	defer background.Wait()
	defer stop()
	failed := make(chan error, 3)
	background.Go(func() { failed <- pools.watch(working) })
	if undertaker != nil {
		background.Go(func() { undertaker.run(working, sn.Cleanup) })
	}
	if pools.own != nil && pools.shared == nil {
		background.Go(func() { failed <- pools.own.Serve(working, sn.Answer) })
	}
	go func() { failed <- server.Serve(listener) }()
	log.G(ctx).WithField("address", cfg.Address).WithField("pool", cfg.Pool.Path).WithField("version", version.String()).Info("serving")
	notify(ctx, daemon.SdNotifyReady)
	var ended error
	select {
	case err := <-failed:
		if err != nil {
			ended = fmt.Errorf("serve on %s: %w", cfg.Address, err)
		}
	case <-ctx.Done():
	}
	notify(ctx, daemon.SdNotifyStopping)
	log.G(ctx).Info("stopping, containers go on")
	done := make(chan struct{})
	go func() { server.GracefulStop(); close(done) }()
	select {
	case <-done:
	case <-time.After(stopWait):
		server.Stop()
		<-done
	}
	return ended
}

// makeDirectories makes the directories of the root and of a pool in a file.
func makeDirectories(cfg *config.Config) error {
	dirs := []string{cfg.Root}
	if l, err := daxmem.ParseLocation(cfg.Pool.Path); err != nil {
		return err
	} else if l.Path != "" {
		dirs = append(dirs, filepath.Dir(l.Path))
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	return nil
}

func logProbes(ctx context.Context, probes []engine.Probe) {
	for _, p := range probes {
		l := log.G(ctx).WithField("engine", p.Engine).WithField("method", p.Method).WithField("answer", p.Answer.String())
		if p.Reason != "" {
			l = l.WithField("reason", p.Reason).WithField("remedy", p.Remedy)
		}
		if len(p.Passed) > 0 {
			l.WithField("passed", p.Passed).Warn("engine falls back")
			continue
		}
		l.Info("engine probed")
	}
}

// notify tells systemd; without it there is nobody to tell.
func notify(ctx context.Context, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.G(ctx).WithError(err).Warn("notify systemd")
	}
}

// listen makes the socket, readable by its owner only. One that another daemon
// serves is an error; one that a dead daemon left is replaced.
func listen(address string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(address), 0o700); err != nil {
		return nil, fmt.Errorf("make directory of the socket: %w", err)
	}
	if c, err := net.DialTimeout("unix", address, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("listen on %s: another daemon serves there: %w", address, errdefs.ErrAlreadyExists)
	}
	if fi, err := os.Lstat(address); err == nil {
		if fi.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("listen on %s: it exists and is not a socket: %w", address, errdefs.ErrAlreadyExists)
		}
		if err := os.Remove(address); err != nil {
			return nil, fmt.Errorf("remove stale socket: %w", err)
		}
	}
	// The mode must hold from the first moment.
	old := syscall.Umask(0o177)
	l, err := net.Listen("unix", address)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return l, nil
}
