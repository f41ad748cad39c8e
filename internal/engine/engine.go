// Package engine mounts images of a pool with what the kernel has. There is
// one engine now, "erofs"; a mount says how it was made, so that nobody has to
// guess what runs.
package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Source is an image in a region.
type Source struct {
	Path   string // of the region: file or device
	Offset int64  // of the superblock, bytes, a multiple of the block size
	Size   int64  // bytes from there that the image may use
}

// Mount is a mounted image.
type Mount struct {
	Engine string `json:"engine"`
	// Method is how the engine did it, for example "file+directio" or "loop".
	Method string `json:"method"`
	Target string `json:"target"`
	// Superblocks are the kernel's names below /sys/fs/erofs of which one is
	// this mount's. As long as it is there, the kernel may read the image,
	// whatever became of the mount point. It can be empty: unknown.
	Superblocks []string `json:"superblocks,omitempty"`

	ended bool // seen to end with its unmount
}

// Answer is what a probe found.
type Answer int

// The three answers of a probe. Only Yes and No may be remembered.
const (
	Unknown Answer = iota
	Yes
	No
)

func (a Answer) String() string { return [...]string{"unknown", "yes", "no"}[a] }

// MarshalText makes answers words in JSON.
func (a Answer) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// Probe is whether an engine works here, by which method, and if not, why and
// what to do.
type Probe struct {
	Engine string `json:"engine"`
	Answer Answer `json:"answer"`
	Method string `json:"method,omitempty"`
	Reason string `json:"reason,omitempty"`
	Remedy string `json:"remedy,omitempty"`
	// Passed are the better methods that did not work, with the reason.
	Passed []string `json:"passed,omitempty"`
}

// Engine mounts images. Implementations are safe for concurrent use.
type Engine interface {
	Name() string
	// Probe tries the engine on a file in dir, which is where the pool is.
	Probe(ctx context.Context, dir string) Probe
	// Mount mounts src read-only at target, an existing directory.
	Mount(ctx context.Context, src Source, target string) (*Mount, error)
}

// ErrNoEngine is wrapped when none of the engines asked for works.
var ErrNoEngine = fmt.Errorf("no engine can mount images: %w", errdefs.ErrUnavailable)

// known are all engines, best first.
func known() []Engine { return []Engine{&Erofs{}} }

// Names returns the names of all engines, best first.
func Names() []string {
	var out []string
	for _, e := range known() {
		out = append(out, e.Name())
	}
	return out
}

// Select returns the first engine of order that works, and all probes made.
// An empty order means all engines, best first.
func Select(ctx context.Context, order []string, dir string) (Engine, []Probe, error) {
	if len(order) == 0 {
		order = Names()
	}
	var probes []Probe
	var why []error
	for _, name := range order {
		e, err := ByName(name)
		if err != nil {
			return nil, nil, err
		}
		p := e.Probe(ctx, dir)
		probes = append(probes, p)
		if p.Answer == Yes {
			return e, probes, nil
		}
		why = append(why, fmt.Errorf("%s: %s", name, p.Reason))
	}
	return nil, probes, fmt.Errorf("%w: %w", ErrNoEngine, errors.Join(why...))
}

// ByName returns a new engine.
func ByName(name string) (Engine, error) {
	for _, e := range known() {
		if e.Name() == name {
			return e, nil
		}
	}
	return nil, fmt.Errorf("engine %q is not known, have %s: %w", name, strings.Join(Names(), ", "), errdefs.ErrInvalidArgument)
}

// Unmount takes the mount point away, at once, also when the file system on it
// is in use. Gone tells when the kernel is done with it.
func Unmount(m *Mount) error {
	before := superblocks()
	if err := unix.Unmount(m.Target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil // not mounted
		}
		return fmt.Errorf("unmount %s: %w", m.Target, err)
	}
	if len(m.Superblocks) == 0 && len(superblocks()) < len(before) {
		m.ended = true
	}
	return nil
}
