// Package engine mounts images of a pool with what the kernel has: "daxfs" (our
// module, any memory with a physical address), "erofs-dax" (the kernel's EROFS
// on a pmem device) and "erofs" (the kernel's EROFS through the page cache). A
// mount says how it was made, so that nobody has to guess what runs.
package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Region is the memory that images lie in, as daxmem.Region has it.
type Region interface {
	io.ReaderAt
	Size() int64 // bytes
	// Kind is the sort of memory, as "file", "pmem" or "phys" (daxmem.Kinds). Path
	// is where a file or device is, and the name of others.
	Kind() string
	Path() string
	// Address is the physical address of the first byte, 0 if there is none.
	Address() uint64
}

// DmaBuf is implemented by regions that can be had as a dma-buf.
type DmaBuf interface {
	// DmaBuf returns a descriptor, the caller's to close, of a dma-buf over the
	// whole region.
	DmaBuf() (*os.File, error)
}

// Source is an image in a region.
type Source struct {
	Region Region
	Offset int64 // of the superblock, bytes, a multiple of the block size
	Size   int64 // bytes from there that the image may use
}

func (s Source) String() string { return fmt.Sprintf("image at %d of %s", s.Offset, s.Region.Path()) }

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

// with completes a probe that ends with an answer other than a plain yes.
func (p Probe) with(a Answer, reason, remedy string) Probe {
	p.Answer, p.Reason, p.Remedy = a, reason, remedy
	return p
}

// Pool is what an engine is asked about.
type Pool struct {
	Region Region
	// Shared says that several inodes may have the same bytes, which not every
	// engine can take.
	Shared bool
	// Trial lends an image in the region to try a mount with. It is not asked
	// for regions that are files: there a probe uses a file beside them. Nil:
	// there is none to be had, and the best that a probe can say is Unknown.
	Trial func(ctx context.Context) (*Trial, error)
}

// Engine mounts images. Implementations are safe for concurrent use.
type Engine interface {
	Name() string
	// Probe says whether the engine can mount the images of a pool, by trying.
	Probe(ctx context.Context, p Pool) Probe
	// Mount mounts src read-only at target, an existing directory. The error
	// wraps ErrUnsuitable where the image or its region is not for this engine.
	Mount(ctx context.Context, src Source, target string) (*Mount, error)
}

var (
	// ErrNoEngine is wrapped when none of the engines asked for works.
	ErrNoEngine = fmt.Errorf("no engine can mount images: %w", errdefs.ErrUnavailable)
	// ErrUnsuitable is wrapped when an image or its region is not one that an
	// engine can mount on any kernel.
	ErrUnsuitable = fmt.Errorf("not for this engine: %w", errdefs.ErrFailedPrecondition)
)

// known are all engines, best first.
func known() []Engine { return []Engine{&Daxfs{}, &ErofsDax{}, &Erofs{}} }

// Names returns the names of all engines, best first.
func Names() []string {
	var out []string
	for _, e := range known() {
		out = append(out, e.Name())
	}
	return out
}

// Select returns the first engine of order that works for a pool, and all
// probes made. An empty order means all engines, best first.
func Select(ctx context.Context, order []string, p Pool) (Engine, []Probe, error) {
	engines, err := inOrder(order)
	if err != nil {
		return nil, nil, err
	}
	var probes []Probe
	var why []error
	for _, e := range engines {
		probe := e.Probe(ctx, p)
		probes = append(probes, probe)
		if probe.Answer == Yes {
			return e, probes, nil
		}
		why = append(why, fmt.Errorf("%s: %s", e.Name(), probe.Reason))
	}
	return nil, probes, fmt.Errorf("%w: %w", ErrNoEngine, errors.Join(why...))
}

// MountBest mounts one image by the first engine of order that can do it,
// without probing. An empty order means all engines, best first.
func MountBest(ctx context.Context, order []string, src Source, target string) (*Mount, error) {
	engines, err := inOrder(order)
	if err != nil {
		return nil, err
	}
	var why []error
	for _, e := range engines {
		m, err := e.Mount(ctx, src, target)
		if err == nil {
			return m, nil
		}
		why = append(why, fmt.Errorf("%s: %w", e.Name(), err))
	}
	return nil, fmt.Errorf("%w: %w", ErrNoEngine, errors.Join(why...))
}

// Best mounts each image by the first engine of an order that can do it: for a
// pool without an image to probe with.
type Best struct{ Order []string }

// Name is "best". Mounts have the name of the engine that made them.
func (b *Best) Name() string { return "best" }

// Probe cannot say more than that it has to be tried.
func (b *Best) Probe(context.Context, Pool) Probe {
	return Probe{Engine: b.Name()}.with(Unknown, "it is tried at the first mount", "")
}

// Mount mounts src by the first engine that can.
func (b *Best) Mount(ctx context.Context, src Source, target string) (*Mount, error) {
	return MountBest(ctx, b.Order, src, target)
}

// inOrder returns the engines of an order, which may be empty.
func inOrder(order []string) ([]Engine, error) {
	if len(order) == 0 {
		return known(), nil
	}
	var out []Engine
	for _, name := range order {
		e, err := ByName(name)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
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

// hasFilesystem reports whether the kernel has a file system type, and loads
// the module of one that it does not have yet.
func hasFilesystem(name string) (bool, error) {
	fd, err := unix.Fsopen(name, unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENODEV) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open file system type %s: %w", name, err)
	}
	return true, unix.Close(fd)
}

// needs is what all probes check first: whether this process may mount, and
// whether the kernel has the file system. ok means both.
func needs(p Probe, filesystem, remedy string) (out Probe, ok bool) {
	if os.Geteuid() != 0 {
		return p.with(Unknown, "mounting needs root", "run as root"), false
	}
	switch has, err := hasFilesystem(filesystem); {
	case err != nil:
		return p.with(Unknown, err.Error(), ""), false
	case !has:
		return p.with(No, "the kernel has no file system "+filesystem, remedy), false
	}
	return p, true
}
