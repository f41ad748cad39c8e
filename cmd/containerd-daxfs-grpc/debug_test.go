package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

// Profiles are served to root alone, on their own socket only.
func TestDebugAddress(t *testing.T) {
	testutil.Root(t)
	s := newSite(t)
	socket := filepath.Join(s.dir, "debug.sock")
	p := start(t, "--config", s.config, "--debug-address", socket)
	s.ready(t, p)
	fi, err := os.Stat(socket)
	if err != nil || fi.Mode() != os.ModeSocket|0o600 {
		t.Fatalf("got %v, %v, want a socket with mode 0600", fi.Mode(), err)
	}
	c := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	defer c.CloseIdleConnections()
	r, err := c.Get("http://daemon/debug/pprof/goroutine?debug=1")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r.Body)
	r.Body.Close()
	if err != nil || r.StatusCode != http.StatusOK || !strings.Contains(string(b), "google.golang.org/grpc.(*Server).Serve") {
		t.Errorf("status %s, %v, want the daemon's goroutines:\n%s", r.Status, err, b)
	}
	p.signal(t, syscall.SIGTERM)
	if code := p.end(t); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
}
