package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/daxfs/containerd-daxfs/integration/report"
)

// pullReport is the raw file of the part "pull", sorted.
type pullReport struct {
	rows    []row // in the order of measurement
	sizes   map[string]sizes
	samples map[cell][]pullSample
	missing map[string]string // peers, and why they are
}

// row is a line of the table: a cell without a peer.
type row struct{ image, mode, cache string }

func (r row) cell(peer string) cell { return cell{r.image, r.mode, r.cache, peer} }

func (r row) String() string {
	return fmt.Sprintf("%s, %s, %s registry", strings.TrimPrefix(r.image, "bench-"), r.mode, r.cache)
}

func newPullReport(samples []pullSample) *pullReport {
	p := &pullReport{sizes: map[string]sizes{}, samples: map[cell][]pullSample{}, missing: map[string]string{}}
	for _, s := range samples {
		if s.Missing != "" {
			p.missing[s.Peer] = s.Missing
			continue
		}
		if r := (row{s.Image, s.Mode, s.Cache}); !slices.Contains(p.rows, r) {
			p.rows = append(p.rows, r)
		}
		p.sizes[s.Image] = s.sizes
		p.samples[s.cell] = append(p.samples[s.cell], s)
	}
	return p
}

// times until a container's root file system is mounted.
func (p *pullReport) times(c cell) byRound {
	t := byRound{}
	for _, s := range p.samples[c] {
		t[s.Round] = s.Mounted.Seconds()
	}
	return t
}

// of is the median of something about the pulls of a cell.
func (p *pullReport) of(c cell, of func(pullSample) float64) (float64, bool) {
	var xs []float64
	for _, s := range p.samples[c] {
		xs = append(xs, of(s))
	}
	if len(xs) == 0 {
		return 0, false
	}
	return report.SpreadOf(xs).Median, true
}

// against is what the issue compares with, and how much of its time a pull may
// take.
var against = []struct {
	peer string
	most float64
	want string
}{
	{reference, 0.6, "at most 0.6"},
	{"erofs", 1, "below 1"},
}

func (p *pullReport) targets() []report.Target {
	var all []report.Target
	for _, a := range against {
		if len(p.rows) == 0 {
			all = append(all, notMeasured("time from pull to runnable against "+a.peer, a.want, noRaw))
		}
		for _, r := range p.rows {
			if strings.HasSuffix(r.image, "-zstd") {
				continue // said of gzip layers
			}
			what := fmt.Sprintf("time from pull to runnable against %s: %s", a.peer, r)
			ratio, ok := p.times(r.cell(ours)).over(p.times(r.cell(a.peer)))
			if !ok {
				why := noRaw
				if m, is := p.missing[a.peer]; is {
					why = m
				}
				all = append(all, notMeasured(what, a.want, why))
				continue
			}
			met := ratio.Median <= a.most
			if a.peer != reference {
				met = ratio.Median < a.most
			}
			all = append(all, report.Target{What: what, Want: a.want, Got: ratio.String(), Met: met})
		}
	}
	return all
}

// shown are the peers that have samples, in the order of the tables.
func (p *pullReport) shown() []string {
	return slices.DeleteFunc(peerNames(), func(name string) bool {
		return !slices.ContainsFunc(p.rows, func(r row) bool { return len(p.samples[r.cell(name)]) > 0 })
	})
}

func (p *pullReport) write(w *bytes.Buffer, plot string) {
	for _, name := range peerNames() {
		if why := p.missing[name]; why != "" {
			fmt.Fprintf(w, "\n%s was **not measured**: %s\n", name, why)
		}
	}
	if len(p.rows) == 0 {
		return
	}
	fmt.Fprintf(w, "\n![Time from pull to runnable](%s)\n", plot)
	n := 0
	for _, s := range p.samples {
		n = max(n, len(s))
	}
	fmt.Fprintf(w, "\nSeconds from the start of a pull until a container's root file system is mounted: median (least–most), n = %d."+
		" The last columns are the median of the rounds' ratios, with the least and the most.\n", n)
	shown := p.shown()
	fmt.Fprintf(w, "\n| image | unpack | registry | %s | daxfs / overlayfs | daxfs / erofs |\n|---|---|---|%s---|---|\n",
		strings.Join(shown, " | "), strings.Repeat("---|", len(shown)))
	for _, r := range p.rows {
		fmt.Fprintf(w, "| %s | %s | %s |", strings.TrimPrefix(r.image, "bench-"), r.mode, r.cache)
		for _, name := range shown {
			fmt.Fprintf(w, " %s |", p.times(r.cell(name)))
		}
		for _, a := range against {
			if ratio, ok := p.times(r.cell(ours)).over(p.times(r.cell(a.peer))); ok {
				fmt.Fprintf(w, " **%s** |", ratio)
			} else {
				fmt.Fprint(w, " |")
			}
		}
		fmt.Fprintln(w)
	}
	p.writeSizes(w)
	p.writeCosts(w, shown)
}

func (p *pullReport) writeSizes(w *bytes.Buffer) {
	fmt.Fprintf(w, "\n| image | MB fetched | MB unpacked |\n|---|---|---|\n")
	var done []string
	for _, r := range p.rows {
		if slices.Contains(done, r.image) {
			continue
		}
		done = append(done, r.image)
		s := p.sizes[r.image]
		fmt.Fprintf(w, "| %s | %s | %s |\n", strings.TrimPrefix(r.image, "bench-"), mb(float64(s.Blobs)), mb(float64(s.Data)))
	}
}

// writeCosts writes what else a pull takes.
func (p *pullReport) writeCosts(w *bytes.Buffer, shown []string) {
	fmt.Fprintf(w, "\nWhat the same pulls, from a warm registry, cost containerd and the snapshotters' daemons with the programs"+
		" that they run: medians.\n")
	for _, c := range []struct {
		what string
		of   func(pullSample) float64
		form string
	}{
		{"CPU time, s", func(s pullSample) float64 { return s.usage.cpu().Seconds() }, "%.2f"},
		{"most anonymous memory at a time, MB", func(s pullSample) float64 { return float64(s.Anon) / 1e6 }, "%.0f"},
		{"written to the disk, the content store included, MB", func(s pullSample) float64 { return float64(s.written()) / 1e6 }, "%.0f"},
		{"then, a first container that runs `true`, s", func(s pullSample) float64 { return s.Run.Seconds() }, "%.2f"},
	} {
		fmt.Fprintf(w, "\n| %s | unpack | %s |\n|---|---|%s\n", c.what, strings.Join(shown, " | "), strings.Repeat("---|", len(shown)))
		for _, r := range p.rows {
			if r.cache != warm {
				continue
			}
			fmt.Fprintf(w, "| %s | %s |", strings.TrimPrefix(r.image, "bench-"), r.mode)
			for _, name := range shown {
				if x, ok := p.of(r.cell(name), c.of); ok {
					fmt.Fprintf(w, " "+c.form+" |", x)
				} else {
					fmt.Fprint(w, " |")
				}
			}
			fmt.Fprintln(w)
		}
	}
}

func (u usage) written() int64 {
	var sum int64
	for _, n := range u.Written {
		sum += n
	}
	return sum
}
