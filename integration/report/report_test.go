package report

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSpread(t *testing.T) {
	if got := SpreadOf([]float64{9, 1, 2, 4}); got != (Spread{3, 1, 9}) {
		t.Errorf("got %v", got)
	}
	if got := Ratios([]float64{1, 6, 10}, []float64{2, 2, 10}); got != (Spread{1, 0.5, 3}) {
		t.Errorf("got %v", got)
	}
}

func TestPercentile(t *testing.T) {
	var xs []float64
	for i := 100; i >= 1; i-- {
		xs = append(xs, float64(i))
	}
	for p, want := range map[float64]float64{0: 1, 1: 1, 50: 50, 95: 95, 99.5: 100, 100: 100} {
		if got := Percentile(xs, p); got != want {
			t.Errorf("p%g: got %g, want %g", p, got, want)
		}
	}
	if got := Percentile([]float64{7}, 95); got != 7 {
		t.Errorf("of one number: got %g", got)
	}
}

func TestRawRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub/raw.txt")
	if got, err := Read[int](path); got != nil || err != nil {
		t.Errorf("no file: got %v, %v", got, err)
	}
	raw, err := NewRaw(t.Context(), path, "the command", "a note")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := raw.Add(i); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the file is there before it is saved")
	}
	if err := raw.Save(); err != nil {
		t.Fatal(err)
	}
	got, err := Read[int](path)
	if err != nil || len(got) != 3 || got[2] != 2 {
		t.Errorf("got %v, %v", got, err)
	}
	if Head(path, "command") != "the command" || !strings.HasSuffix(Head(path, "machine"), "; a note") || Head(path, "no such key") != "" {
		t.Errorf("head: %q, %q", Head(path, "command"), Head(path, "machine"))
	}
	if err := os.WriteFile(path, []byte("head\n\n1\n{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Read[int](path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a damaged file: got %v, want an error that names it", err)
	}
}

func TestReplaceMarked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doc.md")
	const doc = "a\n<!-- m: begin (written by x) -->\nold\n<!-- m: end -->\nb\n"
	if err := os.WriteFile(path, []byte(doc), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := ReplaceMarked(path, "m", "x", "new\n"); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if want := strings.Replace(doc, "old", "new", 1); err != nil || string(b) != want {
		t.Errorf("got %q, %v, want %q", b, err, want)
	}
	if err := ReplaceMarked(path, "another", "x", "new\n"); err == nil {
		t.Error("no error for a mark that is not there")
	}
}

func TestTargets(t *testing.T) {
	targets := []Target{
		{What: "reached", Met: true}, {What: "missed"}, {What: "missed by design", Known: true}, {What: "nobody looked", Missing: true},
	}
	var w bytes.Buffer
	WriteTargets(&w, targets)
	for what, verdict := range map[string]string{"reached": "met", "missed": "**missed**", "missed by design": "**missed**", "nobody looked": "**not measured**"} {
		found := false
		for line := range strings.Lines(w.String()) {
			found = found || strings.HasPrefix(line, "| "+what+" |") && strings.HasSuffix(line, "| "+verdict+" |\n")
		}
		if !found {
			t.Errorf("%s is not %s in\n%s", what, verdict, w.String())
		}
	}
	if err := Judge(targets, false); err != nil {
		t.Error(err)
	}
	err := Judge(targets, true)
	if err == nil || strings.Contains(err.Error(), "design") || strings.Contains(err.Error(), "reached") || !strings.Contains(err.Error(), "nobody looked") {
		t.Errorf("got %v", err)
	}
}
