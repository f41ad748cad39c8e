package main

import (
	"encoding/hex"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// extentAt finds the extent of that many bytes.
func (s *site) extentAt(bytes int64) int64 {
	s.t.Helper()
	for _, o := range s.pool.Owners() {
		if o.Kind == daxmem.OwnExtent && o.Bytes == bytes {
			return o.Offset
		}
	}
	s.t.Fatalf("no extent of %d bytes", bytes)
	return 0
}

// A byte of a file: scrub names the file, its layers, the image that shows it,
// and who uses that, while the daemon is at work.
func TestPoolScrub(t *testing.T) {
	s := newSite(t)
	s.run("test/9/container", appName())
	s.serve()
	wants(t, s.good("pool", "scrub"), "nothing has changed: 3 records and 4 extents, ")
	var res scrubJSON
	s.json(0, &res, "pool", "scrub", "--rate", "0")
	if !res.OK || res.Rate != 0 || res.Extents != 4 || res.Bytes < 10000 || len(res.Changed) != 0 {
		t.Errorf("%+v", res)
	}
	at := s.extentAt(10000)
	if err := flip(s.poolPath(), at+9999); err != nil {
		t.Fatal(err)
	}
	s.json(1, &res, "pool", "scrub", "--rate", "1GiB")
	if res.OK || res.Rate != 1<<30 || res.From != "daemon" || len(res.Changed) != 1 || res.Changed[0].Offset != at || res.Changed[0].Size != 10000 {
		t.Fatalf("%+v", res)
	}
	found := make(map[string]string)
	for _, u := range res.Changed[0].Records {
		for _, p := range u.Paths {
			found[u.Kind+" "+p] = strings.Join(u.Snapshots, " ") + strings.Join(u.UsedBy, " ")
		}
	}
	for what, who := range map[string]string{
		"layer /shared":     baseName(),
		"layer /app/shared": appName(),
		"image /shared":     appName() + "test/9/container",
		"image /app/shared": appName() + "test/9/container",
	} {
		if found[what] != who {
			t.Errorf("%s: %q, want %q", what, found[what], who)
		}
	}
	out, errOut, code := s.ctl("pool", "scrub")
	if code != 1 || errOut != "" {
		t.Errorf("status %d, %s", code, errOut)
	}
	wants(t, out, "CHANGED  extent ", "as /app/shared", "container test/9/container", "snapshot "+baseName(), "1 place changed")

	// Without the daemon its metadata tells the same.
	s.close()
	s.json(1, &res, "pool", "scrub")
	kinds := make(map[string]int)
	for _, u := range res.Changed[0].Records {
		kinds[u.Kind]++
	}
	if res.From != "metadata" || len(res.Changed) != 1 || kinds["layer"] != 2 || kinds["image"] != 1 || kinds["chain"] != 2 {
		t.Errorf("%+v, records %v", res, kinds)
	}
	// And without that, the pool alone.
	var alone scrubJSON
	s.json(1, &alone, "pool", "scrub", "--root", t.TempDir(), "--pool", s.poolPath(), "--address", s.socket())
	if len(alone.Changed) != 1 || len(alone.Changed[0].Records) != 5 || len(alone.Changed[0].Records[0].Snapshots) != 0 {
		t.Errorf("%+v", alone)
	}
}

// A file that a later layer has replaced is damaged all the same, and the image
// does not show it.
func TestPoolScrubHidden(t *testing.T) {
	s := bareSite(t)
	s.open()
	base := s.layer("", map[string]string{"conf": strings.Repeat("old", 1000), "b": "b", "c": "c"})
	s.layer(base, map[string]string{"conf": "new", "d": "d"})
	s.run("c", appName())
	if err := flip(s.poolPath(), s.extentAt(3000)); err != nil {
		t.Fatal(err)
	}
	s.serve()
	out, _, code := s.ctl("pool", "scrub")
	if code != 1 {
		t.Errorf("status %d", code)
	}
	wants(t, out, "as /conf, snapshot "+baseName(), "which does not show it")
}

// Damaged metadata is named before files are read.
func TestPoolScrubMetadata(t *testing.T) {
	s := newSite(t)
	s.run("c", appName())
	s.serve()
	for _, r := range s.pool.Records() {
		if r.Kind == daxmem.KindImage {
			if err := flip(s.poolPath(), r.Offset+disk.BlockSize+100); err != nil {
				t.Fatal(err)
			}
		}
	}
	var res scrubJSON
	s.json(1, &res, "pool", "scrub")
	if len(res.Changed) != 1 || res.Changed[0].Records[0].Kind != "image" || len(res.Changed[0].Records[0].UsedBy) != 1 {
		t.Errorf("%+v", res.Changed)
	}
	// The chain's record: its slot in the catalog.
	for _, r := range s.pool.Chains() {
		if r.Below == [32]byte{} {
			continue
		}
		if err := flip(s.poolPath(), 4096+int64(r.Slot)*256+64); err != nil {
			t.Fatal(err)
		}
		s.json(1, &res, "pool", "scrub")
		if len(res.Changed) != 2 || res.Changed[0].Records[0].Key != hex.EncodeToString(r.Key[:]) {
			t.Errorf("%+v", res.Changed)
		}
	}
}

// A scrub keeps to its rate.
func TestPoolScrubRate(t *testing.T) {
	s := bareSite(t)
	s.open()
	s.layer("", map[string]string{"big": strings.Repeat("0123456789abcdef", 1<<17)}) // 2 MiB
	start := time.Now()
	s.good("pool", "scrub", "--rate", "4MiB/s")
	if took := time.Since(start); took < 450*time.Millisecond {
		t.Errorf("2 MiB at 4 MiB/s took %v", took)
	}
}

func TestPoolScrubRefuses(t *testing.T) {
	s := bareSite(t)
	for rate, want := range map[string]string{
		"fast":   `--rate: size "fast": want a number with an optional unit`,
		"-1":     "--rate",
		"-1MiB":  "--rate",
		"1000":   "--rate 1000: want at least 1MiB per second, or 0",
		"1KiB/s": "want at least 1MiB per second",
		"":       "--rate",
		"1MiB/h": "--rate",
	} {
		_, errOut, code := s.ctl("pool", "scrub", "--rate", rate)
		if code != exitUsage {
			t.Errorf("--rate %q: status %d, want %d: %s", rate, code, exitUsage, errOut)
		}
		wants(t, errOut, want)
	}
	wants(t, s.good("pool", "scrub"), "nothing has changed: 0 records and 0 extents")
	if err := os.Remove(s.poolPath()); err != nil {
		t.Fatal(err)
	}
	_, errOut, code := s.ctl("pool", "scrub")
	if code != exitBad {
		t.Errorf("no pool: status %d", code)
	}
	wants(t, errOut, "no such file or directory")
}
