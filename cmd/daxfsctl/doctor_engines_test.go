package main

import (
	"testing"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/config"
)

// An image is tried only where it stays: not while another kernel is at the pool,
// whose lock cannot be seen here.
func TestTrialImage(t *testing.T) {
	s := newSite(t)
	s.run("view", baseName()) // makes an image
	if err := s.sn.Remove(t.Context(), "view"); err != nil {
		t.Fatal(err)
	}
	s.close()
	boot, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	d := &doctor{ctx: t.Context(), boot: boot, cfg: &config.Config{Root: t.TempDir(), Pool: config.Pool{Path: s.poolPath()}}}
	trial := func() *daxmem.Record {
		t.Helper()
		pool, err := openPool(d.ctx, d.cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer shut(pool)
		return d.trialImage(pool)
	}
	if trial() == nil {
		t.Error("tries nothing where the daemon has stopped")
	}
	// The seat that it has left is another kernel's, for a kernel with another
	// boot ID.
	d.boot = "another"
	if got := trial(); got != nil {
		t.Errorf("tries %s while another kernel is at the pool", got.Name())
	}
	d.boot = boot
	s.open()
	if got := trial(); got != nil {
		t.Errorf("tries %s while the daemon runs", got.Name())
	}
}
