package main

import (
	"encoding/hex"

	"github.com/daxfs/containerd-daxfs/internal/disk"
)

// span is an extent: its offset in the pool and its bytes.
type span struct{ off, size int64 }

// checkExtents notes a layer's extents, or reports a file of an image that is
// no extent of its layers. Layers come before their images.
func (s *source) checkExtents(byLayer map[[32]byte]map[span]bool) error {
	if s.IsLayer() {
		extents, err := s.Extents()
		if err != nil {
			return err
		}
		set := make(map[span]bool, len(extents))
		for _, e := range extents {
			set[span{s.origin + int64(e.Offset), int64(e.Size)}] = true
		}
		byLayer[s.rec.Key] = set
		return nil
	}
	layers, err := s.Layers()
	if err != nil || len(layers) == 0 { // all files are its own
		return err
	}
	for _, k := range layers {
		if byLayer[k] == nil {
			return disk.Corruptf("layer %s of the image is not in the pool, or not sound", hex.EncodeToString(k[:8]))
		}
	}
	for ino := range s.Superblock().InodeCount {
		in, err := s.Inode(ino + 1)
		if err != nil {
			return err
		}
		off, ok := s.dataOffset(&in)
		if !ok {
			continue
		}
		found := false
		for _, k := range layers {
			if byLayer[k][span{off, int64(in.Size)}] {
				found = true
				break
			}
		}
		if !found {
			return disk.Corruptf("inode %d: data [%d,+%d) of the pool is no extent of the image's layers", in.Ino, off, in.Size)
		}
	}
	return nil
}
