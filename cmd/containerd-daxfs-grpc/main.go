// containerd-daxfs-grpc is the daemon: containerd's snapshots service on one
// unix socket, to be named in containerd's proxy_plugins.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/containerd/log"
	"github.com/urfave/cli/v2"

	"github.com/daxfs/containerd-daxfs/internal/config"
	"github.com/daxfs/containerd-daxfs/internal/version"
)

// exitUsage is the exit status for a wrong command line; the unit file knows it.
const exitUsage = 2

func main() {
	app := &cli.App{
		Name:    "containerd-daxfs-grpc",
		Usage:   "containerd snapshotter that keeps images flattened in shared memory",
		Version: version.String(),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Usage: "configuration file", Value: config.DefaultPath, EnvVars: []string{"CONTAINERD_DAXFS_CONFIG"}},
			&cli.StringFlag{Name: "root", Usage: "directory for snapshots, metadata and the pool file"},
			&cli.StringFlag{Name: "address", Usage: "unix socket to serve on"},
			&cli.StringFlag{Name: "debug-address", Usage: "unix socket to serve profiles of this process on; none without"},
			&cli.StringFlag{Name: "log-level", Usage: "trace, debug, info, warn or error"},
		},
		HideHelpCommand: true,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return cli.Exit(fmt.Sprintf("unexpected argument %q", c.Args().First()), exitUsage)
			}
			return run(c)
		},
		OnUsageError:   func(_ *cli.Context, err error, _ bool) error { return cli.Exit(err, exitUsage) },
		ExitErrHandler: func(*cli.Context, error) {},
	}
	if err := app.Run(os.Args); err != nil {
		fmt.Fprintf(os.Stderr, "containerd-daxfs-grpc: %v\n", err)
		var code cli.ExitCoder
		if errors.As(err, &code) {
			os.Exit(code.ExitCode())
		}
		os.Exit(1)
	}
}

func run(c *cli.Context) error {
	cfg, err := config.Load(c.String("config"))
	if err != nil {
		return err
	}
	for flag, field := range map[string]*string{"root": &cfg.Root, "address": &cfg.Address, "log-level": &cfg.LogLevel} {
		if c.IsSet(flag) {
			*field = c.String(flag)
		}
	}
	if err := cfg.Check(); err != nil {
		return err
	}
	if err := log.SetLevel(cfg.LogLevel); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if address := c.String("debug-address"); address != "" {
		if err := serveDebug(ctx, address); err != nil {
			return err
		}
	}
	return serve(ctx, cfg)
}
