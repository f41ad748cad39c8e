package main

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/daxfs/containerd-daxfs/integration/report"
	"github.com/daxfs/containerd-daxfs/integration/vm/proof/protocol"
)

// transferReport is a raw file: one Transfer a round.
type transferReport struct {
	kernel    string
	regions   []string // in the order of measurement
	transfers map[transferKey][]protocol.Transfer
}

type transferKey struct{ memory, set, what string }

func readTransfers(path string) (*transferReport, error) {
	records, err := report.Read[transferRecord](path)
	if err != nil {
		return nil, err
	}
	p := &transferReport{transfers: make(map[transferKey][]protocol.Transfer)}
	for _, r := range records {
		p.kernel = r.Kernel
		if r.Memory != protocol.PlainMemory && !slices.Contains(p.regions, r.Memory) {
			p.regions = append(p.regions, r.Memory)
		}
		k := transferKey{r.Memory, r.Set, r.What}
		p.transfers[k] = append(p.transfers[k], r.Transfer)
	}
	return p, nil
}

// of is something about each round, added up over what was done.
func (p *transferReport) of(memory, set string, of func(protocol.Transfer) float64, whats ...string) []float64 {
	var sums []float64
	for _, what := range whats {
		ts := p.transfers[transferKey{memory, set, what}]
		if sums == nil {
			sums = make([]float64, len(ts))
		}
		for i, t := range ts {
			sums[i] += of(t)
		}
	}
	return sums
}

func wall(t protocol.Transfer) float64   { return float64(t.Nanos) }
func cpu(t protocol.Transfer) float64    { return float64(t.CPU) }
func faults(t protocol.Transfer) float64 { return float64(t.Faults) }

// rate is the median in MB/s.
func (p *transferReport) rate(set string, times []float64) string {
	bytes := p.transfers[transferKey{protocol.PlainMemory, set, protocol.Copy}][0].Bytes
	return fmt.Sprintf("%.0f", float64(bytes)/report.SpreadOf(times).Median*1e3)
}

// imported is what makes an import.
var imported = []string{protocol.Put, protocol.Publish, protocol.Sync}

// write writes tables; where says which place it is.
func (p *transferReport) write(w *bytes.Buffer, where string) {
	if len(p.transfers) == 0 {
		return
	}
	for _, set := range protocol.FileSets {
		p.writeSet(w, where, set)
	}
}

func (p *transferReport) writeSet(w *bytes.Buffer, where string, set protocol.FileSet) {
	first := p.transfers[transferKey{protocol.PlainMemory, set.Name, protocol.Copy}]
	sizes := fmt.Sprintf("%d to %d KiB", set.Least>>10, set.Most>>10)
	if set.Least == set.Most {
		sizes = fmt.Sprintf("%d MiB", set.Least>>20)
	}
	fmt.Fprintf(w, "\n%s (Linux %s), %d files of %s, %d MiB, n = %d. Plain memory:\n\n", where, p.kernel,
		first[0].Files, sizes, first[0].Bytes>>20, len(first))
	fmt.Fprintf(w, "| | MB/s | time, of a copy's | CPU, of a copy's |\n|---|---|---|---|\n")
	plain := func(of func(protocol.Transfer) float64, what string) []float64 {
		return p.of(protocol.PlainMemory, set.Name, of, what)
	}
	for _, what := range []string{protocol.Copy, protocol.CopyFresh, protocol.Hash, protocol.HashAndCopy} {
		fmt.Fprintf(w, "| %s | %s | %s | %.1f |\n", what, p.rate(set.Name, plain(wall, what)),
			report.Ratios(plain(wall, what), plain(wall, protocol.Copy)), report.Ratios(plain(cpu, what), plain(cpu, protocol.Copy)).Median)
	}
	fmt.Fprintf(w, "\n| region | write, time of a copy's | import, MB/s | time of a copy's | time of hash and copy's | CPU of hash and copy's |"+
		" of it put | publish | sync | put, reopened | faults in put | put, reopened |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	least, leastCPU := plain(wall, protocol.HashAndCopy), plain(cpu, protocol.HashAndCopy)
	for _, r := range p.regions {
		all := p.of(r, set.Name, wall, imported...)
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |", r,
			report.Ratios(p.of(r, set.Name, wall, protocol.Write), plain(wall, protocol.Copy)), p.rate(set.Name, all),
			report.Ratios(all, plain(wall, protocol.Copy)), report.Ratios(all, least), report.Ratios(p.of(r, set.Name, cpu, imported...), leastCPU))
		for _, what := range []string{protocol.Put, protocol.Publish, protocol.Sync, protocol.PutReopened} {
			fmt.Fprintf(w, " %.2f |", report.Ratios(p.of(r, set.Name, cpu, what), leastCPU).Median)
		}
		for _, what := range []string{protocol.Put, protocol.PutReopened} {
			fmt.Fprintf(w, " %.0f |", report.SpreadOf(p.of(r, set.Name, faults, what)).Median)
		}
		fmt.Fprintln(w)
	}
}
