package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// What the dry run announces is what a collection frees, by the daemon and
// without it.
func TestPoolGC(t *testing.T) {
	for _, mode := range []string{"daemon", "daxfsctl"} {
		t.Run(mode, func(t *testing.T) {
			s := newSite(t)
			s.run("c", baseName())
			s.orphan()
			if mode == "daemon" {
				s.serve()
			} else {
				s.close()
				if err := os.Mkdir(filepath.Join(s.dir, "snapshots", "new-123"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			var dry, real, again gcJSON
			s.json(0, &dry, "pool", "gc", "--dry-run")
			if !dry.DryRun || dry.By != mode || len(dry.Removed) != 1 || dry.Bytes <= 8 || (dry.Dirs != nil) != (mode == "daxfsctl") {
				t.Fatalf("dry run: %+v", dry)
			}
			if mode == "daxfsctl" && (len(*dry.Dirs) != 1 || filepath.Base((*dry.Dirs)[0]) != "new-123") {
				t.Errorf("directories: %v", *dry.Dirs)
			}
			wants(t, s.good("pool", "gc", "-n"), "would free  layer", "1 record, ")
			s.json(0, &real, "pool", "gc")
			if real.DryRun || len(real.Removed) != 1 || real.Removed[0].Key != dry.Removed[0].Key || real.Bytes != dry.Bytes || len(real.Kept) > 0 {
				t.Errorf("announced %+v, freed %+v", dry, real)
			}
			s.json(0, &again, "pool", "gc")
			if len(again.Removed) != 0 {
				t.Errorf("freed twice: %+v", again.Removed)
			}
			var ls poolLsJSON
			s.json(0, &ls, "pool", "ls")
			if len(ls.Records) != 3 {
				t.Errorf("%d records are left, want 3", len(ls.Records))
			}
			if _, err := os.Stat(filepath.Join(s.dir, "snapshots", "new-123")); mode == "daxfsctl" && !os.IsNotExist(err) {
				t.Errorf("directory without a snapshot is still there: %v", err)
			}
		})
	}
}

// A wrong --root or --pool must not cost everything.
func TestPoolGCRefuses(t *testing.T) {
	s := newSite(t)
	s.close()
	empty := t.TempDir()
	_, errOut, code := s.ctl("pool", "gc", "--root", empty, "--pool", s.poolPath(), "--address", filepath.Join(empty, "s"))
	if code != 1 {
		t.Errorf("status %d", code)
	}
	wants(t, errOut, "there are no snapshots in "+empty, "are --root and --pool right?")

	out := s.good("pool", "ls")
	alone := &site{t: t, dir: t.TempDir()}
	alone.open()
	alone.layer("", map[string]string{"a": "1", "b": "2", "c": "3", "d": "4"})
	alone.close()
	_, errOut, code = s.ctl("pool", "gc", "--root", s.dir, "--pool", alone.poolPath())
	if code != 1 {
		t.Errorf("status %d", code)
	}
	wants(t, errOut, "holds none of the 2 layers", "are --root and --pool right?")
	if again := s.good("pool", "ls"); again != out {
		t.Errorf("the pool has changed:\n%s", again)
	}

	// The pool is in use, but not by a daemon that answers.
	s.open()
	_, errOut, code = s.ctl("pool", "gc")
	if code != 1 {
		t.Errorf("status %d", code)
	}
	wants(t, errOut, "daxfsctl: ", "is --address right?")
}

// On a kernel that may be a reader nothing is collected, and nothing announced:
// its snapshots do not tell what the owner's need.
func TestPoolGCOfReader(t *testing.T) {
	s := newSite(t)
	s.orphan() // which the owner's metadata could explain
	refused := func(role string, words ...string) {
		t.Helper()
		s.share = "own_pool = \"/nowhere/own\"\nrole = \"" + role + "\""
		for _, args := range [][]string{{"pool", "gc"}, {"pool", "gc", "--dry-run"}} {
			out, errOut, code := s.ctl(args...)
			if code != 1 || out != "" {
				t.Errorf("%v as %s: status %d\n%s", args, role, code, out)
			}
			wants(t, errOut, append(words, "share.role is \""+role+"\"", "failed precondition")...)
		}
	}
	s.serve()
	refused("reader", "another kernel's", "--pool /nowhere/own")
	s.close()
	refused("reader", "start this kernel's daemon", "on the owner")
	refused("auto", "start this kernel's daemon", "on the owner")
	var ls poolLsJSON
	if s.json(0, &ls, "pool", "ls"); len(ls.Records) != 3 {
		t.Errorf("%d records are left, want 3", len(ls.Records))
	}
	s.open()
	s.orphan()
	s.serve()
	// The daemon of "auto" owns the pool here.
	var dry gcJSON
	s.json(0, &dry, "pool", "gc", "--dry-run")
	if len(dry.Removed) != 1 {
		t.Errorf("%+v", dry)
	}
}

// A reader's daemon collects the pool that is its own, where nothing is kept for
// others.
func TestPoolGCOfReadersOwnPool(t *testing.T) {
	s := newSite(t)
	s.more, s.share = "keep_unused = true", "role = \"reader\""
	s.orphanChain()
	s.serve()
	var res gcJSON
	s.json(0, &res, "pool", "gc", "--dry-run")
	if len(res.Removed) != 1 || res.Removed[0].Kind != "chain" || res.By != "daemon" {
		t.Errorf("%+v", res)
	}
}

// What keep_unused keeps is not announced, and stays; without the daemon all of
// it goes.
func TestPoolGCKeepUnused(t *testing.T) {
	s := newSite(t)
	s.more = "keep_unused = true"
	s.keep = snapshotter.Keep{High: 90, Low: 75}
	s.close()
	s.open()
	s.serve()
	s.orphan()
	for _, name := range []string{appName(), baseName()} {
		if err := s.sn.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	s.orphan()
	for _, args := range [][]string{{"--dry-run"}, {}} {
		var res gcJSON
		s.json(0, &res, append([]string{"pool", "gc"}, args...)...)
		if len(res.Removed) != 1 || res.Removed[0].Kind != "layer" || len(res.Kept) != 0 {
			t.Errorf("%v: %+v", args, res)
		}
	}
	s.close()
	var res gcJSON
	s.json(0, &res, "pool", "gc")
	if len(res.Removed) != 4 { // two chains and their layers
		t.Errorf("without the daemon: %+v", res)
	}
}

// Who collects in the daemon's place has the daemon's seat, so that its pins are
// not another kernel's.
func TestPoolGCHasTheDaemonsSeat(t *testing.T) {
	s := newSite(t)
	s.close()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	region, err := daxmem.OpenRegion(s.poolPath())
	if err != nil {
		t.Fatal(err)
	}
	pool, err := daxmem.Open(t.Context(), region, daxmem.Options{Holder: host + ":" + s.dir, Instance: "host"})
	if err != nil {
		t.Fatal(err)
	}
	s.pool = pool
	s.orphan()
	var orphan [32]byte
	for _, r := range pool.Records() {
		orphan = r.Key
	}
	if _, _, err := pool.Pin(daxmem.KindLayer, orphan); err != nil { // as a daemon that was killed
		t.Fatal(err)
	}
	if err := pool.Close(); err != nil {
		t.Fatal(err)
	}
	s.share = "instance = \"host\""
	s.good("pool", "gc")
	var ls poolLsJSON
	if s.json(0, &ls, "pool", "ls"); len(ls.Records) != 2 {
		t.Errorf("%d records are left, want 2: one is kept for a daemon that has ended", len(ls.Records))
	}
}
