package main

import (
	"context"
	"fmt"
	"log"
	"math"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"

	"github.com/daxfs/containerd-daxfs/integration/report"
)

// profileSample says where the CPU time of an unpack by our differ went.
type profileSample struct {
	Image string `json:"image"`
	sizes
	Took time.Duration `json:"took"`
	// Shares are CPU times by what was done.
	Shares map[string]time.Duration `json:"shares"`
}

// Kinds of work, in the order of the table.
const (
	external   = "gunzip, external program"
	piping     = "pipes to and from that program, buffers"
	inflating  = "decompression in the daemon"
	sha256Work = "SHA-256"
	blake3Work = "BLAKE3"
	copying    = "copying into the pool"
	metadata   = "tar, index, catalog, checks"
	reading    = "reading the blob from containerd (gRPC)"
	containerd = "containerd's side"
	runtimes   = "Go runtime: scheduling, garbage"
	other      = "other"
)

var works = []string{external, piping, inflating, sha256Work, blake3Work, copying, metadata, reading, containerd, runtimes, other}

// measureProfile unpacks with our daemon's CPU profile running.
func (b *bench) measureProfile(ctx context.Context, raw *report.Raw) error {
	for _, image := range b.unpacked {
		s := profileSample{Image: image}
		var err error
		if s.sizes, err = b.sizes(image); err != nil {
			return err
		}
		if err := b.profile(ctx, &s); err != nil {
			return fmt.Errorf("profile of %s: %w", image, err)
		}
		if err := raw.Add(s); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) profile(ctx context.Context, s *profileSample) error {
	p := peersNamed(ours)[0]
	l := b.lab(p, modes[0])
	nctx := namespace(ctx, l, "bench")
	// How long it takes is only known afterwards: the first one tells, and the
	// profile of the second goes on for longer.
	var took time.Duration
	for _, profiled := range []bool{false, true} {
		img, err := b.fetch(nctx, p, s.Image)
		if err != nil {
			return err
		}
		settle()
		type result struct {
			p   *profile.Profile
			err error
		}
		results := make(chan result, 1)
		if profiled {
			go func() {
				p, err := cpuProfile(ctx, l.DebugSocket(), int(math.Ceil(1.5*took.Seconds()))+2)
				results <- result{p, err}
			}()
			time.Sleep(500 * time.Millisecond) // there is no sign that a profile has begun
		}
		meter, err := begin(l.Daemons())
		if err != nil {
			return err
		}
		start := time.Now()
		if err := img.Unpack(nctx, p.snapshotter); err != nil {
			return err
		}
		took = time.Since(start)
		u, err := meter.end()
		if err != nil {
			return err
		}
		if profiled {
			r := <-results
			if r.err != nil {
				return r.err
			}
			s.Took = took
			s.Shares = sharesOf(r.p)
			s.Shares[external] = u.Children[ours]
			s.Shares[containerd] = u.CPU["containerd"]
			log.Printf("profile of %s: %v", s.Image, s.Shares)
		}
		if err := b.forget(nctx, l, p, s.Image); err != nil {
			return err
		}
	}
	return nil
}

// cpuProfile asks a debug socket for a profile of some seconds.
func cpuProfile(ctx context.Context, socket string, secs int) (*profile.Profile, error) {
	c := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	defer c.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://daemon/debug/pprof/profile?seconds=%d", secs), nil)
	if err != nil {
		return nil, err
	}
	r, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask for a profile: %s", r.Status)
	}
	return profile.Parse(r.Body)
}

// sharesOf adds up the CPU time of a profile's samples by the work they are part
// of.
func sharesOf(p *profile.Profile) map[string]time.Duration {
	cpu := slices.IndexFunc(p.SampleType, func(t *profile.ValueType) bool { return t.Type == "cpu" })
	shares := map[string]time.Duration{}
	for _, s := range p.Sample {
		var stack []string // innermost first
		for _, loc := range s.Location {
			for _, line := range loc.Line {
				stack = append(stack, line.Function.Name)
			}
		}
		shares[workOf(stack)] += time.Duration(s.Value[cpu])
	}
	return shares
}

// works are told by the innermost function that belongs to one. What has no such
// function is the runtime's own, or other.
var prefixes = []struct{ prefix, work string }{
	{"crypto/sha256.", sha256Work}, {"crypto/internal/fips140/sha256.", sha256Work}, {"github.com/minio/sha256-simd.", sha256Work},
	{"github.com/zeebo/blake3", blake3Work},
	{"github.com/klauspost/compress/", inflating}, {"compress/", inflating}, {"hash/crc32.", inflating},
	{"github.com/daxfs/containerd-daxfs/internal/gunzip.", piping}, {"github.com/klauspost/readahead.", piping},
	{"google.golang.org/", reading}, {"golang.org/x/net/http2", reading}, {"github.com/containerd/containerd/v2/core/content", reading},
	{"github.com/containerd/containerd/api/", reading},
	{"runtime.gcBgMarkWorker", runtimes}, {"runtime.schedule", runtimes}, {"runtime.mcall", runtimes}, {"runtime.bgsweep", runtimes},
	{"runtime.bgscavenge", runtimes},
	{"archive/tar.", metadata}, {"go.etcd.io/bbolt", metadata}, {"github.com/erofs/", metadata},
	{"github.com/daxfs/containerd-daxfs/", metadata},
}

// copies are the functions that move bytes.
var copies = []string{
	"runtime.memmove", "runtime.memclrNoHeapPointers", "syscall.Pwrite", "golang.org/x/sys/unix.Pwrite", "internal/poll.(*FD).Pwrite",
	"os.(*File).WriteAt", "github.com/daxfs/containerd-daxfs/daxmem.copy",
}

func workOf(stack []string) string {
	copied := false
	for _, f := range stack {
		copied = copied || slices.ContainsFunc(copies, func(c string) bool { return strings.HasPrefix(f, c) })
		for _, p := range prefixes {
			if !strings.HasPrefix(f, p.prefix) {
				continue
			}
			// Whatever our code, or tar for it, moves goes towards the pool.
			if copied && p.work == metadata {
				return copying
			}
			return p.work
		}
	}
	if len(stack) > 0 && strings.HasPrefix(stack[len(stack)-1], "runtime.") {
		return runtimes
	}
	return other
}
