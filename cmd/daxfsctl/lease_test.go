package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/daxmem"
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
