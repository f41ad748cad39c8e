package main

import (
	"cmp"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

func (r *topJSON) print(w io.Writer) error {
	kinds, pinned := make(map[string]int), 0
	for _, u := range r.Records {
		kinds[u.Kind]++
		if u.Kind == "image" && u.Kernels > 0 {
			pinned++
		}
	}
	fmt.Fprintf(w, "%s  %s: %s of %s in use (%s)\n", r.Time.Local().Format(time.TimeOnly), escape(r.Pool), size(r.Used), size(r.Size), percent(r.Used, r.Size))
	fmt.Fprintf(w, "%s at work, %s of which %d in use, %s, %s; %d of %d records\n", plural(len(r.Seats), "kernel"), plural(kinds["image"], "image"), pinned,
		plural(kinds["layer"], "layer"), plural(kinds["chain"], "chain"), len(r.Records), r.Slots)
	if !r.Owned {
		fmt.Fprintln(w, "nobody owns the pool: what is there can be used, nothing new gets in")
	}
	fmt.Fprintln(w)
	if err := table(w, func(w io.Writer) {
		fmt.Fprintln(w, "SEAT\tKERNEL\tHOLDER\tHEARTBEAT\tPINS\tROLE\tFOUND\tBROUGHT\tUNPACKED\tMISSED")
		for _, s := range r.Seats {
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%d\t%s\t%d\t%d\t%d\t%d\n", s.Seat, cmp.Or(escape(s.Instance), "boot "+s.Boot[:8]), orDash(s.Holder), s.age(r.Time), s.Pins, s.role(),
				s.Chains.Found, s.Chains.Brought, s.Chains.Unpacked, s.Chains.Missed)
		}
	}); err != nil {
		return err
	}
	fmt.Fprintln(w)
	if len(r.Asked) > 0 {
		if err := table(w, func(w io.Writer) {
			fmt.Fprintln(w, "SEAT\tASKED\tLAST\tOUTCOME\tFOR")
			for _, a := range r.Asked {
				fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", a.Seat, plural(int(a.Times), "time"), a.Request, a.outcome(), cmp.Or(a.Image, a.Chain[:19]))
			}
		}); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	return table(w, func(w io.Writer) {
		fmt.Fprintln(w, "KIND\tKEY\tKERNELS\tSEATS\tOWN\tFILES\tNAME")
		for _, u := range r.Records {
			if u.Kind == "chain" && u.Kernels == 0 && u.Damaged == "" {
				continue // a name; images and layers say the rest
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%s\n", u.Kind, u.Key[:12], u.Kernels, u.seats(), size(u.Space), size(u.Data), u.note())
		}
	})
}

func (a *askedJSON) outcome() string {
	if a.Text == "" {
		return a.Outcome
	}
	return a.Outcome + ": " + a.Text
}

func (u *useJSON) seats() string {
	var out []string
	for _, n := range u.Seats {
		out = append(out, strconv.Itoa(n))
	}
	return cmp.Or(strings.Join(out, ","), "-")
}

func (u *useJSON) note() string {
	switch {
	case u.Damaged != "":
		return "damaged: " + oneLine(fmt.Errorf("%s", u.Damaged))
	case u.Removed:
		return "removed, goes with the last kernel"
	}
	return cmp.Or(joinNames(u.Names), "-")
}
