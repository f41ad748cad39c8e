package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/containerd/platforms"

	"github.com/daxfs/containerd-daxfs/convert"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// readSource puts the source's file contents into b and returns its tree.
func readSource(ctx context.Context, cfg *config, std streams, b *mkdaxfs.Builder, bar *progress, res *result) (*mkdaxfs.Tree, error) {
	switch cfg.kind {
	case fromDir:
		return convert.FromDir(ctx, cfg.source, b, convert.DirOptions{
			Progress: bar.set,
			Warn:     func(w convert.Warning) { res.Warnings = append(res.Warnings, w) },
		})
	case fromTar:
		return readTar(ctx, cfg, std, b, bar, res)
	}
	img, err := convert.OpenOCI(cfg.source, convert.OCIOptions{Ref: cfg.ref, Platform: cfg.platform})
	if err != nil {
		return nil, err
	}
	res.Manifest, res.Platform = img.Manifest.Digest.String(), platforms.Format(img.Platform)
	var total int64
	for _, l := range img.Layers {
		total += l.Size
	}
	bar.total(total)
	tree, warnings, err := img.Tree(ctx, b, convert.TarOptions{}, bar.add)
	res.Warnings = warnings
	return tree, err
}

func readTar(ctx context.Context, cfg *config, std streams, b *mkdaxfs.Builder, bar *progress, res *result) (*mkdaxfs.Tree, error) {
	f, name := std.in, "standard input"
	if cfg.source != "-" {
		var err error
		if f, err = os.Open(cfg.source); err != nil {
			return nil, err
		}
		defer f.Close()
		name = cfg.source
	}
	if fi, err := f.Stat(); err == nil && fi.Mode().IsRegular() {
		bar.total(fi.Size())
	}
	tree, warnings, err := convert.FromStream(ctx, &reading{f, bar}, nil, b, convert.TarOptions{Plain: true})
	res.Warnings = warnings
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return tree, nil
}

// reading tells the progress bar what was read.
type reading struct {
	r   io.Reader
	bar *progress
}

func (r *reading) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.bar.add(n)
	return n, err
}
