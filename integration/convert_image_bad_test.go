package integration

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/daxfs/containerd-daxfs/imageconvert"
	"github.com/daxfs/containerd-daxfs/integration/images"
	"github.com/daxfs/containerd-daxfs/integration/lab"
)

// DAXFS images that are damaged, hostile, for another machine or in the wrong
// place are refused through containerd, whichever way they are pulled, with the
// class that says why, and leave nothing.
func TestBadDaxfsImages(t *testing.T) {
	for _, mode := range unpackModes {
		if mode.Walking {
			continue
		}
		t.Run(mode.name, func(t *testing.T) { badDaxfsImages(t, lab.New(t, mode.Config)) })
	}
}

func badDaxfsImages(t *testing.T, l *lab.Lab) {
	pushes := filepath.Join(l.Dir, "tmp")
	l.Registry.AcceptPushes(pushes)
	ctx := l.Namespace("maker")
	ordinary := l.Image("rootopaque")
	l.MustPull(ctx, "rootopaque", lab.Daxfs, lab.PullUnpack)
	made := map[string]*images.Layout{}
	for _, compression := range []string{"none", "zstd"} {
		if _, err := l.CtrDaxfs(ctx, "images", "convert", "--daxfs", "--daxfs-compression", compression, l.Ref("rootopaque"), l.Ref(compression)); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Ctr(ctx, "images", "push", "--plain-http", l.Ref(compression)); err != nil {
			t.Fatal(err)
		}
		made[compression] = &images.Layout{Dir: filepath.Join(pushes, compression)}
		l.RemoveImage(ctx, compression)
	}
	l.RemoveImage(ctx, "rootopaque")
	l.Collect()
	emptyPool(t, l)
	empty := daemonBytes(l)

	layers, err := made["none"].Layers()
	if err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(made["none"].BlobPath(layers[0].Digest))
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(image)
	flipped[5000] ^= 1 // metadata
	newer := bytes.Clone(image)
	newer[6] = 2 // version 0x00020000
	damage := func(compression string, how images.Damage) func(dir string) (*images.Layout, error) {
		return func(dir string) (*images.Layout, error) { return images.Break(made[compression], dir, how) }
	}
	plain := func(from *images.Layout, b []byte) func(dir string) (*images.Layout, error) {
		return func(dir string) (*images.Layout, error) {
			return images.Plain(from, dir, imageconvert.MediaTypeLayer, b)
		}
	}
	any := func(error) bool { return true } // containerd's own
	for name, c := range map[string]struct {
		make  func(dir string) (*images.Layout, error)
		class func(error) bool
		says  string
	}{
		"cut":            {damage("none", images.Truncated), errdefs.IsInvalidArgument, "truncated"},
		"cut-zstd":       {damage("zstd", images.Truncated), errdefs.IsInvalidArgument, "zstd"},
		"diffid":         {damage("none", images.WrongDiffID), any, "sha256"},
		"diffid-zstd":    {damage("zstd", images.WrongDiffID), any, "sha256"},
		"digest":         {damage("none", images.WrongDigest), any, "digest"},
		"hostile":        {plain(nil, flipped), errdefs.IsDataLoss, "corrupt DAXFS image"},
		"newer":          {plain(nil, newer), errdefs.IsFailedPrecondition, "version 0x20000"},
		"behind":         {plain(nil, append(bytes.Clone(image), 0)), errdefs.IsInvalidArgument, "behind the end"},
		"mixed":          {plain(ordinary, image), errdefs.IsInvalidArgument, "lowest layer"},
		"no-daxfs-image": {plain(nil, []byte(strings.Repeat("x", 10_000))), errdefs.IsInvalidArgument, "not a DAXFS image"},
	} {
		for _, method := range lab.Methods {
			t.Run(name+"/"+string(method), func(t *testing.T) {
				l := l.For(t)
				repo := "bad-" + name + string(method)
				ctx := l.Namespace(repo)
				dir, err := os.MkdirTemp(filepath.Dir(ordinary.Dir), "broken-")
				if err != nil {
					t.Fatal(err)
				}
				defer os.RemoveAll(dir) // blobs may be hard links of the cache's
				bad, err := c.make(dir)
				if err != nil {
					t.Fatal(err)
				}
				l.Registry.Add(repo, bad.Dir)
				_, err = l.Pull(ctx, repo, lab.Daxfs, method)
				if err == nil || !c.class(err) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%v, want an error that says %q", err, c.says)
				}
				t.Logf("refused: %v", err)
				l.RemoveImage(ctx, repo)
				l.Collect()
				if left := l.Snapshots(ctx, lab.Daxfs); len(left) > 0 {
					t.Errorf("snapshots left: %q", left)
				}
			})
		}
	}
	l.Eventually("space given back", func() bool { return daemonBytes(l) < empty+1<<20 })
	ctx = l.Namespace("good")
	for _, compression := range []string{"none", "zstd"} {
		img := l.MustPull(ctx, compression, lab.Daxfs, lab.Transfer)
		if out, err := l.Run(ctx, img, lab.Daxfs, "true"); err != nil {
			t.Errorf("the undamaged image: %v %q", err, out)
		}
	}
}
