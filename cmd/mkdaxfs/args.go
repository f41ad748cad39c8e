package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v2"

	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

type sourceKind int

const (
	fromDir sourceKind = iota
	fromTar
	fromOCI
)

// config is a parsed command line for building.
type config struct {
	kind     sourceKind
	source   string // path; "-" is standard input
	ref      string // OCI
	platform platforms.MatchComparer
	output   string
	size     int64
	v8       bool
	drop     bool
	noErofs  bool
	share    bool
	json     bool
	quiet    bool
	epoch    *int64   // SOURCE_DATE_EPOCH
	prefetch []string // hot files, first in the image
}

// permute moves options before the other arguments, as getopt_long and so
// upstream's mkdaxfs does; package flag stops at the first argument.
func permute(flags []cli.Flag, args []string) ([]string, error) {
	withValue := make(map[string]bool)
	for _, f := range flags {
		if _, ok := f.(*cli.BoolFlag); ok {
			continue
		}
		for _, n := range f.Names() {
			withValue[n] = true
		}
	}
	out, rest := []string{args[0]}, []string(nil)
	for i := 1; i < len(args); i++ {
		a := args[i]
		if a == "--" {
			rest = append(rest, args[i+1:]...)
			break
		}
		if len(a) < 2 || a[0] != '-' {
			rest = append(rest, a)
			continue
		}
		out = append(out, a)
		if withValue[strings.TrimLeft(a, "-")] {
			if i+1 == len(args) {
				return nil, usagef("option %s needs a value", a)
			}
			i++
			out = append(out, args[i])
		}
	}
	return append(append(out, "--"), rest...), nil
}

func parse(c *cli.Context) (*config, error) {
	cfg := &config{
		output: c.String("o"), drop: c.Bool("drop"), noErofs: c.Bool("no-erofs"),
		share: c.Bool("share"), json: c.Bool("json"), quiet: c.Bool("quiet"),
	}
	sources := 0
	for _, s := range []struct {
		flag string
		kind sourceKind
	}{{"d", fromDir}, {"tar", fromTar}, {"oci", fromOCI}} {
		if c.IsSet(s.flag) {
			cfg.kind, cfg.source = s.kind, c.String(s.flag)
			sources++
		}
	}
	switch n := c.NArg(); {
	case sources+n == 0:
		return nil, usagef("no source: want -d DIR, --tar FILE, --oci DIR[:REF] or a path")
	case sources+n > 1:
		return nil, usagef("%d sources, want one", sources+n)
	case n == 1:
		var err error
		if cfg.kind, err = guess(c.Args().First()); err != nil {
			return nil, err
		}
		cfg.source = c.Args().First()
	}
	if cfg.source == "" {
		return nil, usagef("the source is an empty string")
	}
	if cfg.output == "" {
		return nil, usagef("no output: want -o IMAGE")
	}
	switch v := c.String("compat"); v {
	case "":
	case "v8":
		cfg.v8 = true
	default:
		return nil, usagef("--compat=%s: only v8 is known", v)
	}
	if cfg.kind == fromOCI {
		cfg.source, cfg.ref = splitRef(cfg.source)
	}
	if p := c.String("platform"); p != "" {
		if cfg.kind != fromOCI {
			return nil, usagef("--platform is for OCI layouts")
		}
		spec, err := platforms.Parse(p)
		if err != nil {
			return nil, usagef("--platform %s: %w", p, err)
		}
		cfg.platform = platforms.Only(spec)
	}
	if s := c.String("s"); s != "" {
		var err error
		if cfg.size, err = parseSize(s); err != nil {
			return nil, usagef("-s %s: %w", s, err)
		}
	}
	if name := c.String("prefetch"); name != "" {
		var err error
		if cfg.prefetch, err = mkdaxfs.ReadPrefetchFile(name); err != nil {
			return nil, err
		}
	}
	if s := os.Getenv("SOURCE_DATE_EPOCH"); s != "" {
		t, err := strconv.ParseInt(s, 10, 64)
		if err != nil || t < 0 {
			return nil, usagef("SOURCE_DATE_EPOCH=%s: want seconds since 1970", s)
		}
		cfg.epoch = &t
	}
	return cfg, nil
}

// guess says what kind of source a path without an option is.
func guess(path string) (sourceKind, error) {
	if path == "-" {
		return fromTar, nil
	}
	fi, err := os.Stat(path)
	if err != nil {
		if dir, ref := splitRef(path); ref != "" && isLayout(dir) {
			return fromOCI, nil
		}
		return 0, err
	}
	if !fi.IsDir() {
		return fromTar, nil
	}
	if isLayout(path) {
		return 0, usagef("%s is a directory and an OCI layout: say which with -d or --oci", path)
	}
	return fromDir, nil
}

func isLayout(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, ocispec.ImageLayoutFile))
	return err == nil
}

// splitRef splits DIR[:REF]. Both may contain colons: the longest directory
// that is there wins.
func splitRef(s string) (dir, ref string) {
	for i := len(s); i > 0; i-- {
		if i < len(s) && s[i] != ':' {
			continue
		}
		if fi, err := os.Stat(s[:i]); err == nil && fi.IsDir() {
			return s[:i], strings.TrimPrefix(s[i:], ":")
		}
	}
	return s, ""
}

// parseSize reads bytes with the suffixes of upstream's -s.
func parseSize(s string) (int64, error) {
	const units = "KMG"
	num, shift := s, 0
	if i := strings.IndexByte(units, s[len(s)-1]&^0x20); i >= 0 {
		num, shift = s[:len(s)-1], 10*(i+1)
	}
	n, err := strconv.ParseInt(num, 10, 64)
	if err != nil {
		err = errors.Unwrap(err)
		return 0, fmt.Errorf("want a number and one of K, M, G: %w", err)
	}
	if n <= 0 || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("want more than 0 and less than %d bytes", int64(math.MaxInt64))
	}
	return n << shift, nil
}

// kindNames are for messages and JSON.
var kindNames = []string{fromDir: "directory", fromTar: "tar", fromOCI: "oci"}

func (k sourceKind) String() string { return kindNames[k] }

// unset reports options that do not go together with --check.
func unset(c *cli.Context, allowed ...string) error {
	for _, n := range c.FlagNames() {
		if !slices.Contains(allowed, n) {
			return usagef("-%s does not go together with --check", n)
		}
	}
	if c.NArg() > 0 {
		return usagef("argument %q does not go together with --check", c.Args().First())
	}
	return nil
}
