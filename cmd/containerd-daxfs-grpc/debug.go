package main

import (
	"context"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/containerd/log"
)

// serveDebug serves Go's profiles of this process on a unix socket, as containerd
// does on its debug address, until ctx ends. Whoever can write to the socket, root
// alone, can make the daemon slow.
func serveDebug(ctx context.Context, address string) error {
	l, err := listen(address)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	go func() {
		if err := s.Serve(l); ctx.Err() == nil {
			log.G(ctx).WithError(err).Warn("serve profiles")
		}
	}()
	return nil
}
