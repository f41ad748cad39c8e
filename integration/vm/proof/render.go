package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// plotFile lies beside the raw numbers.
const plotFile = "one-copy.svg"

// The parts of the document between a mark's lines are written by this program.
const (
	proofMark  = "proof"
	importMark = "proof of import"
)

// render turns the raw files into tables, a plot and the list of targets.
func render(o *options) error {
	memory, err := readMemory(filepath.Join(o.out, memoryFile))
	if err != nil {
		return err
	}
	speed, err := readSpeed(filepath.Join(o.out, speedFile))
	if err != nil {
		return err
	}
	targets := append(memory.targets(), speed.targets()...)

	var text bytes.Buffer
	writeTargets(&text, targets)
	memory.write(&text, plotPath(o))
	speed.write(&text)
	if len(memory.engines) > 0 {
		svg, err := memory.plot()
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(o.out, plotFile), svg, 0o644); err != nil {
			return err
		}
	}
	var imports bytes.Buffer
	for _, place := range []struct{ file, where string }{{importFile, "On the machine itself"}, {guestImportFile, "In an emulated guest"}} {
		transfers, err := readTransfers(filepath.Join(o.out, place.file))
		if err != nil {
			return err
		}
		transfers.write(&imports, place.where)
	}
	if o.doc == "" {
		fmt.Print(text.String(), imports.String())
	} else if err := errors.Join(replaceMarked(o.doc, proofMark, text.String()), replaceMarked(o.doc, importMark, imports.String())); err != nil {
		return err
	}
	return judge(targets, o.check)
}

// plotPath is the plot as the document links to it.
func plotPath(o *options) string {
	if rel, err := filepath.Rel(filepath.Dir(o.doc), filepath.Join(o.out, plotFile)); err == nil {
		return filepath.ToSlash(rel)
	}
	return plotFile
}

// replaceMarked replaces what is between the lines of a mark in a file.
func replaceMarked(path, mark, text string) error {
	beginMark, endMark := "<!-- "+mark+": begin (written by make proof) -->", "<!-- "+mark+": end -->"
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(b), beginMark+"\n")
	_, after, ok2 := strings.Cut(rest, endMark+"\n")
	if !ok || !ok2 {
		return fmt.Errorf("%s: no lines %q and %q", path, beginMark, endMark)
	}
	return os.WriteFile(path, []byte(before+beginMark+"\n"+text+endMark+"\n"+after), 0o644)
}

// target is something that the module must reach.
type target struct {
	what, want, got string
	met             bool
	// known: a miss is told, and is no error: the design says why it cannot be met.
	known bool
}

func writeTargets(w *bytes.Buffer, targets []target) {
	if len(targets) == 0 {
		return
	}
	fmt.Fprintf(w, "\n| target | wanted | measured | |\n|---|---|---|---|\n")
	for _, t := range targets {
		fmt.Fprintf(w, "| %s | %s | **%s** | %s |\n", t.what, t.want, t.got, verdict(t.met))
	}
}

func verdict(met bool) string {
	if met {
		return "met"
	}
	return "**missed**"
}

// judge prints the targets; with check, a missed one is an error.
func judge(targets []target, check bool) error {
	var missed error
	for _, t := range targets {
		fmt.Printf("%-6s %s: %s (wanted: %s)\n", strings.Trim(verdict(t.met), "*"), t.what, t.got, t.want)
		if !t.met && !t.known && check {
			missed = errors.Join(missed, fmt.Errorf("missed: %s: %s, want %s", t.what, t.got, t.want))
		}
	}
	return missed
}

// readIfThere is readRaw, and nothing where a part was never measured.
func readIfThere[T any](path string) ([]T, error) {
	all, err := readRaw[T](path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return all, err
}

// change is mib with its sign.
func change(bytes int64) string {
	return strings.Replace(fmt.Sprintf("%+.1f", float64(bytes)/(1<<20)), "-", "−", 1)
}

func mib(bytes int64) string { return fmt.Sprintf("%.1f", float64(bytes)/(1<<20)) }
