package inside

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// dir is where everything is mounted: on a tmpfs.
const dir = "/run/hostile"

// mount mounts an image read-only, without device files and set-uid programs.
func mount(r region, offset int64, at, name string, more ...string) error {
	return unix.Mount("none", at, "daxfs", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID, r.options(offset, name, more...))
}

// unmount unmounts what nobody uses: a reference that stays is a leak.
func unmount(at string) error {
	var err error
	// Ends of processes take a moment.
	for range 100 {
		if err = unix.Unmount(at, 0); !errors.Is(err, unix.EBUSY) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

// anchor mounts the task's sound image and makes sure that dir is there.
func anchor(task *Task, r region) (release func() error, err error) {
	at := filepath.Join(dir, "anchor")
	if err := os.MkdirAll(at, 0o755); err != nil {
		return nil, err
	}
	if err := mount(r, task.Anchor, at, "anchor"); err != nil {
		return nil, fmt.Errorf("mount the anchor: %w", err)
	}
	return func() error { return unmount(at) }, nil
}

// places makes n mount points.
func places(n int, prefix string) ([]string, error) {
	var out []string
	for i := range n {
		at := filepath.Join(dir, fmt.Sprintf("%s%d", prefix, i))
		if err := os.MkdirAll(at, 0o755); err != nil {
			return nil, err
		}
		out = append(out, at)
	}
	return out, nil
}
