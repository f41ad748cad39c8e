package main

import (
	"encoding/hex"
	"fmt"
	"os"
	"slices"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/config"
)

func poolCheckCommand() *cli.Command {
	return &cli.Command{
		Name:  "check",
		Usage: "hold the whole pool against what must be true of it",
		Description: "Checks superblock, catalog, space, every layer and image with all their inodes, and that images use\n" +
			"only files of their layers. The daemon may run meanwhile. Nothing is repaired.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "data", Usage: "read all files too and compare their digests"},
			containerdFlag(),
		},
		Action: onPool(poolCheck),
	}
}

type poolCheckJSON struct {
	Pool        string        `json:"pool"`
	OK          bool          `json:"ok"`
	Data        bool          `json:"data_checked"`
	Records     int           `json:"records"`
	Extents     int           `json:"extents"`
	Bytes       int64         `json:"bytes_read"`
	Problems    []problemJSON `json:"problems"`
	Quarantined []*badRecord  `json:"quarantined"`
	Lost        []lostJSON    `json:"lost_layers"` // that snapshots need and the pool does not have
}

type lostJSON struct {
	Key       string     `json:"key"`
	Snapshots []string   `json:"snapshots"`
	Names     []nameJSON `json:"containerd_images,omitempty"`
}

type problemJSON struct {
	What     string `json:"what"`
	Offset   int64  `json:"offset"`
	Size     int64  `json:"size"`
	Expected string `json:"expected"`
	Found    string `json:"found"`
}

type badRecord struct {
	Kind   string     `json:"kind"`
	Key    string     `json:"key"`
	Offset int64      `json:"offset"`
	Reason string     `json:"reason"`
	Names  []nameJSON `json:"containerd_images,omitempty"` // that need it
}

func poolCheck(c *cli.Context, cfg *config.Config, pool *daxmem.Pool) error {
	opts := daxmem.CheckOptions{Data: c.Bool("data")}
	bar := &progress{w: c.App.ErrWriter}
	if term.IsTerminal(int(os.Stderr.Fd())) && !c.Bool("json") {
		opts.Progress = bar.show
	}
	rep, err := pool.Check(c.Context, opts)
	bar.clear()
	if err != nil {
		return err
	}
	res := &poolCheckJSON{
		Pool: cfg.Pool.Path, Data: opts.Data, Records: rep.Records, Extents: rep.Extents, Bytes: rep.Bytes,
		Problems: []problemJSON{}, Quarantined: []*badRecord{},
	}
	for _, p := range rep.Problems {
		res.Problems = append(res.Problems, problemJSON{p.Name, p.Offset, p.Size, p.Expected, p.Found})
	}
	var needs func(*daxmem.Record) []nameJSON
	if len(rep.Quarantined) > 0 {
		needs = findNeeds(c, cfg)
	}
	for _, r := range rep.Quarantined {
		res.Quarantined = append(res.Quarantined, &badRecord{r.Kind.String(), hex.EncodeToString(r.Key[:]), r.Offset, r.Quarantined, needs(r)})
	}
	images, err := checkImages(c, pool)
	if err != nil {
		return err
	}
	res.Problems = append(res.Problems, images...)
	if res.Lost, err = findLost(c, cfg, rep.Quarantined); err != nil {
		return err
	}
	res.OK = len(res.Problems) == 0 && len(res.Quarantined) == 0 && len(res.Lost) == 0
	return judge(c, res, res.OK)
}

// findNeeds returns what tells which of containerd's images need a record.
func findNeeds(c *cli.Context, cfg *config.Config) func(*daxmem.Record) []nameJSON {
	refs, _, err := findRefs(c.Context, cfg)
	if err != nil {
		return func(*daxmem.Record) []nameJSON { return nil }
	}
	names := findNames(c, refs)
	return func(r *daxmem.Record) []nameJSON {
		if r.Kind == daxmem.KindImage {
			return names.of(refs.Images[r.Key], true)
		}
		return names.of(refs.Layers[r.Key], false)
	}
}

// findLost lists lost layers, apart from those in quarantine.
func findLost(c *cli.Context, cfg *config.Config, bad []*daxmem.Record) ([]lostJSON, error) {
	out := []lostJSON{}
	lost, err := lostLayers(c.Context, cfg)
	if err != nil {
		// A pool can be checked without its snapshots.
		fmt.Fprintf(c.App.ErrWriter, "daxfsctl: warning: what the snapshots need is not known: %s\n", oneLine(err))
		return out, nil
	}
	var needs func(*daxmem.Record) []nameJSON
	for _, l := range lost {
		if slices.ContainsFunc(bad, func(r *daxmem.Record) bool { return r.Key == l.key && r.Kind == daxmem.KindLayer }) {
			continue
		}
		if needs == nil {
			needs = findNeeds(c, cfg)
		}
		out = append(out, lostJSON{hex.EncodeToString(l.key[:]), escapeAll(l.snapshots), needs(&daxmem.Record{Kind: daxmem.KindLayer, Key: l.key})})
	}
	return out, nil
}

// checkImages proves the inodes and names of every record, which the pool does
// not look at, and that an image's files are those of its layers.
func checkImages(c *cli.Context, pool *daxmem.Pool) ([]problemJSON, error) {
	var out []problemJSON
	var suspects []*daxmem.Record
	extents := make(map[[32]byte]map[span]bool) // by layer
	records := pool.Records()
	slices.SortFunc(records, func(a, b *daxmem.Record) int { return sortRecords(b, a) }) // layers first
	for _, rec := range records {
		if rec.Quarantined != "" {
			continue
		}
		if err := c.Err(); err != nil {
			return nil, err
		}
		s, err := recordSource(pool, rec)
		if err == nil {
			_, err = s.check()
		}
		if err == nil {
			err = s.checkExtents(extents)
		}
		if err != nil {
			out = append(out, problemJSON{rec.Name(), rec.Offset, rec.Size, "a sound " + rec.Kind.String(), oneLine(err)})
			suspects = append(suspects, rec)
		}
	}
	if len(out) == 0 {
		return nil, nil
	}
	// What the daemon removed meanwhile says nothing.
	cfg, err := loadConfig(c)
	if err != nil {
		return nil, err
	}
	now, err := openPool(c.Context, cfg)
	if err != nil {
		return nil, err
	}
	defer shut(now)
	there := make(map[int]uint32)
	for _, rec := range now.Records() {
		there[rec.Slot] = rec.Generation
	}
	keep := out[:0]
	for i, p := range out {
		if there[suspects[i].Slot] == suspects[i].Generation {
			keep = append(keep, p)
		}
	}
	return keep, nil
}
