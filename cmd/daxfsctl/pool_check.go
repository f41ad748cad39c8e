package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/daxfs/containerd-daxfs/daxmem"
)

func poolCheckCommand() *cli.Command {
	return &cli.Command{
		Name:  "check",
		Usage: "hold the whole pool against what must be true of it",
		Description: "Checks superblock, catalog, space, every layer and image with all their inodes, and that images use\n" +
			"only files of their layers. The daemon may run meanwhile. Nothing is repaired.",
		Flags:  []cli.Flag{&cli.BoolFlag{Name: "data", Usage: "read all files too and compare their digests"}},
		Action: poolCheck,
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
}

type problemJSON struct {
	What     string `json:"what"`
	Offset   int64  `json:"offset"`
	Size     int64  `json:"size"`
	Expected string `json:"expected"`
	Found    string `json:"found"`
}

type badRecord struct {
	Kind   string `json:"kind"`
	Key    string `json:"key"`
	Offset int64  `json:"offset"`
	Reason string `json:"reason"`
}

func poolCheck(c *cli.Context) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	cfg, err := loadConfig(c)
	if err != nil {
		return err
	}
	pool, err := openPool(c.Context, cfg)
	if err != nil {
		return err
	}
	defer pool.Close()
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
	for _, r := range rep.Quarantined {
		res.Quarantined = append(res.Quarantined, &badRecord{r.Kind.String(), hex.EncodeToString(r.Key[:]), r.Offset, r.Quarantined})
	}
	images, err := checkImages(c, pool)
	if err != nil {
		return err
	}
	res.Problems = append(res.Problems, images...)
	res.OK = len(res.Problems) == 0 && len(res.Quarantined) == 0
	if c.Bool("json") {
		err = printJSON(c.App.Writer, res)
	} else {
		err = res.print(c.App.Writer)
	}
	if err == nil && !res.OK {
		err = errBad
	}
	return err
}

func (r *poolCheckJSON) print(w io.Writer) error {
	for _, p := range r.Problems {
		fmt.Fprintf(w, "BAD  %s at [%d,+%d): want %s, found %s\n", p.What, p.Offset, p.Size, p.Expected, p.Found)
	}
	for _, b := range r.Quarantined {
		fmt.Fprintf(w, "QUARANTINED  %s %s at %d: %s\n", b.Kind, b.Key[:12], b.Offset, b.Reason)
	}
	files := "their files not read (--data does)"
	if r.Data {
		files = "all files read"
	}
	verdict := "sound"
	if !r.OK {
		verdict = fmt.Sprintf("%s, %s in quarantine", plural(len(r.Problems), "problem"), plural(len(r.Quarantined), "record"))
	}
	_, err := fmt.Fprintf(w, "%s: %s: %s and %s checked, %s, %s\n", escape(r.Pool), verdict,
		plural(r.Records, "record"), plural(r.Extents, "extent"), size(r.Bytes), files)
	return err
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
		if err := c.Context.Err(); err != nil {
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
	defer now.Close()
	there := make(map[int]uint64)
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

// progress shows how far a check is.
type progress struct {
	w     io.Writer
	shown int64
}

func (p *progress) show(done, total int64) {
	if total == 0 || done*100/total == p.shown {
		return
	}
	p.shown = done * 100 / total
	fmt.Fprintf(p.w, "\rchecked %d %% of %s", p.shown, size(total))
}

func (p *progress) clear() {
	if p.shown > 0 {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
