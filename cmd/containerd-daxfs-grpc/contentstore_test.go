package main

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// A containerd that is not there, or was, cannot be asked now: no call hangs.
func TestContentStoreUnavailable(t *testing.T) {
	dir := t.TempDir()
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "stale"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	if err := stale.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"none", "stale"} {
		c := &contentStore{address: filepath.Join(dir, name)}
		start := time.Now()
		err := c.Apply(t.Context(), digest.FromString("chain"), nil)
		if !errdefs.IsUnavailable(err) {
			t.Errorf("%s: %v, want %v", name, err, errdefs.ErrUnavailable)
		}
		if took := time.Since(start); took > dialWait+5*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
		t.Logf("%s: %v", name, err)
	}
}
