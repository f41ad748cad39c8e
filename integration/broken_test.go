package integration

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/daxfs/containerd-daxfs/integration/images"
	"github.com/daxfs/containerd-daxfs/integration/lab"
)

// Images whose last layer is damaged are refused, whichever way they are
// pulled, and leave nothing behind.
func TestBrokenImages(t *testing.T) {
	for _, mode := range unpackModes {
		t.Run(mode.name, func(t *testing.T) {
			l := lab.New(t, mode.Config)
			good := l.Image("rootopaque")
			empty := daemonBytes(l)
			for _, how := range images.Damages {
				for _, method := range lab.Methods {
					name := string(how[:5]) + "-" + string(method)
					name = regexp.MustCompile(`[^a-z-]`).ReplaceAllString(name, "")
					t.Run(string(how)+"/"+string(method), func(t *testing.T) {
						l := l.For(t)
						ctx := l.Namespace(name)
						dir, err := os.MkdirTemp(filepath.Dir(good.Dir), "broken-")
						if err != nil {
							t.Fatal(err)
						}
						defer os.RemoveAll(dir) // blobs are hard links of the cache's
						broken, err := images.Break(good, dir, how)
						if err != nil {
							t.Fatal(err)
						}
						l.Registry.Add(name, broken.Dir)
						_, err = l.Pull(ctx, name, lab.Daxfs, method)
						if err == nil {
							t.Fatal("pulled without error")
						}
						t.Logf("refused: %v", err)
						l.RemoveImage(ctx, name) // a fetched image stays when unpacking fails
						l.Collect()
						if left := l.Snapshots(ctx, lab.Daxfs); len(left) > 0 {
							t.Errorf("snapshots left: %q", left)
						}
					})
				}
			}
			l.Eventually("space given back", func() bool { return daemonBytes(l) < empty+1<<20 })
			if got := daemonBytes(l); got >= empty+1<<20 {
				t.Errorf("%d bytes kept, %d before", got, empty)
			}
			ctx := l.Namespace("good")
			img := l.MustPull(ctx, "rootopaque", lab.Daxfs, lab.PullUnpack)
			if out, err := l.Run(ctx, img, lab.Daxfs, "true"); err != nil {
				t.Errorf("the undamaged image: %v %q", err, out)
			}
		})
	}
}

// A pool without room for an image says so, with sizes, and keeps nothing of
// it; smaller images go on working.
func TestPoolFull(t *testing.T) {
	if lab.Standin() {
		t.Skip("the stand-in has no pool")
	}
	l := lab.New(t, lab.Config{PoolSize: "64MiB"})
	ctx := l.Namespace("full")
	l.Image("debian")
	l.Image("nasty")
	small := l.MustPull(ctx, "nasty", lab.Daxfs, lab.PullUnpack)
	tree := l.ViewTree(ctx, small, lab.Daxfs)
	before := daemonBytes(l)
	for _, method := range lab.Methods {
		_, err := l.Pull(ctx, "debian", lab.Daxfs, method)
		switch {
		case err == nil:
			t.Fatalf("%s: 120 MB went into a pool of 64 MiB", method)
		case !errdefs.IsResourceExhausted(err):
			t.Errorf("%s: not a ResourceExhausted error: %v", method, err)
		case !regexp.MustCompile(`[0-9]`).MatchString(err.Error()):
			t.Errorf("%s: no sizes in the error: %v", method, err)
		}
		t.Logf("refused: %v", err)
		l.RemoveImage(ctx, "debian")
		l.Collect()
		l.Eventually("space given back", func() bool { return daemonBytes(l) < before+1<<20 })
		if got := daemonBytes(l); got >= before+1<<20 {
			t.Errorf("%s: %d bytes kept, %d before", method, got, before)
		}
	}
	same(t, "the image that was there", tree, l.ViewTree(ctx, small, lab.Daxfs))
	if _, err := l.Run(ctx, small, lab.Daxfs, "true"); err != nil {
		t.Error(err)
	}
	removeAll(t, l, ctx, []string{"nasty"})
}
