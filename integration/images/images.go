// Package images makes the images that the integration tests pull: real ones
// out of Debian packages, and hand-written ones with everything in them that a
// layer may hold. Each is an OCI layout in a cache directory and is made once.
package images

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// recipe says how an image is made.
type recipe struct {
	name string
	// version goes into the directory's name: raise it when the recipe changes
	// and cached copies must not be used any more.
	version int
	base    string // name of the image whose layers come first, or ""
	make    func(ctx context.Context, m *maker) error
}

// recipes in an order in which every base comes before what builds on it.
var recipes = func() []recipe {
	r := []recipe{
		{"debian", 1, "", makeDebian},
		{"python", 1, "debian", makePython},
		{"nasty", 2, "", makeNasty},
		{"rootopaque", 1, "", makeRootOpaque},
		{Sized[0], 1, "", makeSized(500_000)},
		{Sized[1], 1, "", makeSized(10_000_000)},
		{CRI["Pause"], 1, "", makeCRIPause},
		{CRI["BusyBox"], 1, "", makeCRIBusyBox},
		{CRI["Alpine"], 1, "", makeCRIAlpine},
		{CRI["ResourceConsumer"], 1, CRI["BusyBox"], makeCRIConsumer},
		{CRI["VolumeCopyUp"], 1, CRI["BusyBox"], makeCRICopyUp},
		{CRI["VolumeOwnership"], 1, CRI["BusyBox"], makeCRIOwnership},
		{CRI["Nginx"], 1, CRI["BusyBox"], makeCRINginx},
	}
	for i := range Family {
		r = append(r, recipe{Family[i], 1, "debian", makeFamily(i)})
	}
	return r
}()

// Family is five images over the debian image's layers that share most of what
// they add, as the services of one team do.
var Family = []string{"family0", "family1", "family2", "family3", "family4"}

// makeTime is the most that the making of one image may take, its base apart.
const makeTime = 10 * time.Minute

// Cache makes images and keeps them.
type Cache struct {
	// Dir holds one layout directory per image, and scratch space.
	Dir string
	// TestProg is the static binary that hand-written images hold.
	TestProg string
	// Log is told of every image that is being made. It may be nil.
	Log func(format string, args ...any)
}

// maker is what a recipe works with.
type maker struct {
	*Layout
	base   *Layout // nil without a base
	layers []Layer // of the base; recipes append theirs
	cache  *Cache
	work   string // scratch directory, removed afterwards
}

// Get returns the layout of an image, which is made now if it is not there yet.
// Processes may call it at the same time. Debian images need root, mmdebstrap
// and a Debian mirror.
func (c *Cache) Get(ctx context.Context, name string) (*Layout, error) {
	if r, ok := find(name); ok {
		return c.get(ctx, r)
	}
	return nil, fmt.Errorf("no image %q is known", name)
}

func find(name string) (recipe, bool) {
	for _, list := range [][]recipe{recipes, benchRecipes} {
		for _, r := range list {
			if r.name == name {
				return r, true
			}
		}
	}
	return recipe{}, false
}

// Names returns all images that tests use.
func Names() []string {
	var names []string
	for _, r := range recipes {
		names = append(names, r.name)
	}
	return names
}

func (c *Cache) get(ctx context.Context, r recipe) (*Layout, error) {
	dir := c.dir(r)
	if _, err := os.Stat(dir); err == nil {
		return &Layout{dir}, nil
	}
	var base *Layout
	if r.base != "" {
		var err error
		if base, err = c.Get(ctx, r.base); err != nil {
			return nil, err
		}
	}
	unlock, err := c.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return &Layout{dir}, nil // made by whoever had the lock
	}
	if c.Log != nil {
		c.Log("making image %s", r.name)
	}

	work := filepath.Join(c.Dir, "work-"+r.name)
	if err := os.RemoveAll(work); err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	l, err := newLayout(filepath.Join(work, "layout"))
	if err != nil {
		return nil, err
	}
	m := &maker{Layout: l, base: base, cache: c, work: work}
	if base != nil {
		if m.layers, err = base.Layers(); err != nil {
			return nil, err
		}
		if err := l.share(base, m.layers); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, makeTime)
	defer cancel()
	if err := r.make(ctx, m); err != nil {
		return nil, fmt.Errorf("make image %s: %w", r.name, err)
	}
	return &Layout{dir}, os.Rename(l.Dir, dir)
}

// dir names base versions too, since an image holds its base's layers.
func (c *Cache) dir(r recipe) string {
	name := fmt.Sprintf("%s-%d", r.name, r.version)
	if b, ok := find(r.base); ok {
		name += fmt.Sprintf("-on-%d", b.version)
	}
	return filepath.Join(c.Dir, name)
}

func (c *Cache) lock() (func(), error) {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(c.Dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
