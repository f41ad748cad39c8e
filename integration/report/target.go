package report

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// Target is something that has to be reached.
type Target struct {
	What, Want, Got string
	Met             bool
	// Known: a miss is told, and is no error: the design says why it cannot be met.
	Known bool
	// Missing: there is nothing to judge, and Got says why.
	Missing bool
}

// WriteTargets writes a table.
func WriteTargets(w *bytes.Buffer, targets []Target) {
	if len(targets) == 0 {
		return
	}
	fmt.Fprintf(w, "\n| target | wanted | measured | |\n|---|---|---|---|\n")
	for _, t := range targets {
		fmt.Fprintf(w, "| %s | %s | **%s** | %s |\n", t.What, t.Want, t.Got, t.verdict())
	}
}

func (t Target) verdict() string {
	switch {
	case t.Missing:
		return "**not measured**"
	case t.Met:
		return "met"
	}
	return "**missed**"
}

// Judge prints the targets; with check, a missed one is an error.
func Judge(targets []Target, check bool) error {
	var missed error
	for _, t := range targets {
		verdict := strings.Trim(t.verdict(), "*")
		fmt.Printf("%-6s %s: %s (wanted: %s)\n", verdict, t.What, t.Got, t.Want)
		if !t.Met && !t.Known && check {
			missed = errors.Join(missed, fmt.Errorf("%s: %s: %s, want %s", verdict, t.What, t.Got, t.Want))
		}
	}
	return missed
}
