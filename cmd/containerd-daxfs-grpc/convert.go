package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/daxfs/containerd-daxfs/internal/config"
)

// convertNamespace is where images are that were pulled for other kernels.
const convertNamespace = "daxfs"

// converter pulls images for other kernels through this kernel's containerd,
// which unpacks them into the pool; nil where the configuration does not want it.
func converter(cfg *config.Config) func(ctx context.Context, name string) error {
	if cfg.Containerd == "" || !cfg.Share.Pull {
		return nil
	}
	return func(ctx context.Context, name string) (err error) {
		c, err := client.New(cfg.Containerd, client.WithDefaultNamespace(convertNamespace))
		if err != nil {
			return fmt.Errorf("pull %s for another kernel: %w", name, err)
		}
		defer func() { err = errors.Join(err, c.Close()) }()
		_, err = c.Pull(namespaces.WithNamespace(ctx, convertNamespace), name,
			client.WithPullUnpack, client.WithPullSnapshotter(cfg.Snapshotter))
		if err != nil {
			return fmt.Errorf("pull %s for another kernel: %w", name, err)
		}
		return nil
	}
}
