package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/uuid"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/engine"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// engines tries every engine on the pool.
func (d *doctor) engines() {
	p, done, err := d.enginePool()
	if isMissing(err) && d.fresh() {
		d.add("engine", warn, "no engine could be tried: the daemon makes the pool's memory at its first start", "start the daemon, which tries them")
		return
	}
	if err != nil {
		d.add("engine", fail, "the pool's memory cannot be looked at: "+oneLine(err), "see pool below")
		return
	}
	defer done()
	order := d.cfg.Engine.Order
	if len(order) == 0 {
		order = engine.Names()
	}
	chosen, unknown := "", false
	for _, name := range order {
		e, err := engine.ByName(name)
		if err != nil {
			d.add("engine_"+name, fail, err.Error(), "")
			continue
		}
		probe := e.Probe(d.ctx, p)
		v, detail := verdictOf(probe, chosen != "")
		d.add("engine_"+name, v, detail, probe.Remedy)
		if probe.Answer == engine.Yes && chosen == "" {
			chosen = name
		}
		unknown = unknown || probe.Answer == engine.Unknown
	}
	for _, name := range engine.Names() {
		if !slices.Contains(order, name) {
			d.add("engine_"+name, ok, "not in engine.order, not tried", "")
		}
	}
	switch {
	case chosen != "":
	case unknown:
		d.add("engine", warn, "no engine could be tried", "see the engines above")
	default:
		d.add("engine", fail, "no engine can mount images", "see the engines above")
	}
}

// verdictOf judges a probe; settled says that a better engine works.
func verdictOf(p engine.Probe, settled bool) (verdict, string) {
	if p.Answer != engine.Yes {
		detail := p.Answer.String() + ": " + p.Reason
		if settled {
			return ok, detail + "; not needed"
		}
		return warn, detail
	}
	detail := "mounts by " + p.Method
	v := ok
	if p.Reason != "" {
		detail += ", but " + p.Reason
		v = warn
	}
	for _, better := range p.Passed {
		detail += "; passed over " + better
	}
	if settled {
		return ok, detail + "; not needed"
	}
	return v, detail
}

// enginePool is the pool as engines are asked about it. One in a file need not
// be there yet.
func (d *doctor) enginePool() (engine.Pool, func(), error) {
	l, err := daxmem.ParseLocation(d.cfg.Pool.Path)
	if err != nil {
		return engine.Pool{}, nil, err
	}
	fi, err := os.Stat(l.Path)
	if l.Path != "" && (err != nil || fi.Mode().IsRegular()) && filepath.Dir(l.Path) != "/dev" {
		file := filepath.Join(existing(filepath.Dir(l.Path)), filepath.Base(l.Path))
		return engine.Pool{Region: engine.File(file), Shared: d.cfg.Pool.ShareExtents}, func() {}, nil
	}
	region, err := daxmem.OpenRegionReadOnly(d.cfg.Pool.Path)
	if err != nil {
		return engine.Pool{}, nil, err
	}
	p := engine.Pool{Region: region, Shared: d.cfg.Pool.ShareExtents}
	pool, err := openPool(d.ctx, d.cfg)
	if err != nil { // there is none yet, or it is not sound: the pool's own check tells
		return p, func() { shut(region) }, nil
	}
	p.Shared = !pool.SelfContained()
	if rec := d.trialImage(pool); rec != nil {
		p.Trial = func(context.Context) (*engine.Trial, error) {
			src := engine.Source{Region: region, Offset: rec.Offset, Size: region.Size() - rec.Offset}
			return &engine.Trial{Source: src, Close: func() {}}, nil
		}
	}
	return p, func() { shut(pool); shut(region) }, nil
}

// trialImage finds an image of the pool that stays while it is mounted for a
// trial: one that the daemon has mounted, or any where nobody can remove it.
func (d *doctor) trialImage(pool *daxmem.Pool) *daxmem.Record {
	idle := d.idle(pool)
	held, err := snapshotter.HeldImages(d.cfg.Root)
	if err != nil && !idle {
		return nil
	}
	for _, rec := range pool.Records() {
		mounted := slices.ContainsFunc(held, func(h snapshotter.Held) bool { return h.Key == rec.Key && h.Mounted })
		if rec.Kind == daxmem.KindImage && rec.Quarantined == "" && (idle || mounted) {
			return rec
		}
	}
	return nil
}

// idle reports whether nobody owns the pool, or could own it soon: no process
// here, and no other kernel, whose lock cannot be seen here. The seat of this
// kernel's own daemon stays for its pins when it stops.
func (d *doctor) idle(pool *daxmem.Pool) bool {
	seats, err := pool.Seats()
	if err != nil {
		return false
	}
	return poolOwner(d.cfg.Pool.Path) == nil && !slices.ContainsFunc(seats, func(s *daxmem.Seat) bool {
		return uuid.UUID(s.Boot).String() != d.boot || s.Damaged != ""
	})
}
