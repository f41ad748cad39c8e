package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/daxfs/containerd-daxfs/integration/report"
)

// convertedTimes are by round.
func convertedTimes(all []convertedSample, form, state string) byRound {
	t := byRound{}
	for _, s := range all {
		if s.Form == form && s.State == state && s.Missing == "" {
			t[s.Round] = s.Took.Seconds()
		}
	}
	return t
}

// whyMissing is why a form was not measured.
func whyMissing(all []convertedSample, form string) string {
	for _, s := range all {
		if s.Form == form && s.Missing != "" {
			return s.Missing
		}
	}
	return noRaw
}

func convertedTargets(all []convertedSample) []report.Target {
	const (
		speed, half = "time from pull to runnable of a converted image, +zstd, against the ordinary one", "at most 0.5"
		there       = "a converted image that is in the pool already: pull to runnable, ms"
		below       = "below 100"
	)
	ratio, ok := convertedTimes(all, daxfsZstd, pulled).over(convertedTimes(all, ordinary, pulled))
	if !ok {
		why := whyMissing(all, daxfsZstd)
		return []report.Target{notMeasured(speed, half, why), notMeasured(there, below, why)}
	}
	t := convertedTimes(all, daxfsZstd, again).values()
	targets := []report.Target{{What: speed, Want: half, Got: ratio.String(), Met: ratio.Median <= 0.5}}
	if len(t) == 0 {
		return append(targets, notMeasured(there, below, noRaw))
	}
	s := report.SpreadOf(t)
	return append(targets, report.Target{What: there, Want: below,
		Got: fmt.Sprintf("%.0f (%.0f–%.0f)", 1e3*s.Median, 1e3*s.Least, 1e3*s.Most), Met: s.Median < 0.1})
}

func writeConverted(w *bytes.Buffer, all []convertedSample) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintf(w, "\nThe image %s as it is and converted, 4 unpacks, warm registry; *again*: for another namespace of containerd,"+
		" while the pool has it. Seconds until a container's root file system is mounted, median (least–most).\n\n"+
		"| form | MB fetched | pulled | against the ordinary one | again |\n|---|---|---|---|---|\n", strings.TrimPrefix(all[0].Image, "bench-"))
	for _, form := range []string{ordinary, daxfsRaw, daxfsZstd} {
		times := convertedTimes(all, form, pulled)
		if len(times) == 0 {
			fmt.Fprintf(w, "| %s | **not measured**: %s | | | |\n", form, whyMissing(all, form))
			continue
		}
		i := slices.IndexFunc(all, func(s convertedSample) bool { return s.Form == form })
		ratio, _ := times.over(convertedTimes(all, ordinary, pulled))
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", form, mb(float64(all[i].Blobs)), times, ratio,
			convertedTimes(all, form, again))
	}
}

// relatedReport is the raw file of the part "related".
type relatedReport []relatedSample

// last is the state after a peer's last image.
func (r relatedReport) last(peer string) (relatedSample, bool) {
	for _, s := range slices.Backward(r) {
		if s.Peer == peer {
			return s, true
		}
	}
	return relatedSample{}, false
}

func (r relatedReport) targets() []report.Target {
	const what, want = "bytes that related images take, against overlayfs", "at most 0.8"
	mine, ok := r.last(ours)
	theirs, ok2 := r.last(reference)
	if !ok || !ok2 || mine.Images != theirs.Images {
		return []report.Target{notMeasured(what, want, noRaw)}
	}
	ratio := float64(mine.Bytes) / float64(theirs.Bytes)
	return []report.Target{{
		What: what, Want: want, Met: ratio <= 0.8,
		Got: fmt.Sprintf("%.2f (%d images, %s MB against %s MB)", ratio, mine.Images, mb(float64(mine.Bytes)), mb(float64(theirs.Bytes))),
	}}
}

func (r relatedReport) write(w *bytes.Buffer, plot string) {
	if len(r) == 0 {
		return
	}
	fmt.Fprintf(w, "\n![Bytes that related images take](%s)\n\nRelated images, pulled one after the other: allocated bytes of the"+
		" snapshots' directories, for daxfs of the pool with the images' metadata.\n\n"+
		"| snapshotter | images | MB | of overlayfs's | seconds for all pulls |\n|---|---|---|---|---|\n", plot)
	base, _ := r.last(reference)
	for _, p := range peerNames() {
		if s, ok := r.last(p); ok {
			fmt.Fprintf(w, "| %s | %d | %s | %.2f | %.1f |\n", p, s.Images, mb(float64(s.Bytes)), float64(s.Bytes)/float64(base.Bytes), s.Took.Seconds())
		}
	}
}

// startTimes are all of a peer's, in seconds.
func startTimes(all []startSample, peer string, atOnce int) []float64 {
	var xs []float64
	for _, s := range all {
		if s.Peer == peer && s.AtOnce == atOnce {
			xs = append(xs, s.Took.Seconds())
		}
	}
	return xs
}

// concurrencies are the numbers of containers that were started at once.
func concurrencies(all []startSample) []int {
	var ns []int
	for _, s := range all {
		if !slices.Contains(ns, s.AtOnce) {
			ns = append(ns, s.AtOnce)
		}
	}
	return ns
}

func startTargets(all []startSample) []report.Target {
	const want = "not above 1"
	if len(all) == 0 {
		return []report.Target{notMeasured("start of a container against overlayfs", want, noRaw)}
	}
	var targets []report.Target
	for _, n := range concurrencies(all) {
		mine, theirs := startTimes(all, ours, n), startTimes(all, reference, n)
		for _, p := range []float64{50, 95} {
			what := fmt.Sprintf("start of a container, %d at once, p%.0f, against overlayfs", n, p)
			if len(mine) == 0 || len(theirs) == 0 {
				targets = append(targets, notMeasured(what, want, noRaw))
				continue
			}
			a, b := report.Percentile(mine, p), report.Percentile(theirs, p)
			targets = append(targets, report.Target{What: what, Want: want, Met: a <= b, Got: fmt.Sprintf("%.3f (%.3f s against %.3f s)", a/b, a, b)})
		}
	}
	return targets
}

func writeStart(w *bytes.Buffer, all []startSample) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintf(w, "\nStart of a container: `ctr run --rm … true` of an image that is there, seconds from the start of ctr to its end.\n\n"+
		"| at once | snapshotter | n | p50 | p95 |\n|---|---|---|---|---|\n")
	for _, n := range concurrencies(all) {
		for _, p := range peerNames() {
			if t := startTimes(all, p, n); len(t) > 0 {
				fmt.Fprintf(w, "| %d | %s | %d | %.3f | %.3f |\n", n, p, len(t), report.Percentile(t, 50), report.Percentile(t, 95))
			}
		}
	}
}
