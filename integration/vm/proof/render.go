package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/daxfs/containerd-daxfs/integration/report"
)

// plotFile lies beside the raw numbers.
const plotFile = "one-copy.svg"

// The parts of the document between a mark's lines are written by this program.
const (
	proofMark  = "proof"
	importMark = "proof of import"
	madeBy     = "make proof"
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
	report.WriteTargets(&text, targets)
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
	} else if err := errors.Join(report.ReplaceMarked(o.doc, proofMark, madeBy, text.String()), report.ReplaceMarked(o.doc, importMark, madeBy, imports.String())); err != nil {
		return err
	}
	return report.Judge(targets, o.check)
}

// plotPath is the plot as the document links to it.
func plotPath(o *options) string {
	if rel, err := filepath.Rel(filepath.Dir(o.doc), filepath.Join(o.out, plotFile)); err == nil {
		return filepath.ToSlash(rel)
	}
	return plotFile
}

// change is mib with its sign.
func change(bytes int64) string {
	return strings.Replace(fmt.Sprintf("%+.1f", float64(bytes)/(1<<20)), "-", "−", 1)
}

func mib(bytes int64) string { return fmt.Sprintf("%.1f", float64(bytes)/(1<<20)) }
