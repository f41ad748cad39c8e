package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/config"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/internal/engine"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

const poolPrefix = "pool:"

// source is an image to look into.
type source struct {
	*mkdaxfs.Image
	name string
	// origin is the offset of the superblock in the file that holds the image;
	// extents are named by their offset in that file.
	origin int64
	rec    *daxmem.Record // of the pool, or nil
	region engine.Region  // what origin is an offset of
	pool   *daxmem.Pool   // the source's own, or nil
	owned  io.Closer      // closed with the source: that pool, or region; or nil
}

// shut closes what was only looked at, which cannot fail in a way that matters.
func shut(c io.Closer) { c.Close() }

func (s *source) Close() {
	if s.owned != nil {
		shut(s.owned)
	}
}

// openSource opens an image in a file or in memory, or pool:KEY.
func openSource(c *cli.Context, name string) (*source, error) {
	if spec, ok := strings.CutPrefix(name, poolPrefix); ok {
		cfg, err := loadConfig(c)
		if err != nil {
			return nil, err
		}
		return openPoolImage(c.Context, cfg, spec)
	}
	region, err := openImageRegion(name)
	if err != nil {
		return nil, err
	}
	origin := c.Int64("offset")
	if origin < 0 || origin > region.Size() || origin%disk.BlockSize != 0 {
		shut(region)
		return nil, usagef("--offset %d: want a multiple of %d, at most %d", origin, disk.BlockSize, region.Size())
	}
	size := region.Size() - origin
	img, err := mkdaxfs.Open(io.NewSectionReader(region, origin, size), size)
	if err != nil {
		shut(region)
		return nil, fmt.Errorf("%s: %w", escape(name), err)
	}
	return &source{Image: img, name: name, origin: origin, region: region, owned: region}, nil
}

// openImageRegion opens a file, a block device or a physical range.
func openImageRegion(name string) (imageRegion, error) {
	if strings.HasPrefix(name, "phys:") {
		return daxmem.OpenRegionReadOnly(name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil || fi.Mode().Type() != os.ModeDevice {
		f.Close()
		if err != nil {
			return nil, err
		}
		return daxmem.OpenFileReadOnly(name)
	}
	abs, err := filepath.Abs(name)
	if err == nil {
		// Memory, which the page cache would copy.
		if r, err := daxmem.OpenRegionReadOnly(abs); !errors.Is(err, daxmem.ErrInvalid) {
			f.Close()
			return r, err
		}
		var size int64
		if size, err = f.Seek(0, io.SeekEnd); err == nil {
			return blockDevice{f, size}, nil
		}
	}
	f.Close()
	return nil, err
}

// imageRegion is what an image that is not in the pool lies in.
type imageRegion interface {
	engine.Region
	io.Closer
}

// blockDevice is one that is not memory.
type blockDevice struct {
	*os.File
	size int64
}

func (b blockDevice) Size() int64     { return b.size }
func (b blockDevice) Kind() string    { return "block device" }
func (b blockDevice) Path() string    { return b.Name() }
func (b blockDevice) Address() uint64 { return 0 }

func openPoolImage(ctx context.Context, cfg *config.Config, spec string) (*source, error) {
	pool, err := openPool(ctx, cfg)
	if err != nil {
		return nil, err
	}
	rec, err := findRecord(ctx, cfg, pool, spec)
	if err != nil {
		shut(pool)
		return nil, err
	}
	s, err := recordSource(pool, rec)
	if err != nil {
		shut(pool)
		return nil, err
	}
	s.pool, s.owned = pool, pool
	return s, nil
}

// recordSource opens the image of a record; pool stays the caller's.
func recordSource(pool *daxmem.Pool, rec *daxmem.Record) (*source, error) {
	size := pool.Size() - rec.Offset
	img, err := mkdaxfs.Open(io.NewSectionReader(pool.Region(), rec.Offset, size), size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", rec.Name(), err)
	}
	return &source{Image: img, name: poolPrefix + hex.EncodeToString(rec.Key[:]), origin: rec.Offset, rec: rec, region: pool.Region()}, nil
}

// openPool opens the configured pool for inspection.
func openPool(ctx context.Context, cfg *config.Config) (*daxmem.Pool, error) {
	return openPoolAt(ctx, cfg.Pool.Path)
}

// openPoolAt opens the pool at a location for inspection.
func openPoolAt(ctx context.Context, location string) (*daxmem.Pool, error) {
	region, err := daxmem.OpenRegionReadOnly(location)
	if err != nil {
		switch {
		case errors.Is(err, os.ErrPermission):
			err = fmt.Errorf("%w (run as root)", err)
		case errors.Is(err, os.ErrNotExist):
			err = fmt.Errorf("%w (the daemon makes a file at its first start; --config, --root or --pool say where to look)", err)
		}
		return nil, err
	}
	return daxmem.OpenReadOnly(ctx, region)
}

// findRecord finds a record by the beginning of its key or by a chain ID.
func findRecord(ctx context.Context, cfg *config.Config, pool *daxmem.Pool, spec string) (*daxmem.Record, error) {
	records := pool.Records() // chains have no bytes of their own to look into
	if chain, ok := strings.CutPrefix(spec, "sha256:"); ok {
		return findChain(ctx, cfg, pool, chain)
	}
	if spec == "" || strings.Trim(spec, "0123456789abcdef") != "" {
		return nil, usagef("pool:%s: want pool: and the beginning of a key in hexadecimal, or of a chain ID (sha256:...)", escape(spec))
	}
	return pick(records, "pool:"+spec, func(r *daxmem.Record) bool {
		return strings.HasPrefix(hex.EncodeToString(r.Key[:]), spec)
	})
}

// pick returns the one record that match accepts; a sound one goes before
// quarantined ones of the same key.
func pick(records []*daxmem.Record, name string, match func(*daxmem.Record) bool) (*daxmem.Record, error) {
	var found []*daxmem.Record
	for _, r := range records {
		if !match(r) {
			continue
		}
		if len(found) == 1 && found[0].Key == r.Key && found[0].Kind == r.Kind {
			if r.Quarantined == "" {
				found[0] = r
			}
			continue
		}
		found = append(found, r)
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("%s: no such image or layer in the pool: %w", name, errdefs.ErrNotFound)
	case 1:
		return found[0], nil
	}
	var names []string
	for _, r := range found[:min(len(found), 5)] {
		names = append(names, r.Kind.String()+" "+shortKey(r.Key))
	}
	return nil, fmt.Errorf("%s: %d match: %s: give more digits: %w", name, len(found), strings.Join(names, ", "), errdefs.ErrInvalidArgument)
}

// findChain finds the image of a chain ID: in the catalog, or by the name of
// the committed snapshot.
func findChain(ctx context.Context, cfg *config.Config, pool *daxmem.Pool, chain string) (*daxmem.Record, error) {
	name := "pool:sha256:" + escape(chain)
	records := pool.Records()
	wanted := make(map[[32]byte]bool) // keys of images
	for id, k := range snapshotter.ChainImages(pool.Chains()) {
		wanted[k] = wanted[k] || strings.HasPrefix(hex.EncodeToString(id[:]), chain)
	}
	rec, err := pick(records, name, func(r *daxmem.Record) bool {
		return r.Kind == daxmem.KindImage && wanted[r.Key]
	})
	if !errdefs.IsNotFound(err) {
		return rec, err
	}
	refs, _, err := findRefs(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("%s: the catalog has no such chain ID, and the snapshots cannot be asked: %w", name, err)
	}
	known := slices.Contains(slices.Collect(maps.Values(wanted)), true)
	rec, err = pick(records, name, func(r *daxmem.Record) bool {
		return r.Kind == daxmem.KindImage && hasChain(refs.Images[r.Key], chain)
	})
	for _, names := range refs.Images {
		known = known || hasChain(names, chain)
	}
	if errdefs.IsNotFound(err) && known {
		return nil, fmt.Errorf("%s: no container has needed this image yet, so it is not flattened: %w", name, err)
	}
	return rec, err
}

// hasChain reports whether one of the snapshots is committed under a chain ID
// that begins so. containerd puts namespace and number before it.
func hasChain(names []string, chain string) bool {
	for _, n := range names {
		if id, ok := strings.CutPrefix(path.Base(n), "sha256:"); ok && strings.HasPrefix(id, chain) {
			return true
		}
	}
	return false
}

func shortKey(k [32]byte) string { return hex.EncodeToString(k[:6]) }

// innerPath turns an argument into a path as package mkdaxfs wants it.
func innerPath(p string) string {
	return strings.TrimPrefix(path.Clean("/"+p), "/")
}

// lookup finds the inode at a path; follow says whether a symlink at its end
// is followed.
func (s *source) lookup(p string, follow bool) (*disk.Inode, error) {
	name := innerPath(p)
	if name == "" {
		name = "."
	}
	get := s.FS().Lstat
	if follow {
		get = s.FS().Stat
	}
	fi, err := get(name)
	if err != nil {
		return nil, s.wrap(p, err)
	}
	return fi.Sys().(*disk.Inode), nil
}

// wrap names image and path in an error.
func (s *source) wrap(p string, err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return fmt.Errorf("%s: /%s: %w", escape(s.name), escape(innerPath(p)), err)
}
