// Package config reads the daemon's configuration file, which daxfsctl uses
// too. config.toml.example documents every field.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/pelletier/go-toml/v2"
	"github.com/sirupsen/logrus"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/engine"
	"github.com/daxfs/containerd-daxfs/internal/instances"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// DefaultPath is where the configuration is looked for.
const DefaultPath = "/etc/containerd-daxfs/config.toml"

// Config is the whole file. Empty fields take their defaults.
type Config struct {
	// Root is the directory for snapshots, metadata and the pool file.
	Root string `toml:"root"`
	// Address is the unix socket of the snapshots service.
	Address string `toml:"address"`
	// Containerd is the unix socket of the containerd that this daemon is for;
	// empty: layers that the pool has lost are not unpacked again from its
	// content store, and it is not asked for anything else.
	Containerd string `toml:"containerd"`
	// Snapshotter is what that containerd calls this daemon, in proxy_plugins.
	Snapshotter string `toml:"snapshotter"`
	// LogLevel is trace, debug, info, warn, error, fatal or panic.
	LogLevel string `toml:"log_level"`
	Pool     Pool   `toml:"pool"`
	Share    Share  `toml:"share"`
	Engine   Engine `toml:"engine"`
}

// Pool is where layers and images are kept.
type Pool struct {
	// Path is where the pool is, in the text form of daxmem.Location: a file on
	// disk, tmpfs or hugetlbfs, a pmem block device, or "phys:ADDRESS,size=SIZE".
	// Default: pool.daxfs below Root.
	Path string `toml:"path"`
	// MaxSize is the most that the pool may take, as "64GiB". A file is sparse:
	// it takes what it holds. Memory is not, and its size is the limit.
	MaxSize Size `toml:"max_size"`
	// ShareExtents lets images share the bytes of their files. False gives each
	// image a copy, which the engine erofs-dax needs. A pool keeps for ever what
	// it was made with.
	ShareExtents bool `toml:"share_extents"`
	// SyncOnCommit makes every commit wait for the disk. Without it the pool
	// is synced in the background, and what a loss of power may have damaged
	// is found by its digest at the next start.
	SyncOnCommit bool `toml:"sync_on_commit"`
	// KeepUnused keeps layers and images that no snapshot of this kernel needs,
	// as long as there is room: other kernels may ask for them, or this one
	// again. False: they go at once.
	KeepUnused bool `toml:"keep_unused"`
	// HighWatermark is how full the pool gets with them, in percent, 1 to 100;
	// those that were needed longest ago go then, until LowWatermark is left.
	HighWatermark int `toml:"high_watermark"`
	LowWatermark  int `toml:"low_watermark"`
	// Persist keeps copies of the layers that snapshots need in a file below
	// Root, for a pool in memory, which a reboot empties.
	Persist bool `toml:"persist"`
}

// SpillPath is the file of Pool.Persist.
func (c *Config) SpillPath() string { return filepath.Join(c.Root, "spill.daxfs") }

// Keep is KeepUnused as the snapshotter takes it.
func (p *Pool) Keep() snapshotter.Keep {
	if !p.KeepUnused {
		return snapshotter.Keep{}
	}
	return snapshotter.Keep{High: p.HighWatermark, Low: p.LowWatermark}
}

// Roles of a kernel at a pool.
const (
	// RoleOwner makes the pool, unpacks into it and collects.
	RoleOwner = "owner"
	// RoleReader uses what another kernel's daemon has put into it.
	RoleReader = "reader"
	// RoleAuto is RoleOwner where nobody else is, and RoleReader as long as
	// somebody is.
	RoleAuto = "auto"
)

// Share is how this kernel uses a pool together with others.
type Share struct {
	// Role is RoleOwner, RoleReader or RoleAuto.
	Role string `toml:"role"`
	// Instance is this kernel's name among those at the pool, or empty. No two
	// may have the same: an earlier boot of it loses its seat to a later one.
	Instance string `toml:"instance"`
	// Instances is the orchestrator that says which instances are gone, as
	// instances.New takes it, or empty: only people say so. The owner evicts their
	// seats, and with RoleAuto a reader that of an owner. Names of instances are
	// the orchestrator's then.
	Instances string `toml:"instances"`
	// Seat is this kernel's seat, 0 to 63, or -1 for any that is free. A pool on
	// /dev/pmemN needs one.
	Seat int `toml:"seat"`
	// Missing says what a reader does about images that the pool does not have.
	Missing snapshotter.Missing `toml:"missing"`
	// AskTimeout is how long the owner may take to bring one.
	AskTimeout Duration `toml:"ask_timeout"`
	// OwnPool is the file of a reader's own pool, for what it unpacks itself.
	// Default: pool.daxfs below Root.
	OwnPool string `toml:"own_pool"`
	// Pull lets an owner pull images that readers ask for, through Containerd.
	Pull bool `toml:"pull"`
}

// Duration is a time.Duration, written as "5m".
type Duration time.Duration

// UnmarshalText reads a duration.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("duration %q: want a number with a unit, as \"90s\" or \"5m\": %w", b, errdefs.ErrInvalidArgument)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes a duration.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Engine is how images are mounted.
type Engine struct {
	// Order are the engines that may be used, best first. Empty: all.
	Order []string `toml:"order"`
	// KeepMounted is how long an image stays mounted that nothing uses any more.
	KeepMounted Duration `toml:"keep_mounted"`
}

// Size is a number of bytes, written with or without a unit ("8GiB").
type Size int64

// UnmarshalText reads a size.
func (s *Size) UnmarshalText(b []byte) error {
	n, err := units.RAMInBytes(string(b))
	if err != nil {
		return fmt.Errorf("size %q: want a number with an optional unit such as MiB or GiB: %w", b, errdefs.ErrInvalidArgument)
	}
	*s = Size(n)
	return nil
}

// MarshalText writes a size.
func (s Size) MarshalText() ([]byte, error) { return []byte(units.BytesSize(float64(s))), nil }

// Default returns the configuration of an empty file.
func Default() *Config {
	return &Config{
		Root:        "/var/lib/containerd-daxfs",
		Address:     "/run/containerd-daxfs/containerd-daxfs.sock",
		Containerd:  defaults.DefaultAddress,
		Snapshotter: "daxfs",
		LogLevel:    "info",
		Pool:        Pool{MaxSize: 64 << 30, ShareExtents: true, HighWatermark: 90, LowWatermark: 75},
		Share: Share{
			Role: RoleOwner, Seat: -1, Missing: snapshotter.MissingAsk, AskTimeout: Duration(5 * time.Minute), Pull: true,
		},
		Engine: Engine{KeepMounted: Duration(10 * time.Minute)},
	}
}

// Load reads the file at path; where it is DefaultPath and does not exist, the
// defaults hold. Unknown keys are refused with their names. The result still
// has to be checked with Check, after flags were applied.
func Load(path string) (*Config, error) {
	c := Default()
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && path == DefaultPath {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	d := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	if err := d.Decode(c); err != nil {
		return nil, fmt.Errorf("read configuration %s: %w: %w", path, explain(err), errdefs.ErrInvalidArgument)
	}
	return c, nil
}

// explain puts the keys and places that the TOML package knows into the error.
func explain(err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		var keys []string
		for _, e := range strict.Errors {
			row, _ := e.Position()
			keys = append(keys, fmt.Sprintf("%q in line %d", strings.Join(e.Key(), "."), row))
		}
		return fmt.Errorf("unknown key %s", strings.Join(keys, ", "))
	}
	var de *toml.DecodeError
	if errors.As(err, &de) {
		row, col := de.Position()
		key := ""
		if k := de.Key(); len(k) > 0 {
			key = fmt.Sprintf(" (key %q)", strings.Join(k, "."))
		}
		return fmt.Errorf("line %d, column %d%s: %w", row, col, key, err)
	}
	return err
}

// minPool is the smallest pool that can hold anything worth a pool.
const minPool = 16 << 20

// Check completes the configuration and reports what contradicts itself.
func (c *Config) Check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("configuration: "+format+": %w", append(args, errdefs.ErrInvalidArgument)...)
	}
	if !filepath.IsAbs(c.Root) {
		return bad("root %q is not an absolute path", c.Root)
	}
	if strings.ContainsAny(c.Root, ",:\\") {
		return bad("root %q contains a character that overlayfs cannot take in an option (one of , : \\)", c.Root)
	}
	c.Root = filepath.Clean(c.Root)
	if !filepath.IsAbs(c.Address) {
		return bad("address %q is not an absolute path", c.Address)
	}
	if len(c.Address) > 107 {
		return bad("address %q has %d bytes, a unix socket has at most 107", c.Address, len(c.Address))
	}
	if c.Containerd != "" && !filepath.IsAbs(c.Containerd) {
		return bad("containerd %q is not an absolute path", c.Containerd)
	}
	if _, err := logrus.ParseLevel(c.LogLevel); err != nil {
		return bad("log_level %q is not one of trace, debug, info, warn, error, fatal, panic", c.LogLevel)
	}
	if c.Pool.Path == "" {
		c.Pool.Path = filepath.Join(c.Root, "pool.daxfs")
	}
	if _, err := daxmem.ParseLocation(c.Pool.Path); err != nil {
		return fmt.Errorf("configuration: pool.path: %w", err)
	}
	if c.Pool.MaxSize < minPool {
		return bad("pool.max_size is %d bytes, want at least %d", int64(c.Pool.MaxSize), minPool)
	}
	if h, l := c.Pool.HighWatermark, c.Pool.LowWatermark; l < 1 || l > h || h > 100 {
		return bad("pool.low_watermark is %d and pool.high_watermark %d, want percents with 1 <= low <= high <= 100", l, h)
	}
	if err := c.Share.check(c.Root, bad); err != nil {
		return err
	}
	if c.Engine.KeepMounted < 0 {
		return bad("engine.keep_mounted is %v, want 0 or more", time.Duration(c.Engine.KeepMounted))
	}
	for _, e := range c.Engine.Order {
		if !slices.Contains(engine.Names(), e) {
			return bad("engine.order names %q, have %s", e, strings.Join(engine.Names(), ", "))
		}
	}
	return nil
}

// check completes the section and reports what makes no sense.
func (s *Share) check(root string, bad func(format string, args ...any) error) error {
	roles := []string{RoleOwner, RoleReader, RoleAuto}
	ways := []snapshotter.Missing{snapshotter.MissingAsk, snapshotter.MissingLocal, snapshotter.MissingFail}
	switch {
	case !slices.Contains(roles, s.Role):
		return bad("share.role %q, have %s", s.Role, strings.Join(roles, ", "))
	case !slices.Contains(ways, s.Missing):
		return bad("share.missing %q, have %s, %s, %s", s.Missing, ways[0], ways[1], ways[2])
	case s.Seat < -1 || s.Seat >= daxmem.SeatCount:
		return bad("share.seat is %d, want 0 to %d, or -1 for any", s.Seat, daxmem.SeatCount-1)
	case len(s.Instance) > daxmem.MaxInstance:
		return bad("share.instance %q has %d bytes, want at most %d", s.Instance, len(s.Instance), daxmem.MaxInstance)
	case s.AskTimeout <= 0:
		return bad("share.ask_timeout is %v, want more than 0", time.Duration(s.AskTimeout))
	}
	if s.OwnPool == "" {
		s.OwnPool = filepath.Join(root, "pool.daxfs")
	}
	if !filepath.IsAbs(s.OwnPool) {
		return bad("share.own_pool %q is not an absolute path", s.OwnPool)
	}
	if s.Instances != "" {
		if _, err := instances.New(s.Instances); err != nil {
			return fmt.Errorf("configuration: share.instances: %w", err)
		}
	}
	return nil
}

// Orchestrator is what Share.Instances names, nil where it names none.
//
// Preconditions: the configuration was checked.
func (s *Share) Orchestrator() (instances.Orchestrator, error) {
	if s.Instances == "" {
		return nil, nil
	}
	return instances.New(s.Instances)
}

// PoolOptions are those of all pools that this daemon opens, and of who opens one
// in its place: another holder would have another seat, and not its pins.
func (c *Config) PoolOptions() daxmem.Options {
	host, err := os.Hostname()
	if err != nil {
		host = "?"
	}
	opts := daxmem.Options{
		MaxSize: int64(c.Pool.MaxSize), SyncOnPublish: c.Pool.SyncOnCommit, SelfContained: !c.Pool.ShareExtents,
		Instance: c.Share.Instance, Holder: host + ":" + c.Root,
	}
	if c.Share.Seat >= 0 {
		opts.Seat = &c.Share.Seat
	}
	return opts
}
