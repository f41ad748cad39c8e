package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/daxfs/containerd-daxfs/integration/report"
)

const (
	mark   = "pulls"
	madeBy = "make bench-pull"
)

// Plots lie beside the raw numbers.
const (
	pullPlot    = "peers-pull.svg"
	relatedPlot = "peers-related.svg"
)

// render turns the raw files into tables, plots and the list of targets.
func render(o *options) error {
	r, err := readReports(o)
	if err != nil {
		return err
	}
	targets := r.targets()
	var text bytes.Buffer
	report.WriteTargets(&text, targets)
	r.write(&text, o)
	for name, draw := range map[string]func() ([]byte, error){pullPlot: r.pull.plot, relatedPlot: r.related.plot} {
		svg, err := draw()
		if err != nil {
			return err
		}
		if svg == nil {
			continue
		}
		if err := os.WriteFile(filepath.Join(o.out, name), svg, 0o644); err != nil {
			return err
		}
	}
	if o.doc == "" {
		fmt.Print(text.String())
	} else if err := report.ReplaceMarked(o.doc, mark, madeBy, text.String()); err != nil {
		return err
	}
	return report.Judge(targets, o.check)
}

// reports are the raw files, one field each.
type reports struct {
	pull      *pullReport
	unpack    []unpackSample
	related   relatedReport
	start     []startSample
	converted []convertedSample
	profile   []profileSample
}

func readReports(o *options) (*reports, error) {
	var r reports
	pulls, err := report.Read[pullSample](o.rawPath("pull"))
	if err != nil {
		return nil, err
	}
	r.pull = newPullReport(pulls)
	if r.unpack, err = report.Read[unpackSample](o.rawPath("unpack")); err != nil {
		return nil, err
	}
	if r.related, err = report.Read[relatedSample](o.rawPath("related")); err != nil {
		return nil, err
	}
	if r.start, err = report.Read[startSample](o.rawPath("start")); err != nil {
		return nil, err
	}
	if r.converted, err = report.Read[convertedSample](o.rawPath("converted")); err != nil {
		return nil, err
	}
	r.profile, err = report.Read[profileSample](o.rawPath("profile"))
	return &r, err
}

func (r *reports) targets() []report.Target {
	var all []report.Target
	all = append(all, r.pull.targets()...)
	all = append(all, unpackTargets(r.unpack)...)
	all = append(all, convertedTargets(r.converted)...)
	all = append(all, r.related.targets()...)
	all = append(all, startTargets(r.start)...)
	return all
}

func (r *reports) write(w *bytes.Buffer, o *options) {
	for _, part := range parts {
		if head := report.Head(o.rawPath(part), "machine"); head != "" {
			fmt.Fprintf(w, "\nMachine: %s. Commits and dates: in the raw files.\n", head)
			break
		}
	}
	r.pull.write(w, o.link(pullPlot))
	writeUnpack(w, r.unpack)
	writeProfile(w, r.profile)
	writeConverted(w, r.converted)
	r.related.write(w, o.link(relatedPlot))
	writeStart(w, r.start)
}

// link is a plot as the document links to it.
func (o *options) link(name string) string {
	if rel, err := filepath.Rel(filepath.Dir(o.doc), filepath.Join(o.out, name)); err == nil {
		return filepath.ToSlash(rel)
	}
	return name
}

// byRound are numbers of a series of rounds.
type byRound map[int]float64

func (b byRound) values() []float64 { return slices.Collect(maps.Values(b)) }

// over divides by what another series has in the same round. It returns false if
// they have no round in common.
func (b byRound) over(other byRound) (report.Spread, bool) {
	var mine, theirs []float64
	for round, x := range b {
		if y, ok := other[round]; ok {
			mine, theirs = append(mine, x), append(theirs, y)
		}
	}
	if len(mine) == 0 {
		return report.Spread{}, false
	}
	return report.Ratios(mine, theirs), true
}

// String is the numbers' spread, "" of none.
func (b byRound) String() string {
	if len(b) == 0 {
		return ""
	}
	return report.SpreadOf(b.values()).String()
}

func mb(bytes float64) string { return fmt.Sprintf("%.1f", bytes/1e6) }

// noRaw is why a target was not measured that is not in the raw files.
const noRaw = "no raw numbers"

func notMeasured(what, want, why string) report.Target {
	return report.Target{What: what, Want: want, Got: why, Missing: true}
}

// rate is bytes in a time, in MB/s.
func rate(bytes int64, d time.Duration) float64 { return float64(bytes) / 1e6 / d.Seconds() }
