package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/config"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

func poolGCCommand() *cli.Command {
	return &cli.Command{
		Name:  "gc",
		Usage: "free what no snapshot needs",
		Description: "The daemon does this by itself; here it is for a failed or interrupted call, and for looking with\n" +
			"--dry-run. Where the daemon runs it does the work, else daxfsctl does it in its place. With keep_unused\n" +
			"the daemon frees what nobody can ask for, and above high_watermark more than is announced; without the\n" +
			"daemon all goes that no snapshot needs. Only the pool's owner collects.",
		Flags:  []cli.Flag{&cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "only say what would be freed"}},
		Action: poolGC,
	}
}

type gcJSON struct {
	Pool    string     `json:"pool"`
	DryRun  bool       `json:"dry_run"`
	By      string     `json:"by"` // "daemon" or "daxfsctl"
	Removed []gcRecord `json:"removed"`
	Bytes   int64      `json:"bytes"`
	Kept    []gcRecord `json:"kept,omitempty"` // could not be freed yet
	Dirs    *[]string  `json:"directories"`    // without a snapshot; null where a running daemon alone knows
}

type gcRecord struct {
	Kind  string `json:"kind"`
	Key   string `json:"key"`
	Bytes int64  `json:"bytes"`
	slot  int
	life  uint32
}

func poolGC(c *cli.Context) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	cfg, err := loadConfig(c)
	if err != nil {
		return err
	}
	res, err := planGC(c.Context, cfg)
	if err != nil {
		return err
	}
	res.DryRun = c.Bool("dry-run")
	if !res.DryRun {
		if res.By == "daemon" {
			err = askDaemon(c.Context, cfg)
		} else {
			err = collectHere(c.Context, cfg)
		}
		if err == nil {
			err = res.compare(c.Context, cfg)
		}
		if err != nil {
			return err
		}
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, res)
	}
	return res.print(c.App.Writer)
}

// planGC finds out what a collection would free, without changing anything.
func planGC(ctx context.Context, cfg *config.Config) (*gcJSON, error) {
	pool, err := openPool(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer shut(pool)
	refs, from, err := findRefs(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := mayCollect(cfg, from); err != nil {
		return nil, err
	}
	held, err := snapshotter.HeldImages(cfg.Root)
	if err != nil {
		return nil, err
	}
	kept := snapshotter.Kept(nil)
	private := cfg.Share.Role != config.RoleOwner && cfg.Pool.Path == cfg.Share.OwnPool
	if from == "daemon" && cfg.Pool.KeepUnused && !private {
		kept = snapshotter.Kept(append(pool.Records(), pool.Chains()...))
	}
	live := func(kind daxmem.Kind, key [32]byte) bool {
		return refs.Has(kind, key) || kept.Has(kind, key) || kind == daxmem.KindImage &&
			slices.ContainsFunc(held, func(h snapshotter.Held) bool { return h.Key == key })
	}
	rep, err := pool.Collect(ctx, live, true)
	if err != nil {
		return nil, err
	}
	res := &gcJSON{Pool: cfg.Pool.Path, By: "daemon", Removed: []gcRecord{}, Bytes: rep.Bytes}
	for _, r := range rep.Removed {
		res.Removed = append(res.Removed, gcRecord{r.Kind.String(), hex.EncodeToString(r.Key[:]), r.Bytes, r.Slot, r.Generation})
	}
	if from == "metadata" {
		res.By = "daxfsctl"
		if err := belongsTogether(cfg, pool, refs); err != nil {
			return nil, err
		}
		dirs, err := orphanDirs(ctx, cfg)
		if err != nil {
			return nil, err
		}
		res.Dirs = &dirs
	}
	return res, nil
}

// belongsTogether keeps a wrong --root or --pool from costing everything.
func belongsTogether(cfg *config.Config, pool *daxmem.Pool, refs *snapshotter.Refs) error {
	layers, known := 0, 0
	for _, r := range pool.Records() {
		if r.Kind == daxmem.KindLayer {
			layers++
			if refs.Has(r.Kind, r.Key) {
				known++
			}
		}
	}
	if layers == 0 || known > 0 {
		return nil
	}
	if _, err := os.Stat(filepath.Join(cfg.Root, "metadata.db")); err != nil {
		return fmt.Errorf("pool %s holds %s, but there are no snapshots in %s: are --root and --pool right? %w",
			cfg.Pool.Path, plural(layers, "layer"), cfg.Root, err)
	}
	if len(refs.Layers) > 0 {
		return fmt.Errorf("pool %s holds none of the %s that the snapshots in %s have: are --root and --pool right? %w",
			cfg.Pool.Path, plural(len(refs.Layers), "layer"), cfg.Root, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// orphanDirs lists snapshot directories that no snapshot has.
func orphanDirs(ctx context.Context, cfg *config.Config) ([]string, error) {
	_, ids, err := readMetadata(ctx, cfg)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Join(cfg.Root, "snapshots"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	out := []string{}
	for _, e := range entries {
		if _, ok := ids[e.Name()]; !ok {
			out = append(out, escape(filepath.Join(cfg.Root, "snapshots", e.Name())))
		}
	}
	return out, nil
}

// compare sorts what was planned into what is gone and what is still there.
func (r *gcJSON) compare(ctx context.Context, cfg *config.Config) error {
	pool, err := openPool(ctx, cfg)
	if err != nil {
		return err
	}
	defer shut(pool)
	there := make(map[int]uint32)
	for _, rec := range append(pool.Records(), pool.Chains()...) {
		there[rec.Slot] = rec.Generation
	}
	planned := r.Removed
	r.Removed, r.Bytes = []gcRecord{}, 0
	for _, g := range planned {
		if there[g.slot] == g.life {
			r.Kept = append(r.Kept, g)
			continue
		}
		r.Removed = append(r.Removed, g)
		r.Bytes += g.Bytes
	}
	return nil
}

func (r *gcJSON) print(w io.Writer) error {
	verb, sum := "freed", "freed"
	if r.DryRun {
		verb, sum = "would free", "would be freed"
	}
	if err := table(w, func(w io.Writer) {
		for _, g := range r.Removed {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", verb, g.Kind, g.Key[:12], size(g.Bytes))
		}
		for _, g := range r.Kept {
			fmt.Fprintf(w, "kept for now\t%s\t%s\t%s\n", g.Kind, g.Key[:12], size(g.Bytes))
		}
	}); err != nil {
		return err
	}
	if r.Dirs != nil {
		for _, d := range *r.Dirs {
			fmt.Fprintf(w, "%s directory %s\n", map[bool]string{true: "would remove", false: "removed"}[r.DryRun], d)
		}
	}
	if len(r.Removed)+len(r.Kept) == 0 {
		_, err := fmt.Fprintln(w, "nothing to free: every layer and image is in use")
		return err
	}
	by := ""
	if r.By == "daemon" && !r.DryRun {
		by = " by the daemon"
	}
	_, err := fmt.Fprintf(w, "%s, %s %s%s\n", plural(len(r.Removed), "record"), size(r.Bytes), sum, by)
	return err
}
