package main

import (
	"cmp"
	"encoding/hex"
	"fmt"
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
			containerdFlag(),
		},
		Action: onPool(poolLs),
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
	Quarantined string     `json:"quarantined,omitempty"`       // why
	Layers      []string   `json:"layers,omitempty"`            // keys, lowest first, of an image
	Snapshots   []string   `json:"snapshots"`                   // committed ones that are this layer or chain
	UsedBy      []string   `json:"used_by,omitempty"`           // active ones and views on an image
	Images      []string   `json:"used_by_images,omitempty"`    // keys, of a layer
	Names       []nameJSON `json:"containerd_images,omitempty"` // that are this image, or that have this layer
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

func poolLs(c *cli.Context, cfg *config.Config, pool *daxmem.Pool) error {
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
	names := findNames(c, refs)
	chains := make(map[[32]byte]string) // by key of the image
	for id, k := range snapshotter.ChainImages(pool.Chains()) {
		if name := "sha256:" + hex.EncodeToString(id[:]); chains[k] == "" || name < chains[k] {
			chains[k] = name
		}
	}
	records := pool.Records()
	slices.SortFunc(records, sortRecords)
	users := make(map[string][]string) // images by layer
	for _, rec := range records {
		r := describeRecord(pool, rec, chains[rec.Key], refs, held)
		r.Names = names.of(r.Snapshots, rec.Kind == daxmem.KindImage)
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

// describeRecord needs the chainID that the catalog has for an image, or "".
func describeRecord(pool *daxmem.Pool, rec *daxmem.Record, chain string, refs *snapshotter.Refs, held []snapshotter.Held) *recordJSON {
	r := &recordJSON{
		Kind: rec.Kind.String(), Key: hex.EncodeToString(rec.Key[:]), Entries: rec.Entries, Offset: rec.Offset, Metadata: rec.Size,
		Data: rec.DataBytes, Created: rec.Created.UTC(), Durable: rec.Durable, Quarantined: rec.Quarantined, Snapshots: []string{},
	}
	if rec.Kind == daxmem.KindLayer {
		r.Snapshots = append(r.Snapshots, escapeAll(refs.Layers[rec.Key])...)
		return r
	}
	r.Snapshots = append(r.Snapshots, escapeAll(refs.Images[rec.Key])...)
	r.UsedBy = escapeAll(refs.Users[rec.Key])
	if r.ChainID = chainOf(r.Snapshots); r.ChainID == "" {
		r.ChainID = chain
	}
	for _, h := range held {
		if h.Key == rec.Key && (r.Mount == nil || h.Mounted) {
			r.Mount = &mountJSON{h.Engine, h.Method, h.Target, h.Mounted}
		}
	}
	if rec.Quarantined != "" {
		return r
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

// sortRecords puts images first, and each kind in order of publication.
func sortRecords(a, b *daxmem.Record) int {
	return cmp.Or(cmp.Compare(b.Kind, a.Kind), cmp.Compare(a.Sequence, b.Sequence), cmp.Compare(a.Slot, b.Slot))
}
