package inside

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Task says what there is to do in a guest. The region is the guest's pool.
type Task struct {
	// Anchor is the offset of a sound image that is mounted all the time, so
	// that the region and its page structs are there once for all others.
	Anchor int64
	// Images are the offsets of the images, in bytes.
	Images []int64
	// Via is how they are mounted; the anchor by ViaNopages or else ViaPhys.
	Via string
	// Seconds is how long Live reads.
	Seconds int
}

// What images are mounted from.
const (
	ViaPhys    = "phys"    // the region, with page structs
	ViaDmabuf  = "dmabuf"  // the dma-buf that the anchor gives
	ViaNopages = "nopages" // the region, without page structs
)

// Write writes the task to a file.
func (t *Task) Write(path string) error {
	b, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}

func readTask(path string) (*Task, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var t Task
	if err := json.Unmarshal(b, &t); err != nil {
		return nil, fmt.Errorf("task %s: %w", path, err)
	}
	switch t.Via {
	case ViaPhys, ViaDmabuf, ViaNopages:
		return &t, nil
	}
	return nil, fmt.Errorf("task %s: via %q", path, t.Via)
}

// region is the pool's physical range in this guest.
type region struct {
	phys, size uint64
	nopages    bool
	dmabuf     *os.File // mounts are of this, unless nil
}

func findRegion() (r region, err error) {
	for _, f := range []struct {
		name string
		to   *uint64
	}{{"resource", &r.phys}, {"size", &r.size}} {
		b, err := os.ReadFile("/sys/bus/nd/devices/region0/" + f.name)
		if err != nil {
			return r, err
		}
		if *f.to, err = strconv.ParseUint(strings.TrimSpace(string(b)), 0, 64); err != nil {
			return r, err
		}
	}
	return r, nil
}
