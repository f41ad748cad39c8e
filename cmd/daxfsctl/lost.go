package main

import (
	"context"
	"errors"
	"os"
	"slices"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/config"
)

// lostLayer is a layer that snapshots need and no pool of this kernel has.
type lostLayer struct {
	key       [32]byte
	snapshots []string
}

// lostLayers finds the layers that a lost or damaged pool has cost. Records in
// quarantine count as lost.
func lostLayers(ctx context.Context, cfg *config.Config) ([]lostLayer, error) {
	// The daemon may be at work: a layer is lost if it was needed before and
	// after the pool was looked at.
	before, _, err := findRefs(ctx, cfg)
	if err != nil {
		return nil, err
	}
	for _, path := range layerPools(cfg) {
		if err := strike(ctx, path, before.Layers); err != nil {
			return nil, err
		}
	}
	if len(before.Layers) == 0 {
		return nil, nil
	}
	after, _, err := findRefs(ctx, cfg)
	if err != nil {
		return nil, err
	}
	var out []lostLayer
	for k := range before.Layers {
		if names := after.Layers[k]; len(names) > 0 {
			out = append(out, lostLayer{k, names})
		}
	}
	slices.SortFunc(out, func(a, b lostLayer) int { return slices.Compare(a.key[:], b.key[:]) })
	return out, nil
}

// layerPools are the pools that hold layers of this kernel's snapshots: what a
// reader has unpacked itself is in its own.
func layerPools(cfg *config.Config) []string {
	paths := []string{cfg.Pool.Path}
	if cfg.Share.Role == config.RoleOwner || cfg.Share.OwnPool == cfg.Pool.Path {
		return paths
	}
	if _, err := os.Stat(cfg.Share.OwnPool); errors.Is(err, os.ErrNotExist) {
		return paths // it has unpacked nothing yet
	}
	return append(paths, cfg.Share.OwnPool)
}

// strike takes the sound layers of a pool out of layers.
func strike(ctx context.Context, path string, layers map[[32]byte][]string) error {
	pool, err := openPoolAt(ctx, path)
	if err != nil {
		return err
	}
	defer shut(pool)
	for _, rec := range pool.Records() {
		if rec.Kind == daxmem.KindLayer && rec.Quarantined == "" {
			delete(layers, rec.Key)
		}
	}
	return nil
}
