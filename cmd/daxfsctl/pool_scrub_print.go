package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

func (r *scrubJSON) print(w io.Writer) error {
	for _, ch := range r.Changed {
		fmt.Fprintf(w, "CHANGED  %s at [%d,+%d): want %s, found %s\n", ch.What, ch.Offset, ch.Size, ch.Expected, ch.Found)
		file := slices.ContainsFunc(ch.Records, func(u *usedJSON) bool { return len(u.Paths) > 0 })
		for _, u := range ch.Records {
			hidden := ""
			if file && u.Kind == "image" && len(u.Paths) == 0 {
				hidden = ", which does not show it"
			}
			fmt.Fprintf(w, "         %s%s\n", u, hidden)
		}
	}
	if r.Error != "" {
		fmt.Fprintf(w, "which snapshots have it is not known: %s\n", r.Error)
	}
	verdict := "nothing has changed"
	if !r.OK {
		verdict = plural(len(r.Changed), "place") + " changed"
	}
	_, err := fmt.Fprintf(w, "%s: %s: %s and %s, %s read in %.1f s\n", escape(r.Pool), verdict,
		plural(r.Records, "record"), plural(r.Extents, "extent"), size(r.Bytes), r.Seconds)
	return err
}

// String is a line about one record.
func (u *usedJSON) String() string {
	s := u.Kind + " " + u.Key[:12]
	for _, part := range []struct {
		what string
		list []string
	}{{"as", u.Paths}, {"snapshot", u.Snapshots}, {"container", u.UsedBy}} {
		if len(part.list) > 0 {
			s += ", " + part.what + " " + strings.Join(part.list, ", ")
		}
	}
	if len(u.Names) > 0 {
		s += ", needed by " + joinNames(u.Names)
	}
	return s
}
