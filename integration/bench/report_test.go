package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/daxfs/containerd-daxfs/integration/report"
)

// writeRaw writes raw files with made-up numbers, as the program would.
func writeRaw[T any](t *testing.T, o *options, part string, samples ...T) {
	t.Helper()
	raw, err := report.NewRaw(t.Context(), o.rawPath(part), "test", "made up")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range samples {
		if err := raw.Add(s); err != nil {
			t.Fatal(err)
		}
	}
	if err := raw.Save(); err != nil {
		t.Fatal(err)
	}
}

func pullOf(peer string, round int, mounted time.Duration) pullSample {
	return pullSample{cell: cell{"bench-debian", "sequential", warm, peer}, Round: round, sizes: sizes{47e6, 139e6}, Mounted: mounted}
}

func targetNamed(t *testing.T, all []report.Target, what string) report.Target {
	t.Helper()
	for _, tg := range all {
		if strings.Contains(tg.What, what) {
			return tg
		}
	}
	t.Fatalf("no target %q in %+v", what, all)
	return report.Target{}
}

// What is compared is of the same round, in whatever order the file has them.
func TestReport(t *testing.T) {
	o := &options{out: t.TempDir()}
	const s = time.Second
	writeRaw(t, o, "pull",
		pullSample{cell: cell{Peer: "erofs"}, Missing: "no mkfs.erofs"},
		// Against overlayfs: 0.5, 0.2, 0.6; the ratio of the medians would be 1.2.
		pullOf(reference, 0, 10*s), pullOf(ours, 0, 5*s),
		pullOf(ours, 2, 6*s), pullOf(reference, 2, 10*s),
		pullOf(reference, 1, 20*s), pullOf(ours, 1, 4*s))
	unpack := func(image string, cpu time.Duration, written int64) unpackSample {
		return unpackSample{cell: cell{Image: image, Peer: ours}, sizes: sizes{100e6, 1000e6}, Took: 2 * s,
			usage: usage{CPU: map[string]time.Duration{"containerd": cpu / 4, "daxfs": cpu * 3 / 4}, Written: map[string]int64{"daxfs": written}}}
	}
	writeRaw(t, o, "unpack", unpack(zstdImage, 2*s, 1e6), unpack(zstdImage, s, 20e6), unpack(zstdImage, s, 30e6))
	writeRaw(t, o, "related", relatedSample{reference, 1, 100e6, s}, relatedSample{reference, 2, 200e6, s},
		relatedSample{ours, 1, 100e6, s}, relatedSample{ours, 2, 170e6, s})
	writeRaw(t, o, "converted",
		convertedSample{Image: "x", Form: ordinary, State: pulled, Took: 10 * s},
		convertedSample{Image: "x", Form: daxfsRaw, Missing: "no such command"},
		convertedSample{Image: "x", Form: daxfsZstd, State: pulled, Took: 4 * s},
		convertedSample{Image: "x", Form: daxfsZstd, State: again, Took: 150 * time.Millisecond})
	writeRaw(t, o, "start", startSample{reference, 0, 1, s}, startSample{ours, 0, 1, 900 * time.Millisecond})
	writeRaw(t, o, "profile", profileSample{Image: "x", Took: s, Shares: map[string]time.Duration{sha256Work: s, external: 3 * s}})
	r, err := readReports(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		what, got    string
		met, missing bool
	}{
		{"against overlayfs: debian, sequential, warm", "0.50 (0.20–0.60)", true, false},
		{"against erofs: debian, sequential, warm", "no mkfs.erofs", false, true},
		{"zstd layers", "1000 (500–1000)", true, false},
		{"written to the disk", "2.00 % (20.0 MB)", false, false},
		{"+zstd, against the ordinary", "0.40 (0.40–0.40)", true, false},
		{"in the pool already", "150 (150–150)", false, false},
		{"related images", "0.85 (2 images, 170.0 MB against 200.0 MB)", false, false},
		{"1 at once, p95", "0.900 (0.900 s against 1.000 s)", true, false},
	} {
		got := targetNamed(t, r.targets(), want.what)
		if got.Got != want.got || got.Met != want.met || got.Missing != want.missing {
			t.Errorf("%s: got %+v, want %+v", want.what, got, want)
		}
	}

	o.doc = t.TempDir() + "/doc.md"
	if err := os.WriteFile(o.doc, []byte("<!-- pulls: begin (written by make bench-pull) -->\nold\n<!-- pulls: end -->\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := render(o); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(o.doc)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"erofs was **not measured**: no mkfs.erofs",
		"| debian | sequential | warm | 10.00 (10.00–20.00) | 5.00 (4.00–6.00) | **0.50 (0.20–0.60)** | |",
		"| DAXFS | **not measured**: no such command |",
		"| gunzip, external program | 3.00 | 75 % |",
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the document has no %q:\n%s", want, b)
		}
	}
	if strings.Contains(string(b), "old") {
		t.Error("the document has its old part")
	}
	for _, plot := range []string{pullPlot, relatedPlot} {
		wellFormed(t, o.out+"/"+plot)
	}
	o.check = true
	if err := render(o); err == nil || !strings.Contains(err.Error(), "related images") || strings.Contains(err.Error(), "zstd layers") {
		t.Errorf("with -check: got %v, want the missed targets alone", err)
	}
}

// Without raw numbers every target says that there are none.
func TestReportOfNothing(t *testing.T) {
	r, err := readReports(&options{out: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	targetNamed(t, r.targets(), "runnable against overlayfs")
	targetNamed(t, r.targets(), "runnable against erofs")
	for _, tg := range r.targets() {
		if !tg.Missing || tg.Met {
			t.Errorf("got %+v", tg)
		}
	}
}

func wellFormed(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for d := xml.NewDecoder(f); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
}

func TestParse(t *testing.T) {
	if o, err := parse([]string{"-rounds", "3", "-peers", "daxfs,overlayfs", "-measure", ""}); err != nil || o.rounds != 3 || len(o.peers) != 2 || len(o.measure) != 0 {
		t.Errorf("got %+v, %v", o, err)
	}
	for _, bad := range [][]string{{"-peers", "btrfs"}, {"-measure", "pul"}, {"-rounds", "0"}, {"more"}} {
		if o, err := parse(bad); err == nil {
			t.Errorf("%q: got %+v and no error", bad, o)
		}
	}
}
