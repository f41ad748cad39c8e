package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"math"
	"slices"
	"strings"

	"github.com/daxfs/containerd-daxfs/integration/report"
)

//go:embed plot.svg.tmpl
var plotTemplate string

// A plot is panels side by side, in pixels.
const (
	panelWidth  = 440
	panelHeight = 260
	barWidth    = 15
	margin      = 60
)

type drawing struct {
	Width, Height, Base int
	Unit                string
	Panels              []panel
	Legend              []legend
}

type panel struct {
	X      int
	Title  string
	Groups []group
	Lines  []line
	Ticks  []gridLine
}

type group struct {
	X     float64 // middle
	Label string
	Bars  []bar
}

// bar is a median, with a whisker from the least to the most.
type bar struct {
	X, Width, Y, H  float64
	Middle          float64
	Least, Most     float64
	Colour, Explain string
}

type line struct{ Points, Colour string }

type gridLine struct {
	Y     float64
	Label string
}

type legend struct {
	X            int
	Colour, Text string
}

func (d *drawing) svg() ([]byte, error) {
	d.Base = panelHeight
	d.Width, d.Height = margin+len(d.Panels)*(panelWidth+margin), panelHeight+110
	for i := range d.Panels {
		d.Panels[i].X = margin + i*(panelWidth+margin)
	}
	t, err := template.New("plot").Parse(plotTemplate)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = t.Execute(&b, d)
	return b.Bytes(), err
}

func (d *drawing) legend(names []string) {
	for i, name := range names {
		d.Legend = append(d.Legend, legend{margin + 100*i, colourOf(name), name})
	}
}

// colourOf is the same for a peer in all plots.
func colourOf(peer string) string {
	return report.Colours[slices.Index(peerNames(), peer)%len(report.Colours)]
}

// scale returns ticks for values up to most and where a value is drawn.
func scale(most float64) ([]gridLine, func(float64) float64) {
	step := report.NiceStep(most / 5)
	top := math.Ceil(most/step) * step
	y := func(v float64) float64 { return panelHeight * (1 - v/top) }
	var ticks []gridLine
	for v := 0.0; v <= top*1.001; v += step {
		ticks = append(ticks, gridLine{y(v), fmt.Sprintf("%g", v)})
	}
	return ticks, y
}

// plot draws pulls from a warm registry, a panel for each mode. nil: there are
// none.
func (p *pullReport) plot() ([]byte, error) {
	shown := p.shown()
	d := drawing{Unit: "seconds from pull to runnable, warm registry: median, least and most"}
	d.legend(shown)
	for _, m := range modes {
		var rows []row
		most := 0.0
		for _, r := range p.rows {
			if r.mode != m.name || r.cache != warm {
				continue
			}
			rows = append(rows, r)
			for _, name := range shown {
				for _, t := range p.times(r.cell(name)) {
					most = max(most, t)
				}
			}
		}
		if most == 0 {
			continue
		}
		panel := panel{Title: m.name}
		ticks, y := scale(most)
		panel.Ticks = ticks
		for i, r := range rows {
			g := group{X: (float64(i) + 0.5) * panelWidth / float64(len(rows)), Label: strings.TrimPrefix(r.image, "bench-")}
			for j, name := range shown {
				t := p.times(r.cell(name))
				if len(t) == 0 {
					continue
				}
				s := report.SpreadOf(t.values())
				x := g.X + (float64(j)-float64(len(shown))/2)*barWidth
				g.Bars = append(g.Bars, bar{
					X: x, Width: barWidth - 2, Middle: x + (barWidth-2)/2.0, Y: y(s.Median), H: panelHeight - y(s.Median),
					Least: y(s.Least), Most: y(s.Most), Colour: colourOf(name), Explain: fmt.Sprintf("%s: %s s", name, s),
				})
			}
			panel.Groups = append(panel.Groups, g)
		}
		d.Panels = append(d.Panels, panel)
	}
	if len(d.Panels) == 0 {
		return nil, nil
	}
	return d.svg()
}

// plot draws what each number of images takes.
func (r relatedReport) plot() ([]byte, error) {
	if len(r) == 0 {
		return nil, nil
	}
	var most float64
	var count int
	var names []string
	for _, s := range r {
		most, count = max(most, float64(s.Bytes)/1e6), max(count, s.Images)
		if !slices.Contains(names, s.Peer) {
			names = append(names, s.Peer)
		}
	}
	d := drawing{Unit: "MB"}
	d.legend(names)
	ticks, y := scale(most)
	x := func(images int) float64 { return float64(images) * panelWidth / float64(count) }
	p := panel{Title: "related images: bytes kept by the number of images", Ticks: ticks}
	for _, name := range names {
		var points []string
		for _, s := range r {
			if s.Peer == name {
				points = append(points, fmt.Sprintf("%.1f,%.1f", x(s.Images), y(float64(s.Bytes)/1e6)))
			}
		}
		p.Lines = append(p.Lines, line{strings.Join(points, " "), colourOf(name)})
	}
	for _, n := range []int{1, (count + 1) / 2, count} {
		p.Groups = append(p.Groups, group{X: x(n), Label: fmt.Sprint(n)})
	}
	d.Panels = append(d.Panels, p)
	return d.svg()
}
