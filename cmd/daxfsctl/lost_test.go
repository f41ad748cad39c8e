package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// A layer that a reader has unpacked into its own pool is not lost.
func TestLostLayersOfReader(t *testing.T) {
	s := newSite(t)
	s.close()
	own := filepath.Join(t.TempDir(), "own")
	if err := os.Rename(s.poolPath(), own); err != nil {
		t.Fatal(err)
	}
	other := bareSite(t) // the other kernel's pool, without these layers
	if err := os.Rename(other.poolPath(), s.poolPath()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		share string
		want  verdict
	}{
		{fmt.Sprintf("role = \"reader\"\nown_pool = %q", own), ok},
		{fmt.Sprintf("role = \"auto\"\nown_pool = %q", own), ok},
		{fmt.Sprintf("own_pool = %q", own), fail}, // an owner has no other pool
		{fmt.Sprintf("role = \"reader\"\nown_pool = %q", own+".none"), fail},
	} {
		s.share = c.share
		if got := s.check("layers"); got.Status != c.want {
			t.Errorf("%s: %+v, want %s", c.share, got, c.want)
		}
	}
}
