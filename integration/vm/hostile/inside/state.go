package inside

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// state is what has to be as it was when all is over.
type state struct {
	slabs   map[string]int // objects in use, by cache
	regions string         // /sys/fs/daxfs/regions
}

// takeState frees what the kernel only keeps in case, and counts.
func takeState() (*state, error) {
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return nil, err
	}
	// Inodes are freed after a grace period.
	time.Sleep(200 * time.Millisecond)
	caches, err := filepath.Glob("/sys/kernel/slab/*/shrink")
	if err != nil {
		return nil, err
	}
	for _, c := range caches {
		// Some cannot be shrunk.
		_ = os.WriteFile(c, []byte("1"), 0)
	}
	s := &state{slabs: map[string]int{}}
	f, err := os.Open("/proc/slabinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for l := bufio.NewScanner(f); l.Scan(); {
		fields := strings.Fields(l.Text())
		if len(fields) > 2 {
			if n, err := strconv.Atoi(fields[1]); err == nil {
				s.slabs[fields[0]] = n
			}
		}
	}
	if _, ok := s.slabs["daxfs_inode"]; !ok {
		return nil, fmt.Errorf("no cache daxfs_inode among %d", len(s.slabs))
	}
	b, err := os.ReadFile("/sys/fs/daxfs/regions")
	s.regions = string(b)
	return s, err
}

// compare takes the state again and reports what grew.
func (s *state) compare(rep *Report) error {
	var now *state
	var err error
	for range 20 {
		if now, err = takeState(); err != nil {
			return err
		}
		if now.slabs["daxfs_inode"] == s.slabs["daxfs_inode"] && now.regions == s.regions {
			break
		}
		time.Sleep(500 * time.Millisecond)
	}
	if now.slabs["daxfs_inode"] != s.slabs["daxfs_inode"] {
		rep.broken("%d objects of daxfs_inode, before %d", now.slabs["daxfs_inode"], s.slabs["daxfs_inode"])
	}
	if now.regions != s.regions {
		rep.broken("regions are %q, before %q", now.regions, s.regions)
	}
	// Others are everybody's; what is lost at each mount shows all the same.
	for name, n := range now.slabs {
		if grown := n - s.slabs[name]; grown > max(1000, rep.Images/2) {
			rep.broken("%d objects of %s more than before", grown, name)
		}
	}
	return nil
}
