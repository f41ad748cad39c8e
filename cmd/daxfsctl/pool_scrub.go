package main

import (
	"cmp"
	"encoding/hex"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/config"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// minRate is the lowest rate of a scrub, in bytes per second: it reads a
// mebibyte at a time.
const minRate = 1 << 20

func poolScrubCommand() *cli.Command {
	return &cli.Command{
		Name:  "scrub",
		Usage: "read the whole pool again and name what has changed",
		Description: "Hashes every layer, every image and every file of the pool, and says of what is not as it was published\n" +
			"which file it is, and which layers, images, snapshots and containers have it. Owner and readers may run\n" +
			"meanwhile. Nothing is repaired: remove the images that are named and pull them again. What is found bad\n" +
			"before it is read, because its metadata is damaged, is named too; files that only it has are not read.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "rate", Usage: "read at most `SIZE` per second, as 500MiB; 0: as fast as it goes", Value: "200MiB"},
			containerdFlag(),
		},
		Action: onPool(poolScrub),
	}
}

type scrubJSON struct {
	Pool    string         `json:"pool"`
	OK      bool           `json:"ok"`
	Rate    int64          `json:"rate"` // bytes per second that were allowed; 0: any
	Records int            `json:"records"`
	Extents int            `json:"extents"`
	Bytes   int64          `json:"bytes_read"`
	Seconds float64        `json:"seconds"`
	Changed []*changedJSON `json:"changed"`
	From    string         `json:"references_from,omitempty"` // "daemon" or "metadata"; not asked when nothing has changed
	Error   string         `json:"references_error,omitempty"`
}

// changedJSON is a range that is not as it was published, and who has it.
type changedJSON struct {
	problemJSON
	Records []*usedJSON `json:"records"` // layers and images whose bytes these are, then images and chains that need them
}

// usedJSON is one record that has, or needs, bytes that have changed.
type usedJSON struct {
	Kind      string     `json:"kind"`
	Key       string     `json:"key"`
	Own       bool       `json:"own"` // the bytes are the record's own, or its layer's extent; else it draws on such a layer
	Paths     []string   `json:"paths,omitempty"`
	Snapshots []string   `json:"snapshots,omitempty"`
	UsedBy    []string   `json:"used_by,omitempty"`           // active snapshots and views
	Names     []nameJSON `json:"containerd_images,omitempty"` // that need it
}

func poolScrub(c *cli.Context, cfg *config.Config, pool *daxmem.Pool) error {
	rate, err := parseRate(c.String("rate"))
	if err != nil {
		return err
	}
	opts := daxmem.CheckOptions{Data: true, Rate: rate}
	bar := &progress{w: c.App.ErrWriter}
	if term.IsTerminal(int(os.Stderr.Fd())) && !c.Bool("json") {
		opts.Progress = bar.show
	}
	start := time.Now()
	rep, err := pool.Check(c.Context, opts)
	bar.clear()
	if err != nil {
		return err
	}
	res := &scrubJSON{
		Pool: cfg.Pool.Path, OK: rep.OK(), Rate: rate, Records: rep.Records, Extents: rep.Extents, Bytes: rep.Bytes,
		Seconds: time.Since(start).Seconds(), Changed: []*changedJSON{},
	}
	res.describe(c, cfg, pool, rep)
	return judge(c, res, res.OK)
}

// parseRate reads bytes per second.
func parseRate(text string) (int64, error) {
	var n config.Size
	if err := n.UnmarshalText([]byte(strings.TrimSuffix(text, "/s"))); err != nil {
		return 0, usagef("--rate: %w", err)
	}
	if n < 0 || n > 0 && n < minRate {
		return 0, usagef("--rate %s: want at least 1MiB per second, or 0 for any", escape(text))
	}
	return int64(n), nil
}

// describe says who has what the report found.
func (r *scrubJSON) describe(c *cli.Context, cfg *config.Config, pool *daxmem.Pool, rep *daxmem.CheckReport) {
	if rep.OK() {
		return
	}
	refs, from, err := findRefs(c.Context, cfg)
	if err != nil { // a pool can be read without its snapshots
		r.Error, refs = oneLine(err), snapshotter.FindRefs(nil)
	}
	r.From = from
	users := &scrubUsers{pool: pool, refs: refs, names: findNames(c, refs), files: make(map[int]map[span][]string)}
	for _, p := range rep.Problems {
		ch := &changedJSON{problemJSON: problemJSON{p.Name, p.Offset, p.Size, p.Expected, p.Found}, Records: []*usedJSON{}}
		at := span{p.Offset, p.Size}
		for _, rec := range p.Records {
			ch.Records = append(ch.Records, users.of(rec, at, true))
		}
		slices.SortFunc(p.DrawOn, sortRecords)
		for _, rec := range p.DrawOn {
			ch.Records = append(ch.Records, users.of(rec, at, false))
		}
		r.Changed = append(r.Changed, ch)
	}
	for _, rec := range rep.Quarantined {
		r.Changed = append(r.Changed, &changedJSON{
			problemJSON{rec.Name(), rec.Offset, rec.Size, "a sound " + rec.Kind.String(), rec.Quarantined},
			[]*usedJSON{users.of(rec, span{}, true)},
		})
	}
	slices.SortStableFunc(r.Changed, func(a, b *changedJSON) int { return cmp.Compare(a.Offset, b.Offset) })
}

// scrubUsers finds out who has what.
type scrubUsers struct {
	pool  *daxmem.Pool
	refs  *snapshotter.Refs
	names *imageNames
	files map[int]map[span][]string // paths by slot and place, of records that were looked into
}

func (u *scrubUsers) of(rec *daxmem.Record, at span, own bool) *usedJSON {
	out := &usedJSON{Kind: rec.Kind.String(), Key: hex.EncodeToString(rec.Key[:]), Own: own}
	switch rec.Kind {
	case daxmem.KindLayer:
		out.Snapshots = escapeAll(u.refs.Layers[rec.Key])
		out.Names = u.names.of(u.refs.Layers[rec.Key], false)
	case daxmem.KindImage:
		out.Snapshots = escapeAll(u.refs.Images[rec.Key])
		out.UsedBy = escapeAll(u.refs.Users[rec.Key])
		out.Names = u.names.of(u.refs.Images[rec.Key], true)
	}
	if rec.Kind != daxmem.KindChain && rec.Quarantined == "" {
		out.Paths = u.paths(rec)[at]
	}
	return out
}

// paths are the files of a record by their place. A record that cannot be read
// has none: that is a problem of its own.
func (u *scrubUsers) paths(rec *daxmem.Record) map[span][]string {
	if known, ok := u.files[rec.Slot]; ok {
		return known
	}
	found := make(map[span][]string)
	u.files[rec.Slot] = found
	s, err := recordSource(u.pool, rec)
	if err != nil {
		return found
	}
	_ = s.whole(func(it item) error {
		if off, ok := s.dataOffset(it.in); ok && it.in.Mode&disk.TypeMask == disk.TypeRegular {
			at := span{off, int64(it.in.Size)}
			found[at] = append(found[at], escape(it.path))
		}
		return nil
	}, func(string, error) {})
	return found
}
