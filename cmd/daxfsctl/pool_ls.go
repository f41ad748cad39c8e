package main

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/config"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

func poolLsCommand() *cli.Command {
	return &cli.Command{
		Name:  "ls",
		Usage: "list the layers and images of the pool and who uses them",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "l", Aliases: []string{"long"}, Usage: "whole keys, and the names of the snapshots"},
			&cli.BoolFlag{Name: "extents", Usage: "list every byte of the pool with its owner instead"},
		},
		Action: poolLs,
	}
}

// recordJSON is one record of the catalog.
type recordJSON struct {
	Kind        string     `json:"kind"`
	Key         string     `json:"key"`
	ChainID     string     `json:"chain_id,omitempty"` // sha256:..., where it is known
	Entries     uint64     `json:"entries"`            // names
	Offset      int64      `json:"offset"`
	Metadata    int64      `json:"metadata_bytes"`
	Data        uint64     `json:"data_bytes"` // of a layer's files, before sharing
	Created     time.Time  `json:"created"`
	Durable     bool       `json:"durable"`
	Quarantined string     `json:"quarantined,omitempty"`    // why
	Layers      []string   `json:"layers,omitempty"`         // keys, lowest first, of an image
	Snapshots   []string   `json:"snapshots"`                // committed ones that are this layer or chain
	UsedBy      []string   `json:"used_by,omitempty"`        // active ones and views on an image
	Images      []string   `json:"used_by_images,omitempty"` // keys, of a layer
	Mount       *mountJSON `json:"mount,omitempty"`
}

type mountJSON struct {
	Engine  string `json:"engine"`
	Method  string `json:"method"`
	Target  string `json:"target"`
	Mounted bool   `json:"mounted"` // false: unmounted, but the kernel still has it in use
}

type poolLsJSON struct {
	Pool    string        `json:"pool"`
	From    string        `json:"references_from"` // "daemon", "metadata", or "" when unknown
	Error   string        `json:"references_error,omitempty"`
	Records []*recordJSON `json:"records"`
	Damaged []damagedJSON `json:"damaged_snapshots,omitempty"`
}

type damagedJSON struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

func poolLs(c *cli.Context) error {
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
	if c.Bool("extents") {
		return poolOwners(c, pool)
	}
	res := listPool(c, cfg, pool)
	if c.Bool("json") {
		return printJSON(c.App.Writer, res)
	}
	if res.Error != "" {
		fmt.Fprintf(c.App.ErrWriter, "daxfsctl: warning: who uses what is not known: %s\n", res.Error)
	}
	for _, d := range res.Damaged {
		fmt.Fprintf(c.App.ErrWriter, "daxfsctl: warning: snapshot %s is damaged: %s\n", d.Name, d.Reason)
	}
	if c.Bool("l") {
		return res.printLong(c.App.Writer)
	}
	return res.print(c.App.Writer)
}

func listPool(c *cli.Context, cfg *config.Config, pool *daxmem.Pool) *poolLsJSON {
	res := &poolLsJSON{Pool: cfg.Pool.Path, Records: []*recordJSON{}}
	refs, from, err := findRefs(c.Context, cfg)
	if err != nil {
		res.Error, refs = oneLine(err), snapshotter.FindRefs(nil)
	}
	res.From = from
	for name, why := range refs.Damaged {
		res.Damaged = append(res.Damaged, damagedJSON{escape(name), why})
	}
	slices.SortFunc(res.Damaged, func(a, b damagedJSON) int { return strings.Compare(a.Name, b.Name) })
	held, err := snapshotter.HeldImages(cfg.Root)
	if err != nil {
		fmt.Fprintf(c.App.ErrWriter, "daxfsctl: warning: %s\n", oneLine(err))
	}
	records := pool.Records()
	slices.SortFunc(records, sortRecords)
	users := make(map[string][]string) // images by layer
	for _, rec := range records {
		r := describeRecord(pool, rec, refs, held)
		for _, l := range r.Layers {
			users[l] = append(users[l], r.Key)
		}
		res.Records = append(res.Records, r)
	}
	for _, r := range res.Records {
		if r.Kind == "layer" {
			r.Images = users[r.Key]
		}
	}
	return res
}

func describeRecord(pool *daxmem.Pool, rec *daxmem.Record, refs *snapshotter.Refs, held []snapshotter.Held) *recordJSON {
	r := &recordJSON{
		Kind: rec.Kind.String(), Key: hex.EncodeToString(rec.Key[:]), Entries: rec.Entries, Offset: rec.Offset, Metadata: rec.Size,
		Data: rec.DataBytes, Created: rec.Created.UTC(), Durable: rec.Durable, Quarantined: rec.Quarantined, Snapshots: []string{},
	}
	if rec.Quarantined != "" {
		return r
	}
	if rec.Kind == daxmem.KindLayer {
		r.Snapshots = append(r.Snapshots, escapeAll(refs.Layers[rec.Key])...)
		return r
	}
	r.Snapshots = append(r.Snapshots, escapeAll(refs.Images[rec.Key])...)
	r.UsedBy = escapeAll(refs.Users[rec.Key])
	if r.ChainID = chainOf(r.Snapshots); rec.ChainID != [32]byte{} {
		r.ChainID = "sha256:" + hex.EncodeToString(rec.ChainID[:])
	}
	for _, h := range held {
		if h.Key == rec.Key && (r.Mount == nil || h.Mounted) {
			r.Mount = &mountJSON{h.Engine, h.Method, h.Target, h.Mounted}
		}
	}
	if s, err := recordSource(pool, rec); err == nil {
		layers, _ := s.Layers() // the pool has checked the list
		for _, k := range layers {
			r.Layers = append(r.Layers, hex.EncodeToString(k[:]))
		}
		r.Data = s.fileBytes()
	}
	return r
}

// fileBytes adds up an image's files, as the catalog does for layers.
func (s *source) fileBytes() (sum uint64) {
	for ino := range s.Superblock().InodeCount {
		if in, err := s.Inode(ino + 1); err == nil && in.Mode&disk.TypeMask == disk.TypeRegular {
			sum += in.Size
		}
	}
	return sum
}

// chainOf is the chain ID that containerd committed one of the snapshots as.
func chainOf(names []string) string {
	for _, n := range names {
		if id := n[strings.LastIndexByte(n, '/')+1:]; strings.HasPrefix(id, "sha256:") {
			return id
		}
	}
	return ""
}

func escapeAll(names []string) []string {
	var out []string
	for _, n := range names {
		out = append(out, escape(n))
	}
	return out
}

func (res *poolLsJSON) print(w io.Writer) error {
	return table(w, func(w io.Writer) {
		fmt.Fprintln(w, "KIND\tKEY\tCHAIN ID\tENTRIES\tMETADATA\tFILES\tCREATED\tUSE")
		for _, r := range res.Records {
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", r.Kind, r.Key[:12], r.shortChain(), r.Entries, size(r.Metadata),
				size(int64(r.Data)), r.Created.Local().Format("2006-01-02 15:04:05"), r.use(res.From != ""))
		}
	})
}

// shortChain is for people: what ctr snapshots ls shows for the record.
func (r *recordJSON) shortChain() string {
	id := r.ChainID
	if id == "" && len(r.Snapshots) > 0 {
		id = chainOf(r.Snapshots)
	}
	if id = strings.TrimPrefix(id, "sha256:"); id == "" {
		return "-"
	}
	return id[:min(12, len(id))]
}

// printLong writes a paragraph for each record.
func (res *poolLsJSON) printLong(w io.Writer) error {
	return table(w, func(w io.Writer) {
		for i, r := range res.Records {
			if i > 0 {
				fmt.Fprintln(w)
			}
			fmt.Fprintf(w, "%s %s\n", r.Kind, r.Key)
			if r.ChainID != "" {
				fmt.Fprintf(w, "  chain ID:\t%s\n", r.ChainID)
			}
			fmt.Fprintf(w, "  holds:\t%d names, %s of files, %s of metadata at %d\n", r.Entries, size(int64(r.Data)), size(r.Metadata), r.Offset)
			fmt.Fprintf(w, "  created:\t%s\n", r.Created.Local().Format("2006-01-02 15:04:05"))
			fmt.Fprintf(w, "  use:\t%s\n", r.use(res.From != ""))
			for _, g := range []struct {
				what  string
				names []string
			}{{"container", r.UsedBy}, {"snapshot", r.Snapshots}, {"image", r.Images}, {"layer", r.Layers}} {
				for _, n := range g.names {
					fmt.Fprintf(w, "  %s:\t%s\n", g.what, n)
				}
			}
		}
	})
}

// use says in a few words what keeps a record.
func (r *recordJSON) use(known bool) string {
	var parts []string
	add := func(n int, one string) {
		if n > 0 {
			parts = append(parts, plural(n, one))
		}
	}
	switch {
	case r.Quarantined != "":
		return "QUARANTINED: " + r.Quarantined
	case r.Kind == "layer":
		add(len(r.Snapshots), "snapshot")
		add(len(r.Images), "image")
	default:
		add(len(r.UsedBy), "container")
		add(len(r.Snapshots), "snapshot")
	}
	if r.Mount != nil && r.Mount.Mounted {
		parts = append(parts, "mounted by "+r.Mount.Engine+"/"+r.Mount.Method)
	} else if r.Mount != nil {
		parts = append(parts, "unmounted, but the kernel still has it in use")
	}
	switch {
	case len(parts) > 0:
		return strings.Join(parts, ", ")
	case !known:
		return "?"
	}
	return "nothing: pool gc frees it"
}

// sortRecords puts images first, and each kind in order of publication.
func sortRecords(a, b *daxmem.Record) int {
	return cmp.Or(cmp.Compare(b.Kind, a.Kind), cmp.Compare(a.Sequence, b.Sequence), cmp.Compare(a.Slot, b.Slot))
}
