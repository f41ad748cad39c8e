package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"math"

	"github.com/daxfs/containerd-daxfs/integration/report"
)

//go:embed plot.svg.tmpl
var plotTemplate string

// The plot is two panels of bars, in pixels.
const (
	panelWidth  = 440
	panelHeight = 260
	barWidth    = 15
)

type panel struct {
	X      int
	Title  string
	Groups []group
	Ticks  []tick
}

type group struct {
	X     float64 // middle
	Label string
	Bars  []bar
}

// bar is what the image takes, and above it what the processes take.
type bar struct {
	X, Width         float64
	ImageY, ImageH   float64
	OwnY, OwnH       float64
	Colour, Describe string
}

type tick struct {
	Y     float64
	Label string
}

type legend struct {
	X            int
	Colour, Text string
}

// plot draws the memory of the largest state for each number of kernels, and
// that of all kernels for each number of processes.
func (m *memoryReport) plot() ([]byte, error) {
	last := m.largest()
	var byKernels, byProcesses []state
	for _, s := range m.states {
		if s.containers == last.containers && s.processes == last.processes {
			byKernels = append(byKernels, s)
		}
		if s.kernels == last.kernels {
			byProcesses = append(byProcesses, s)
		}
	}
	data := struct {
		Width, Height, Base int
		Panels              []panel
		Legend              []legend
	}{Width: 2*panelWidth + 120, Height: panelHeight + 110, Base: panelHeight}
	data.Panels = []panel{
		m.panel(60, fmt.Sprintf("%d containers × %d processes on each kernel", last.containers, last.processes), byKernels,
			func(s state) string { return fmt.Sprintf("%d kernel(s)", s.kernels) }),
		m.panel(60+panelWidth+50, fmt.Sprintf("%d kernels, containers × processes on each", last.kernels), byProcesses,
			func(s state) string { return fmt.Sprintf("%d × %d", s.containers, s.processes) }),
	}
	for i, e := range m.engines {
		data.Legend = append(data.Legend, legend{60 + 110*i, report.Colours[i%len(report.Colours)], e})
	}
	t, err := template.New("plot").Parse(plotTemplate)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = t.Execute(&b, data)
	return b.Bytes(), err
}

func (m *memoryReport) panel(x int, title string, states []state, label func(s state) string) panel {
	p := panel{X: x, Title: title}
	var most float64
	for _, s := range states {
		for _, e := range m.engines {
			most = max(most, float64(m.total(e, s).all)/(1<<20))
		}
	}
	step := report.NiceStep(most / 5)
	top := math.Ceil(most/step) * step
	height := func(bytes int64) float64 { return max(0, float64(bytes)/(1<<20)/top*panelHeight) }
	for v := 0.0; v <= top; v += step {
		p.Ticks = append(p.Ticks, tick{panelHeight * (1 - v/top), fmt.Sprintf("%.0f", v)})
	}
	for i, s := range states {
		g := group{X: (float64(i) + 0.5) * panelWidth / float64(len(states)), Label: label(s)}
		for j, e := range m.engines {
			u := m.total(e, s)
			image, own := height(u.image), height(u.own)
			g.Bars = append(g.Bars, bar{
				X: g.X + (float64(j)-float64(len(m.engines))/2)*barWidth, Width: barWidth - 2,
				ImageY: panelHeight - image, ImageH: image, OwnY: panelHeight - image - own, OwnH: own,
				Colour:   report.Colours[j%len(report.Colours)],
				Describe: fmt.Sprintf("%s: %s MiB for the image, %s MiB for the processes", e, mib(u.image), mib(u.own)),
			})
		}
		p.Groups = append(p.Groups, g)
	}
	return p
}
