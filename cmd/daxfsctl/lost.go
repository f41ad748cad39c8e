package main

import (
	"context"
	"slices"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/config"
)

// lostLayer is a layer that snapshots need and the pool does not have.
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
	pool, err := openPool(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer shut(pool)
	for _, rec := range pool.Records() {
		if rec.Kind == daxmem.KindLayer && rec.Quarantined == "" {
			delete(before.Layers, rec.Key)
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
