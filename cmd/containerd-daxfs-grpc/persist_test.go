package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

// A pool in memory gets a copy on disk when it is asked for; one that cannot be
// used is named.
func TestPersist(t *testing.T) {
	testutil.Root(t)
	s := newSite(t)
	memory, err := os.MkdirTemp("/dev/shm", "dxd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(memory) })
	text := fmt.Sprintf("root = %q\naddress = %q\n[pool]\npath = %q\nmax_size = \"64MiB\"\npersist = true\nkeep_unused = true\n", s.root, s.socket, memory+"/pool")
	if err := os.WriteFile(s.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	spill := filepath.Join(s.root, "spill.daxfs")
	for range 2 { // made, and opened again
		p := start(t, "--config", s.config)
		s.ready(t, p)
		p.signal(t, syscall.SIGTERM)
		if code := p.end(t); code != 0 {
			t.Fatalf("exit status %d", code)
		}
		if fi, err := os.Stat(spill); err != nil || fi.Size() != 64<<20 || fi.Mode() != 0o600 {
			t.Errorf("spill: %+v, %v", fi, err)
		}
	}
	if err := os.WriteFile(spill, []byte(strings.Repeat("garbage ", 1<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, "--config", s.config)
	if code := p.end(t); code != 1 {
		t.Errorf("exit status %d, want 1", code)
	}
	for _, w := range []string{spill, "not a pool", "it holds copies for pool.persist"} {
		if !strings.Contains(p.log.String(), w) {
			t.Errorf("does not say %q:\n%s", w, p.log.String())
		}
	}
}
