package snapshotter

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/engine"
)

// Refs tells which snapshots refer to which records of the pool, for those who
// look from outside. Lists are in the order of the snapshots given.
type Refs struct {
	// Layers are the committed snapshots that a layer belongs to, by its key.
	Layers map[[32]byte][]string
	// Images are the committed snapshots whose chain makes an image, by its
	// key, whether the pool has it already or not.
	Images map[[32]byte][]string
	// Chains are the committed snapshots with a chainID, by it, and by the diffID
	// of their layer.
	Chains map[[32]byte][]string
	// Users are the active and view snapshots that stand on an image.
	Users map[[32]byte][]string
	// Damaged are snapshots that name no usable layer, with the reason.
	Damaged map[string]string
}

// FindRefs needs all snapshots, as Walk gives them.
func FindRefs(infos []snapshots.Info) *Refs {
	r := &Refs{
		Layers: make(map[[32]byte][]string), Images: make(map[[32]byte][]string),
		Chains: make(map[[32]byte][]string), Users: make(map[[32]byte][]string), Damaged: make(map[string]string),
	}
	byName := make(map[string]snapshots.Info, len(infos))
	for _, info := range infos {
		byName[info.Name] = info
	}
	for _, info := range infos {
		if k, ok, _ := ready(info); ok {
			r.Layers[k] = append(r.Layers[k], info.Name)
			continue
		}
		if info.Kind == snapshots.KindCommitted {
			k, err := layerOf(info)
			if err != nil {
				r.Damaged[info.Name] = err.Error()
				continue
			}
			r.Layers[k] = append(r.Layers[k], info.Name)
			for _, id := range chainNames(info) {
				r.Chains[id] = append(r.Chains[id], info.Name)
			}
			if c, ok := chainIn(byName, info.Name); ok {
				r.Images[c.key()] = append(r.Images[c.key()], info.Name)
			}
			continue
		}
		if info.Parent == "" || info.Kind == snapshots.KindActive && isUnpack(info) {
			continue
		}
		if c, ok := chainIn(byName, info.Parent); ok {
			r.Users[c.key()] = append(r.Users[c.key()], info.Name)
		} else {
			r.Damaged[info.Name] = fmt.Sprintf("parent %q has no usable chain", info.Parent)
		}
	}
	return r
}

// ChainImages returns the keys of the images that the chains of a catalog make,
// by chainID, whether the catalog has those images or not.
func ChainImages(chains []*daxmem.Record) map[[32]byte][32]byte {
	names, _ := link(chains)
	images := make(map[[32]byte][32]byte, len(names))
	for _, n := range names {
		if n.key != (key{}) {
			images[n.chain.Key] = n.key
		}
	}
	return images
}

// chainIn is chainOf over a list of snapshots.
func chainIn(byName map[string]snapshots.Info, name string) (chain, bool) {
	var c chain
	for n := 0; name != ""; n++ {
		info, ok := byName[name]
		if !ok || info.Kind != snapshots.KindCommitted || n > len(byName) {
			return nil, false
		}
		k, err := layerOf(info)
		if err != nil {
			return nil, false
		}
		c = append(chain{k}, c...)
		name = info.Parent
	}
	return c, true
}

// Has reports whether a record is live: Live's answer, found from outside.
func (r *Refs) Has(kind daxmem.Kind, k [32]byte) bool {
	switch kind {
	case daxmem.KindImage:
		return len(r.Images[k]) > 0
	case daxmem.KindChain:
		return len(r.Chains[k]) > 0
	}
	return len(r.Layers[k]) > 0
}

// Held is an image that this kernel has mounted, or may still read after its
// mount point went away.
type Held struct {
	Key [32]byte
	engine.Mount
	Offset  int64 // of the image in the pool
	Mounted bool  // there is a mount point
}

// HeldImages reads the records that the snapshotter keeps beside the mount
// points below root. It changes nothing. The error is about records that
// cannot be read; the others are returned all the same.
func HeldImages(root string) ([]Held, error) {
	im := newImages(filepath.Join(root, "images"))
	homes, err := filepath.Glob(filepath.Join(im.dir, "*"))
	if err != nil {
		return nil, err
	}
	boot := bootID()
	var out []Held
	var errs []error
	for _, home := range homes {
		k, err := parseKey(filepath.Base(home))
		if err != nil {
			continue // not an image
		}
		file := im.record(k)
		var records []*mountRecord
		b, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = json.Unmarshal(b, &records)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("mount record %s: %w", file, err))
			continue
		}
		for i, rec := range records {
			if rec == nil || rec.Boot != boot || rec.Gone() {
				continue
			}
			// The record of what is mounted comes first.
			out = append(out, Held{k, rec.Mount, rec.Offset, i == 0 && engine.Mounted(im.target(k))})
		}
	}
	return out, errors.Join(errs...)
}
