package main

import (
	"fmt"

	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// prefetchWarnings says which part of a list did not count. A list outlives
// the image that it was recorded on, so this is no error.
func prefetchWarnings(p *mkdaxfs.PrefetchStats) []string {
	if p == nil {
		return nil
	}
	var w []string
	if p.Missing > 0 {
		w = append(w, fmt.Sprintf("%d of %d paths are not in the image, the first is %q", p.Missing, p.Listed, "/"+p.FirstMissing))
	}
	if p.NotFiles > 0 {
		w = append(w, fmt.Sprintf("%d of %d paths are no regular files", p.NotFiles, p.Listed))
	}
	return w
}
