package main

import (
	"fmt"
	"io"
	"strings"
)

func (r *poolCheckJSON) print(w io.Writer) error {
	for _, p := range r.Problems {
		fmt.Fprintf(w, "BAD  %s at [%d,+%d): want %s, found %s\n", p.What, p.Offset, p.Size, p.Expected, p.Found)
	}
	for _, b := range r.Quarantined {
		fmt.Fprintf(w, "QUARANTINED  %s %s at %d: %s\n", b.Kind, b.Key[:12], b.Offset, b.Reason)
		if len(b.Names) > 0 {
			fmt.Fprintf(w, "             needed by %s\n", joinNames(b.Names))
		}
	}
	for _, l := range r.Lost {
		fmt.Fprintf(w, "LOST  layer %s of snapshot %s\n", l.Key[:12], strings.Join(l.Snapshots, ", "))
		if len(l.Names) > 0 {
			fmt.Fprintf(w, "      needed by %s\n", joinNames(l.Names))
		}
	}
	files := "their files not read (--data does)"
	if r.Data {
		files = "all files read"
	}
	verdict := "sound"
	if !r.OK {
		verdict = fmt.Sprintf("%s, %s in quarantine, %s lost", plural(len(r.Problems), "problem"),
			plural(len(r.Quarantined), "record"), plural(len(r.Lost), "layer"))
	}
	_, err := fmt.Fprintf(w, "%s: %s: %s and %s checked, %s, %s\n", escape(r.Pool), verdict,
		plural(r.Records, "record"), plural(r.Extents, "extent"), size(r.Bytes), files)
	return err
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
