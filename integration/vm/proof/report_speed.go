package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/daxfs/containerd-daxfs/integration/report"
	"github.com/daxfs/containerd-daxfs/integration/vm/proof/protocol"
)

// reference is what all are compared with.
const reference = "tmpfs"

// speedReport is the raw file by what was measured and on which file system;
// one timing a round.
type speedReport struct {
	kernel  string
	whats   []string // in the order of measurement
	fs      []string
	timings map[string]map[string][]protocol.Timing
}

func readSpeed(path string) (*speedReport, error) {
	records, err := report.Read[speedRecord](path)
	if err != nil {
		return nil, err
	}
	s := &speedReport{timings: make(map[string]map[string][]protocol.Timing)}
	for _, r := range records {
		s.kernel = r.Kernel
		if !slices.Contains(s.whats, r.What) {
			s.whats = append(s.whats, r.What)
			s.timings[r.What] = make(map[string][]protocol.Timing)
		}
		if !slices.Contains(s.fs, r.FS) {
			s.fs = append(s.fs, r.FS)
		}
		s.timings[r.What][r.FS] = append(s.timings[r.What][r.FS], r.Timing)
	}
	return s, nil
}

// speed is how often fs does something in the time in which the reference does
// it once, by rounds.
func (s *speedReport) speed(what, fs string) (report.Spread, bool) {
	ours, theirs := s.timings[what][fs], s.timings[what][reference]
	if len(ours) == 0 {
		return report.Spread{}, false
	}
	var ratios []float64
	for i := range ours {
		ratios = append(ratios, nanos(theirs[i])/nanos(ours[i]))
	}
	return report.SpreadOf(ratios), true
}

func nanos(t protocol.Timing) float64 { return float64(t.Nanos) / float64(t.Ops) }

// per is the median over the rounds of something for each operation.
func (s *speedReport) per(what, fs string, of func(t protocol.Timing) float64) (float64, bool) {
	ts := s.timings[what][fs]
	if len(ts) == 0 {
		return 0, false
	}
	var xs []float64
	for _, t := range ts {
		xs = append(xs, of(t)/float64(t.Ops))
	}
	return report.SpreadOf(xs).Median, true
}

func (s *speedReport) write(w *bytes.Buffer) {
	if len(s.whats) == 0 {
		return
	}
	peers := s.fs[1:]
	fmt.Fprintf(w, "\nSpeed in one guest (Linux %s): how much of a thing is done in the time in which tmpfs does 1.00 of it,"+
		" as the median of %d rounds, with the least and the most.\n", s.kernel, len(s.timings[s.whats[0]][reference]))
	fmt.Fprintf(w, "\n| | %s |\n|---|%s\n", strings.Join(peers, " | "), strings.Repeat("---|", len(peers)))
	for _, what := range s.whats {
		fmt.Fprintf(w, "| %s |", what)
		for _, fs := range peers {
			if r, ok := s.speed(what, fs); ok {
				fmt.Fprintf(w, " %s |", r)
			} else {
				fmt.Fprint(w, " |")
			}
		}
		fmt.Fprintln(w)
	}
	s.writeFaults(w)
}

// faultsFor64MiB is the number of faults for all of the big file.
func (s *speedReport) faultsFor64MiB(what, fs string) float64 {
	n, _ := s.per(what, fs, func(t protocol.Timing) float64 { return float64(t.Faults) })
	return n * protocol.BigFileSize / 4096
}

// pagesPerTouch is how many pages one touch of one page maps.
func (s *speedReport) pagesPerTouch(what, fs string) float64 {
	n, _ := s.per(what, fs, func(t protocol.Timing) float64 { return float64(t.Pages) })
	return n
}

const (
	inOrder  = "touch in order, 4 KiB pages, "
	inOrder2 = "touch in order, 2 MiB pages, "
	atRandom = "touch at random, "
)

func (s *speedReport) writeFaults(w *bytes.Buffer) {
	fmt.Fprintf(w, "\n| | %s |\n|---|%s\n", strings.Join(s.fs, " | "), strings.Repeat("---|", len(s.fs)))
	for _, row := range []struct {
		what string
		of   func(fs string) float64
	}{
		{"faults for 64 MiB touched in order, 2 MiB pages possible", func(fs string) float64 { return s.faultsFor64MiB(inOrder2+"private", fs) }},
		{"the same in a mapping that 2 MiB pages do not fit", func(fs string) float64 { return s.faultsFor64MiB(inOrder+"private", fs) }},
		{"KiB mapped for one byte touched at random", func(fs string) float64 { return 4 * s.pagesPerTouch(atRandom+"private", fs) }},
	} {
		fmt.Fprintf(w, "| %s |", row.what)
		for _, fs := range s.fs {
			fmt.Fprintf(w, " %.0f |", row.of(fs))
		}
		fmt.Fprintln(w)
	}
}

// targets are those of the module alone.
func (s *speedReport) targets() []report.Target {
	const fs = "daxfs"
	if !slices.Contains(s.fs, fs) {
		return nil
	}
	var all []report.Target
	// A median below 1 by less than what tmpfs differs from itself is no
	// difference.
	const noise = 0.05
	for _, what := range s.whats {
		if !strings.HasPrefix(what, "read ") && !strings.HasPrefix(what, "touch ") && !strings.HasPrefix(what, "load ") {
			continue
		}
		r, _ := s.speed(what, fs)
		all = append(all, report.Target{What: what + ", speed against tmpfs", Want: "not below 1 (noise: 0.05)", Got: r.String(), Met: r.Median >= 1-noise})
	}
	for _, kind := range []string{"private", "shared"} {
		for _, what := range []string{inOrder + kind, inOrder2 + kind} {
			n := s.faultsFor64MiB(what, fs)
			all = append(all, report.Target{What: "faults for 64 MiB, " + what, Want: "at most 40", Got: fmt.Sprintf("%.1f", n), Met: n <= 40})
		}
		n := s.pagesPerTouch(atRandom+kind, fs)
		all = append(all, report.Target{What: "mapped for one byte, " + atRandom + kind, Want: "less than 2 MiB", Got: fmt.Sprintf("%.0f KiB", 4*n), Met: n < 512})
	}
	small, large := protocol.DirSizes[0], protocol.DirSizes[len(protocol.DirSizes)-1]
	for _, kind := range []string{"hit", "miss"} {
		var ratios []float64
		a, b := s.timings[fmt.Sprintf("lookup %s in %d", kind, small)][fs], s.timings[fmt.Sprintf("lookup %s in %d", kind, large)][fs]
		for i := range a {
			ratios = append(ratios, nanos(b[i])/nanos(a[i]))
		}
		r := report.SpreadOf(ratios)
		all = append(all, report.Target{
			What: fmt.Sprintf("time of a lookup %s in %d entries against %d", kind, large, small), Want: "at most 3",
			Got: r.String(), Met: r.Median <= 3,
		})
	}
	return all
}
