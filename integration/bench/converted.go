package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/daxfs/containerd-daxfs/integration/images"
	"github.com/daxfs/containerd-daxfs/integration/lab"
	"github.com/daxfs/containerd-daxfs/integration/report"
)

// convertedSample is one pull of an image in one of its forms, or why there is
// none.
type convertedSample struct {
	Image string        `json:"image"`
	Form  string        `json:"form"`
	State string        `json:"state"` // pulled: the pool had nothing of it; again: the pool had it, for another namespace
	Round int           `json:"round"`
	Blobs int64         `json:"blobs,omitempty"`
	Took  time.Duration `json:"took,omitempty"` // until a container's root file system was mounted
	usage
	Missing string `json:"missing,omitempty"`
}

// Forms of an image.
const (
	ordinary  = "ordinary, gzip"
	daxfsRaw  = "DAXFS"
	daxfsZstd = "DAXFS +zstd"
)

// States of a pull.
const (
	pulled = "pulled"
	again  = "again"
)

// conversions are the commands that make a form out of the ordinary one; the
// names of the image and of the new one follow.
var conversions = []struct {
	form string
	args []string
}{
	{daxfsRaw, []string{"images", "convert", "--daxfs"}},
	{daxfsZstd, []string{"images", "convert", "--daxfs", "--daxfs-compression", "zstd"}},
}

// converter is the command that has them, a directory in cmd.
const converter = "ctr-daxfs"

// measureConverted pulls an image as it is and converted, in turn.
func (b *bench) measureConverted(ctx context.Context, raw *report.Raw) error {
	p := peersNamed(ours)[0]
	l := b.lab(p, modes[1])
	nctx := namespace(ctx, l, "bench")
	layout, err := b.layout(b.converted)
	if err != nil {
		return err
	}
	served := map[string]*images.Layout{b.converted: layout}
	forms := []struct{ form, name string }{{ordinary, b.converted}}
	l.Registry.Add(b.converted, layout.Dir)
	for i, c := range conversions {
		name := fmt.Sprintf("%s-converted%d", b.converted, i)
		layout, err := b.convert(nctx, l, p, name, c.args)
		if err != nil {
			log.Printf("%s is not measured: %v", c.form, err)
			if err := raw.Add(convertedSample{Image: b.converted, Form: c.form, Missing: err.Error()}); err != nil {
				return err
			}
			continue
		}
		l.Registry.Add(name, layout.Dir)
		served[name] = layout
		forms = append(forms, struct{ form, name string }{c.form, name})
	}
	if err := b.forget(nctx, l, p, b.converted); err != nil {
		return err
	}
	for round := range b.rounds {
		for _, f := range rotate(forms, round) {
			s := convertedSample{Image: b.converted, Form: f.form, Round: round}
			if err := b.pullTwice(nctx, l, p, f.name, served[f.name], s, raw); err != nil {
				return fmt.Errorf("%s: %w", f.form, err)
			}
		}
	}
	return nil
}

// pullTwice pulls an image, and then for another namespace, while the pool has it.
func (b *bench) pullTwice(ctx context.Context, l *lab.Lab, p peer, name string, layout *images.Layout, s convertedSample, raw *report.Raw) error {
	if err := cache(layout, true); err != nil {
		return err
	}
	layers, err := layout.Layers()
	if err != nil {
		return err
	}
	for _, layer := range layers {
		s.Blobs += layer.Size
	}
	settle()
	second := namespace(ctx, l, "bench2")
	for _, pull := range []struct {
		state string
		ctx   context.Context
	}{{pulled, ctx}, {again, second}} {
		leased, release, err := l.Client().WithLease(pull.ctx)
		if err != nil {
			return err
		}
		meter, err := begin(l.Daemons())
		if err != nil {
			return err
		}
		start := time.Now()
		img, err := l.Pull(pull.ctx, name, p.snapshotter, lab.Transfer)
		if err != nil {
			return err
		}
		remove, err := prepareContainer(leased, l, img, p.snapshotter)
		s.State, s.Took = pull.state, time.Since(start)
		if err != nil {
			return err
		}
		if s.usage, err = meter.end(); err != nil {
			return err
		}
		if err := errors.Join(remove(), release(pull.ctx)); err != nil {
			return err
		}
		if out, err := l.Run(pull.ctx, img, p.snapshotter, "true"); err != nil {
			return fmt.Errorf("run true: %w: %s", err, out)
		}
		log.Printf("%s, %s: %.3f s", s.Form, s.State, s.Took.Seconds())
		if err := raw.Add(s); err != nil {
			return err
		}
	}
	l.RemoveImage(second, name)
	return b.forget(ctx, l, p, name)
}

// convert makes another form of the image and returns it as a layout that the
// registry can serve.
func (b *bench) convert(ctx context.Context, l *lab.Lab, p peer, name string, args []string) (*images.Layout, error) {
	source := filepath.Join(lab.RepoRoot(), "cmd", converter)
	if _, err := os.Stat(source); err != nil {
		return nil, fmt.Errorf("this tree has no command %s", converter)
	}
	binary := filepath.Join(lab.CacheDir(), "test-bin", converter)
	cmd := exec.CommandContext(ctx, "go", "build", "-o", binary, source)
	cmd.Dir = lab.RepoRoot()
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build %s: %w: %s", converter, err, out)
	}
	if _, err := l.Pull(ctx, b.converted, p.snapshotter, lab.Transfer); err != nil {
		return nil, err
	}
	ns, _ := namespaces.Namespace(ctx)
	args = append([]string{"--address", l.Endpoint(), "--namespace", ns}, args...)
	if out, err := exec.CommandContext(ctx, binary, append(args, l.Ref(b.converted), l.Ref(name))...).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s %v: %w: %s", converter, args, err, out)
	}
	layout, err := export(ctx, l.Client(), l.Ref(name), filepath.Join(l.Dir, name))
	l.RemoveImage(ctx, name)
	return layout, err
}

// export writes an image of containerd as a layout into dir.
func export(ctx context.Context, c *client.Client, ref, dir string) (*images.Layout, error) {
	img, err := c.ImageService().Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	go func() {
		w.CloseWithError(c.Export(ctx, w, archive.WithManifest(img.Target, ref), archive.WithAllPlatforms()))
	}()
	defer r.Close()
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return &images.Layout{Dir: dir}, nil
		}
		if err != nil {
			return nil, fmt.Errorf("export %s: %w", ref, err)
		}
		if !filepath.IsLocal(h.Name) {
			return nil, fmt.Errorf("export %s: entry %q leads out of the directory", ref, h.Name)
		}
		path := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			if err := os.MkdirAll(path, 0o755); err != nil {
				return nil, err
			}
			continue
		}
		if err := writeFile(path, t); err != nil {
			return nil, err
		}
	}
}

func writeFile(path string, r io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}
