package main

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/daxfs/containerd-daxfs/daxmem"
)

// ownerOf is one range of the pool and what it belongs to.
type ownerOf struct {
	Offset     int64    `json:"offset"`
	Size       int64    `json:"size"`
	Bytes      int64    `json:"bytes"` // in use
	Kind       string   `json:"kind"`
	Record     string   `json:"record,omitempty"` // "layer KEY" or "image KEY"
	Digest     string   `json:"digest,omitempty"` // of an extent
	References int      `json:"references,omitempty"`
	Layers     []string `json:"layers,omitempty"` // keys, that hold an extent
}

// poolOwners is pool ls --extents.
func poolOwners(c *cli.Context, pool *daxmem.Pool) error {
	holders := extentHolders(pool)
	list := []ownerOf{}
	for _, o := range pool.Owners() {
		out := ownerOf{Offset: o.Offset, Size: o.Size, Bytes: o.Bytes, Kind: strings.ReplaceAll(string(o.Kind), " ", "_"), References: o.Refs}
		if o.Record != nil {
			out.Record = o.Record.Kind.String() + " " + hex.EncodeToString(o.Record.Key[:])
		}
		if o.Kind == daxmem.OwnExtent {
			out.Digest = hex.EncodeToString(o.Digest[:])
			out.Layers = holders[o.Offset]
		}
		list = append(list, out)
	}
	w := bufio.NewWriter(c.App.Writer)
	var err error
	if c.Bool("json") {
		err = printJSON(w, struct {
			Pool   string    `json:"pool"`
			Owners []ownerOf `json:"owners"`
		}{pool.Region().Path(), list})
	} else {
		err = table(w, func(w io.Writer) {
			fmt.Fprintln(w, "OFFSET\tSIZE\tBYTES\tKIND\tOWNER")
			for _, o := range list {
				fmt.Fprintf(w, "%d\t%d\t%d\t%s\t%s\n", o.Offset, o.Size, o.Bytes, o.Kind, o.owner())
			}
		})
	}
	if err == nil {
		err = w.Flush()
	}
	return err
}

func (o *ownerOf) owner() string {
	switch {
	case o.Record != "":
		return o.Record[:min(len(o.Record), len("layer ")+12)]
	case o.Digest != "":
		var short []string
		for _, l := range o.Layers {
			short = append(short, l[:12])
		}
		return o.Digest[:12] + " of " + strings.Join(short, ", ")
	}
	return "-"
}

// extentHolders names the layers that hold each extent, by its offset.
func extentHolders(pool *daxmem.Pool) map[int64][]string {
	out := make(map[int64][]string)
	for _, rec := range pool.Records() {
		if rec.Kind != daxmem.KindLayer {
			continue
		}
		s, err := recordSource(pool, rec)
		if err != nil {
			continue // quarantined: pool check tells
		}
		extents, err := s.Extents()
		if err != nil {
			continue
		}
		for _, e := range extents {
			at := rec.Offset + int64(e.Offset)
			out[at] = append(out[at], hex.EncodeToString(rec.Key[:]))
		}
	}
	return out
}
