package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/config"
)

// Kernels at a pool are listed and can be declared gone, one by one, and the
// owner only if that is meant.
func TestLease(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "daxfsctl-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ctx, place := context.Background(), filepath.Join(dir, "pool")
	pool, err := daxmem.OpenOrCreate(ctx, place, daxmem.Options{MaxSize: 64 << 20, Instance: "host", Holder: "node:/root"})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	region, err := daxmem.OpenRegionShared(place)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := daxmem.Attach(ctx, region, daxmem.Options{Instance: "vm", Holder: "guest:/root"})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()

	ctl := func(code int, args ...string) string {
		t.Helper()
		var out, errOut bytes.Buffer
		args = append(append([]string{"daxfsctl"}, args...), "--pool", place, "--root", dir)
		if got := run(ctx, args, &out, &errOut); got != code {
			t.Errorf("%q: exit status %d, want %d", args, got, code)
		}
		return out.String() + errOut.String()
	}
	wants(t, ctl(0, "lease", "ls"), "owner   host", "reader  vm", "guest:/root")
	wants(t, ctl(1, "lease", "evict", "63"), "seat 63 is free")
	wants(t, ctl(2, "lease", "evict", "x"), "not a number")
	wants(t, ctl(1, "lease", "evict", "0"), "seat 0 (host) is the pool's owner")
	wants(t, ctl(1, "lease", "evict", "--owner", "1"), "seat 1 (vm) is a reader")
	wants(t, ctl(1, "pool", "create", "--force"), "another owner")
	wants(t, ctl(0, "lease", "evict", "1"), "seat 1 (vm): evicted, 0 pins let go")
	if out := ctl(0, "lease", "ls"); strings.Contains(out, "guest") {
		t.Errorf("after the eviction:\n%s", out)
	}
	if err := reader.Check(); err == nil {
		t.Error("the evicted kernel does not notice")
	}
}

// Seats have the orchestrator's word beside them, and doctor tells whether there
// is anybody to ask.
func TestLeaseInstances(t *testing.T) {
	s := newSite(t)
	tree := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(tree, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tree, path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s.share = fmt.Sprintf("instances = \"multikernel:%s\"", tree)
	region, err := daxmem.OpenRegionShared(s.poolPath())
	if err != nil {
		t.Fatal(err)
	}
	reader, err := daxmem.Attach(t.Context(), region, daxmem.Options{Instance: "vm", Holder: "guest:/root"})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()

	wants(t, s.good("lease", "ls"), "owner   -         -", "vm        running (this kernel)")
	asked := func() seatJSON {
		t.Helper()
		_, errOut, code := s.ctl("lease", "ls") // writes the configuration
		cfg, err := config.Load(filepath.Join(s.dir, "config.toml"))
		if err != nil || code != 0 {
			t.Fatal(err, errOut)
		}
		seats := []seatJSON{{Boot: "other", Instance: "vm"}, {Boot: "other"}}
		if err := askInstances(t.Context(), cfg, seats, "this"); err != nil || seats[1].State != "" {
			t.Fatalf("%+v, %v", seats, err)
		}
		return seats[0]
	}
	if got := asked(); got.State != "unclear" || !strings.Contains(got.Word, "stat "+tree+"/device_tree") {
		t.Errorf("%+v", got)
	}
	if c := s.check("instances"); c.Status != fail || !strings.Contains(c.Detail, "mount -t multikernel none "+tree) {
		t.Errorf("%+v", c)
	}
	write("device_tree", "")
	write("instances/vm/status", "active\n")
	for status, want := range map[string]string{"active": "running", "ready": "stopped", "loaded": "unclear"} {
		write("instances/vm/status", status)
		if got := asked(); got.State != want || got.Word != status || got.state() != want+" ("+status+")" {
			t.Errorf("%s: %+v", status, got)
		}
	}
	write("instances/vm/status", "ready")
	write("instances/other/status", "active")
	if c := s.check("instances"); c.Status != ok || !strings.Contains(c.Detail, tree+": 2 instances, 1 running; seats") {
		t.Errorf("%+v", c)
	}
	if err := os.RemoveAll(filepath.Join(tree, "instances", "vm")); err != nil {
		t.Fatal(err)
	}
	if got := asked(); got.state() != "absent" {
		t.Errorf("%+v", got)
	}

	// Nothing is configured: what is there is told.
	d := &doctor{ctx: t.Context(), cfg: config.Default(), multikernel: tree}
	d.instances()
	if c := d.checks[0]; c.Status != ok || !strings.Contains(c.Detail, "1 running; not asked: share.instances = ") {
		t.Errorf("%+v", c)
	}
	d = &doctor{ctx: t.Context(), cfg: config.Default(), multikernel: t.TempDir()}
	d.instances()
	if c := d.checks[0]; c.Status != ok || !strings.Contains(c.Detail, "no orchestrator") {
		t.Errorf("%+v", c)
	}
}
