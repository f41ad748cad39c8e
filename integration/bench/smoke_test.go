package main

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/integration/lab"
	"github.com/daxfs/containerd-daxfs/integration/report"
)

// All parts run with a small image, ours and overlayfs alone, once; and what they
// write down can be reported.
func TestSmoke(t *testing.T) {
	lab.Require(t)
	if lab.Standin() {
		t.Skip("the stand-in has no pool and no differ")
	}
	const image = "rootopaque" // the smallest
	o := &options{
		measure: parts, images: []string{image}, cold: []string{image}, peers: []string{reference, ours},
		unpacked: []string{image}, related: []string{image}, started: image, converted: image,
		rounds: 1, starts: 1, atOnce: 2, out: t.TempDir(), doc: t.TempDir() + "/doc.md",
	}
	if err := measure(context.Background(), t, o); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(o.doc, []byte("before\n<!-- pulls: begin (written by make bench-pull) -->\n<!-- pulls: end -->\nafter\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := render(o); err != nil {
		t.Fatal(err)
	}
	r, err := readReports(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range modes {
		for _, c := range []string{cold, warm} {
			for _, p := range o.peers {
				s := r.pull.samples[cell{image, m.name, c, p}]
				if len(s) != 1 || s[0].Pull <= 0 || s[0].Mounted < s[0].Pull || s[0].Run <= 0 || s[0].Blobs <= 0 || s[0].Data <= s[0].Blobs || s[0].Anon <= 0 {
					t.Errorf("%s, %s, %s: %+v", m.name, c, p, s)
				}
			}
		}
	}
	for _, p := range o.peers {
		if cpu := unpacksOf(r.unpack, image, p, func(s unpackSample) float64 { return s.cpu().Seconds() }); len(cpu) != 1 || cpu[0] < 0 {
			t.Errorf("unpack with %s: CPU times %v", p, cpu)
		}
		if s, ok := r.related.last(p); !ok || s.Bytes <= 0 {
			t.Errorf("related with %s: %+v", p, s)
		}
		for _, n := range []int{1, 2} {
			if ts := startTimes(r.start, p, n); len(ts) != n {
				t.Errorf("%d containers at once with %s: times %v", n, p, ts)
			}
		}
	}
	if len(convertedTimes(r.converted, ordinary, pulled)) != 1 || len(convertedTimes(r.converted, ordinary, again)) != 1 {
		t.Errorf("pulls of the ordinary image: %+v", r.converted)
	}
	if len(r.profile) != 1 || r.profile[0].Shares[containerd] <= 0 {
		t.Errorf("profiles: %+v", r.profile)
	}
	// Whatever the figures are: each target has one, or says that it has none.
	missing := slices.DeleteFunc(r.targets(), func(tg report.Target) bool { return !tg.Missing })
	for _, tg := range missing {
		if !strings.Contains(tg.What, "erofs") && !strings.Contains(tg.What, "zstd layers") && !strings.Contains(tg.What, "converted image") {
			t.Errorf("not measured: %+v", tg)
		}
	}
	doc, err := os.ReadFile(o.doc)
	if err != nil {
		t.Fatal(err)
	}
	if text := string(doc); !strings.HasPrefix(text, "before\n") || !strings.HasSuffix(text, "after\n") || !strings.Contains(text, "| rootopaque | 4 unpacks | cold |") {
		t.Errorf("document:\n%s", text)
	}
}
