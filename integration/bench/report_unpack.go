package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/daxfs/containerd-daxfs/integration/report"
)

// zstdImage is what the rate of zstd is measured with.
const zstdImage = "bench-python-zstd"

// unpackedImages are in the order of measurement.
func unpackedImages(all []unpackSample) []string {
	var names []string
	for _, s := range all {
		if !slices.Contains(names, s.Image) {
			names = append(names, s.Image)
		}
	}
	return names
}

func unpacksOf(all []unpackSample, image, peer string, of func(unpackSample) float64) []float64 {
	var xs []float64
	for _, s := range all {
		if s.Image == image && s.Peer == peer {
			xs = append(xs, of(s))
		}
	}
	return xs
}

// perCore is the unpacked data of each second of a core.
func perCore(s unpackSample) float64 { return rate(s.Data, s.cpu()) }

func unpackTargets(all []unpackSample) []report.Target {
	const (
		speed   = "zstd layers: MB/s of unpacked data per core, containerd's and our CPU time"
		atLeast = "at least 600"
		// What is written is metadata if it is next to nothing beside the data.
		most    = 0.01
		written = "written to the disk by an unpack into a memory region, of the unpacked data"
		little  = "metadata only: at most 1 %"
	)
	var targets []report.Target
	if rates := unpacksOf(all, zstdImage, ours, perCore); len(rates) == 0 {
		targets = append(targets, notMeasured(speed, atLeast, noRaw))
	} else {
		r := report.SpreadOf(rates)
		targets = append(targets, report.Target{
			What: speed, Want: atLeast, Got: fmt.Sprintf("%.0f (%.0f–%.0f)", r.Median, r.Least, r.Most), Met: r.Median >= 600,
		})
	}
	if len(all) == 0 {
		targets = append(targets, notMeasured(written, little, noRaw))
	}
	for _, image := range unpackedImages(all) {
		shares := unpacksOf(all, image, ours, func(s unpackSample) float64 { return float64(s.written()) / float64(s.Data) })
		if len(shares) == 0 {
			continue
		}
		bytes := unpacksOf(all, image, ours, func(s unpackSample) float64 { return float64(s.written()) })
		m := report.SpreadOf(shares).Median
		targets = append(targets, report.Target{
			What: written + ": " + strings.TrimPrefix(image, "bench-"), Want: little,
			Got: fmt.Sprintf("%.2f %% (%s MB)", 100*m, mb(report.SpreadOf(bytes).Median)), Met: m <= most,
		})
	}
	return targets
}

func writeUnpack(w *bytes.Buffer, all []unpackSample) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintf(w, "\nUnpacking alone, of blobs that containerd has fetched, one layer after the other: median (least–most), n = %d."+
		" *Written* is what containerd and our daemon caused to be written to disks (write_bytes in /proc/PID/io); *disk* is"+
		" what came to the disk in all until it was synced, file system journals and other programs included.\n",
		len(unpacksOf(all, all[0].Image, all[0].Peer, perCore)))
	fmt.Fprintf(w, "\n| image | snapshotter | seconds | MB/s | CPU, s | MB/s per core | written, MB | disk, MB |\n|---|---|---|---|---|---|---|---|\n")
	for _, image := range unpackedImages(all) {
		for _, p := range peerNames() {
			times := unpacksOf(all, image, p, func(s unpackSample) float64 { return s.Took.Seconds() })
			if len(times) == 0 {
				continue
			}
			of := func(f func(unpackSample) float64) report.Spread { return report.SpreadOf(unpacksOf(all, image, p, f)) }
			disk := of(func(s unpackSample) float64 { return float64(s.Disk) }).Median
			onDisk := mb(disk)
			if disk < 0 {
				onDisk = "not known"
			}
			core := of(perCore)
			fmt.Fprintf(w, "| %s | %s | %s | %.0f | %.2f | %.0f (%.0f–%.0f) | %s | %s |\n", strings.TrimPrefix(image, "bench-"), p,
				report.SpreadOf(times), of(func(s unpackSample) float64 { return rate(s.Data, s.Took) }).Median,
				of(func(s unpackSample) float64 { return s.cpu().Seconds() }).Median, core.Median, core.Least, core.Most,
				mb(of(func(s unpackSample) float64 { return float64(s.written()) }).Median), onDisk)
		}
	}
}

func writeProfile(w *bytes.Buffer, all []profileSample) {
	if len(all) == 0 {
		return
	}
	fmt.Fprint(w, "\nWhere the CPU time of such an unpack by our differ goes: containerd's and the programs' from the process"+
		" table, the daemon's own from a CPU profile.\n\n| |")
	totals := map[string]time.Duration{}
	for _, s := range all {
		for _, d := range s.Shares {
			totals[s.Image] += d
		}
		fmt.Fprintf(w, " %s, s | share |", strings.TrimPrefix(s.Image, "bench-"))
	}
	fmt.Fprintf(w, "\n|---|%s\n", strings.Repeat("---|---|", len(all)))
	for _, work := range works {
		if !slices.ContainsFunc(all, func(s profileSample) bool { return s.Shares[work] > 0 }) {
			continue
		}
		fmt.Fprintf(w, "| %s |", work)
		for _, s := range all {
			fmt.Fprintf(w, " %.2f | %.0f %% |", s.Shares[work].Seconds(), 100*s.Shares[work].Seconds()/totals[s.Image].Seconds())
		}
		fmt.Fprintln(w)
	}
	fmt.Fprint(w, "| all, in an unpack of |")
	for _, s := range all {
		fmt.Fprintf(w, " %.2f | %.2f s |", totals[s.Image].Seconds(), s.Took.Seconds())
	}
	fmt.Fprintln(w)
}
