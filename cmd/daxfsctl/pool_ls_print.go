package main

import (
	"fmt"
	"io"
	"strings"
)

func (res *poolLsJSON) print(w io.Writer) error {
	return table(w, func(w io.Writer) {
		fmt.Fprintln(w, "KIND\tKEY\tCHAIN ID\tENTRIES\tMETADATA\tFILES\tCREATED\tUSE")
		for _, r := range res.Records {
			use := r.use(res.From != "")
			if r.Kind == "image" && len(r.Names) > 0 {
				use = joinNames(r.Names) + ": " + use
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", r.Kind, r.Key[:12], r.shortChain(), r.Entries, size(r.Metadata),
				size(int64(r.Data)), r.Created.Local().Format("2006-01-02 15:04:05"), use)
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
			for _, n := range r.Names {
				fmt.Fprintf(w, "  of:\t%s\n", n)
			}
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
