package main

import (
	"bufio"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"
)

func imageDiffCommand() *cli.Command {
	return &cli.Command{
		Name:      "diff",
		Usage:     "compare two images, or an image and a directory",
		ArgsUsage: "A B",
		Description: "A and B are images or directories. Everything is compared that an image holds: type, mode,\n" +
			"owner, size, time, device, target, content, xattrs and which names are hard links of each other.\n" +
			"The exit status is 1 if there are differences.",
		Action: imageDiff,
	}
}

// difference is a path on which A and B do not agree.
type difference struct {
	Path   string      `json:"path"`
	Change string      `json:"change"` // "added" (only in B), "removed" (only in A) or "changed"
	Fields []fieldDiff `json:"fields,omitempty"`
}

type fieldDiff struct {
	Field string `json:"field"`
	A     string `json:"a"`
	B     string `json:"b"`
}

func imageDiff(c *cli.Context) error {
	if err := arguments(c, 2, 2); err != nil {
		return err
	}
	a, err := openSide(c, c.Args().Get(0))
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := openSide(c, c.Args().Get(1))
	if err != nil {
		return err
	}
	defer b.Close()
	diffs, err := compare(a, b)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(c.App.Writer)
	if c.Bool("json") {
		err = printJSON(out, struct {
			A           string       `json:"a"`
			B           string       `json:"b"`
			Same        bool         `json:"same"`
			Differences []difference `json:"differences"`
		}{escape(a.name), escape(b.name), len(diffs) == 0, append([]difference{}, diffs...)})
	} else {
		err = printDiffs(out, diffs)
	}
	if err == nil {
		err = out.Flush()
	}
	if err == nil && len(diffs) > 0 {
		err = errBad
	}
	return err
}

// shortDigest is how much of "blake3:..." people are shown.
const shortDigest = len("blake3:") + 12

func printDiffs(w io.Writer, diffs []difference) error {
	sign := map[string]string{"added": "+", "removed": "-", "changed": "~"}
	for _, d := range diffs {
		fmt.Fprintf(w, "%s %s", sign[d.Change], d.Path)
		sep := ":"
		for _, f := range d.Fields {
			if f.Field == "content" {
				f.A, f.B = f.A[:shortDigest], f.B[:shortDigest]
			}
			fmt.Fprintf(w, "%s %s %s -> %s", sep, f.Field, clip(f.A), clip(f.B))
			sep = ","
		}
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
	}
	return nil
}

// clip keeps long values from filling the screen; JSON has them whole.
func clip(s string) string {
	const most = 72
	if len(s) <= most {
		return s
	}
	return fmt.Sprintf("%s... (%d bytes)", s[:most], len(s))
}
