package main

import (
	"os"
	"path/filepath"
	"testing"
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
