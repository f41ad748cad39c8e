package snapshotter

import (
	"context"
	"errors"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/engine"
)

// EnginePool is a pool as engines are asked about it. They try a small image,
// or, where there is no room for one, any of the pool's: a full pool must not
// keep the daemon from starting, which is how images are removed.
func EnginePool(p *daxmem.Pool) engine.Pool {
	lend := engine.Lend(p.Region(), p.Lend)
	trial := func(ctx context.Context) (*engine.Trial, error) {
		t, err := lend(ctx)
		if errors.Is(err, daxmem.ErrFull) {
			if own := trialOf(p); own != nil {
				return own, nil
			}
		}
		return t, err
	}
	return engine.Pool{Region: p.Region(), Shared: !p.SelfContained(), Trial: trial}
}

// trialOf is a trial with a sound image of the pool, or nil.
func trialOf(p *daxmem.Pool) *engine.Trial {
	for _, rec := range p.Records() {
		if rec.Kind != daxmem.KindImage || rec.Quarantined != "" {
			continue
		}
		if rec, unpin, err := p.Pin(daxmem.KindImage, rec.Key); err == nil {
			return &engine.Trial{Source: source(p, rec), Close: unpin}
		}
	}
	return nil
}

// source is an image of the pool as engines mount it.
func source(p *daxmem.Pool, rec *daxmem.Record) engine.Source {
	return engine.Source{Region: p.Region(), Offset: rec.Offset, Size: p.Size() - rec.Offset}
}
