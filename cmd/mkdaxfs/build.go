package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/convert"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// result is what a build prints.
type result struct {
	Image   string `json:"image"`
	Source  string `json:"source"`
	Kind    string `json:"source_kind"`
	Dialect string `json:"dialect"`
	Erofs   bool   `json:"erofs"`
	*mkdaxfs.BuildStats
	Manifest string            `json:"manifest,omitempty"` // OCI
	Platform string            `json:"platform,omitempty"` // OCI
	Seconds  float64           `json:"seconds"`
	Dropped  []convert.Warning `json:"dropped,omitempty"`
	Warnings []convert.Warning `json:"warnings,omitempty"`
	// Hidden is what a v8 image carries but the public module does not show.
	Hidden *hidden `json:"hidden_from_v8,omitempty"`
}

func runBuild(ctx context.Context, cfg *config, std streams) error {
	start := time.Now()
	res := &result{Source: cfg.source, Kind: cfg.kind.String(), Dialect: "native", Erofs: !cfg.v8 && !cfg.noErofs}
	out, err := newOutput(cfg.output)
	if err != nil {
		return err
	}
	defer out.discard()
	var failed error
	done := make(chan struct{})
	go func() {
		defer close(done)
		failed = build(ctx, cfg, std, out, res)
	}()
	select {
	case <-done:
		err = failed
	case <-ctx.Done():
		// The build ends by itself, unless it waits for standard input; then
		// it ends with the program.
		select {
		case <-done:
		case <-time.After(time.Second):
		}
		err = ctx.Err()
	}
	if err == nil {
		err = out.commit()
	}
	if err != nil {
		return explain(err, out.path)
	}
	res.Image = cfg.output
	res.Seconds = time.Since(start).Seconds()
	return report(cfg, std, res)
}

// build writes the image to out and checks it.
func build(ctx context.Context, cfg *config, std streams, out *output, res *result) error {
	b, err := mkdaxfs.NewBuilder(out.File, mkdaxfs.BuildOptions{
		V8: cfg.v8, NoErofs: cfg.noErofs, Share: cfg.share, Size: cfg.size,
		// Upper layers replace files of lower ones.
		Spool:    cfg.kind == fromOCI,
		Prefetch: cfg.prefetch,
	})
	if err != nil {
		return err
	}
	defer func() { _ = b.Close() }() // of an unlinked file
	bar := newProgress(std.err, cfg)
	tree, err := readSource(ctx, cfg, std, b, bar, res)
	bar.finish()
	if err != nil {
		return err
	}
	if cfg.epoch != nil {
		clampTimes(tree, *cfg.epoch)
	}
	if res.Dropped, err = fit(tree, cfg.v8, cfg.drop); err != nil {
		return err
	}
	if cfg.v8 {
		res.Dialect = "v8"
		res.Hidden = hiddenFromV8(tree)
	}
	if res.BuildStats, err = b.Finish(ctx, tree); err != nil {
		return err
	}
	img, err := mkdaxfs.Open(out, res.Size)
	if err == nil {
		_, err = mkdaxfs.Check(img, 0)
	}
	if err != nil {
		return fmt.Errorf("check the new image: %w", err)
	}
	return nil
}

// explain adds what the user needs to know about errors of the output's file
// system.
func explain(err error, output string) error {
	switch {
	case errors.Is(err, unix.ENOSPC):
		var fs unix.Statfs_t
		if e := unix.Statfs(filepath.Dir(output), &fs); e == nil {
			return fmt.Errorf("%w (the file system of %s has room for %d bytes, %d free now that nothing is kept)",
				err, output, fs.Blocks*uint64(fs.Bsize), fs.Bavail*uint64(fs.Bsize))
		}
	case errors.Is(err, unix.EFBIG):
		return fmt.Errorf("%w (a limit of the file system of %s, or ulimit -f)", err, output)
	}
	return err
}

func report(cfg *config, std streams, res *result) error {
	if !cfg.quiet && !cfg.json {
		for _, w := range res.Warnings {
			fmt.Fprintf(std.err, "mkdaxfs: warning: %q: %s\n", w.Path, w.Reason)
		}
		for _, w := range res.Dropped {
			fmt.Fprintf(std.err, "mkdaxfs: dropped %q: %s\n", w.Path, w.Reason)
		}
		for _, w := range prefetchWarnings(res.Prefetch) {
			fmt.Fprintf(std.err, "mkdaxfs: warning: prefetch list: %s\n", w)
		}
		if h := res.Hidden; h != nil && *h != (hidden{}) {
			fmt.Fprintf(std.err, "mkdaxfs: the image carries %s, which readers of v8 do not show\n", h)
		}
	}
	switch {
	case cfg.json:
		return printJSON(std.out, res)
	case !cfg.quiet:
		_, err := fmt.Fprintf(std.out, "%s: %d inodes, %d bytes: %d of files, %d of metadata (%d an inode)\n",
			res.Image, res.Inodes, res.Size, res.DataBytes, res.MetaBytes, res.MetaBytes/int64(res.Inodes))
		if p := res.Prefetch; p != nil && err == nil {
			_, err = fmt.Fprintf(std.out, "%s: %d files of the prefetch list, %d bytes, lie first, from %d to %d\n", res.Image, p.Files, p.Bytes, p.Offset, p.End)
		}
		return err
	}
	return nil
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// runCheck is mkdaxfs --check.
func runCheck(c *cli.Context, std streams) error {
	if err := unset(c, "check", "json", "quiet", "q"); err != nil {
		return err
	}
	name := c.String("check")
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd) // of block devices too
	if err != nil {
		return err
	}
	img, err := mkdaxfs.Open(f, size)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	rep, err := mkdaxfs.Check(img, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	switch {
	case c.Bool("json"):
		return printJSON(std.out, struct {
			Image string `json:"image"`
			*mkdaxfs.Report
		}{name, rep})
	case !c.Bool("quiet"):
		_, err = fmt.Fprintf(std.out, "%s: sound: dialect %s, %d inodes, %d names, %d bytes of files, %d of metadata\n",
			name, rep.Dialect, rep.Inodes, rep.Names, rep.DataSize, rep.MetaSize)
	}
	return err
}
