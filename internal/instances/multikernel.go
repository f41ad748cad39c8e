package instances

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// MultikernelDir is where multikernel's file system is mounted.
const MultikernelDir = "/sys/fs/multikernel"

// Multikernel asks the kernel that spawns others beside itself. Its tool kerf
// keeps no state of its own; the kernel's file system has it:
//
//	DIR/device_tree
//	DIR/instances/NAME/status   empty, ready, loaded, active or failed
//
// A kernel sees the instances that it has spawned, and its own. Sources, read as
// facts: github.com/multikernel/linux, Documentation/multikernel/usage.rst
// (d0b12c94), kernel/kexec_file.c (758894fd), and several versions of
// kernel/multikernel/{kernfs,core}.c, which differ in when they say "loaded";
// github.com/multikernel/kerf, src/kerf/{kill,unload,delete}/main.py. No kernel
// that we test with has it: the tests have a directory of the same form, and what
// a real one does at the moment of a change is not tried.
//
// What the words mean for memory that an instance reads:
//
//   - active: started and not halted. A kernel that has panicked stays active:
//     nobody notices, so that this says "not gone" and not "well".
//   - loaded: an image is there. It comes before active, and after a halt. Some
//     versions say so while processors are still on their way out, and kerf
//     offers to halt once more for those that missed it: unclear.
//   - failed: an error, also when processors did not stop: unclear.
//   - ready, empty: no image is loaded any more. kerf unloads only what is loaded
//     and not active. The system call behind it does not check, so who calls it
//     past kerf has to have stopped the instance.
//   - no directory: the instance was removed, which is refused while it is
//     active or loaded, as is the undoing of its creation; its processors and
//     memory are given back.
//
// The status file does not notify: it has to be read again and again.
type Multikernel struct {
	// Dir is where the file system is mounted.
	Dir string
}

func (m *Multikernel) String() string { return "multikernel, " + m.Dir }

// List reads the state of every instance. ErrUnavailable: there is no such file
// system, or it is not mounted.
func (m *Multikernel) List(ctx context.Context) (List, error) {
	// An empty directory, as a mount point without its file system, would say
	// that all are gone.
	if _, err := os.Stat(filepath.Join(m.Dir, "device_tree")); err != nil {
		return nil, m.unreadable(err)
	}
	entries, err := os.ReadDir(filepath.Join(m.Dir, "instances"))
	if err != nil {
		return nil, m.unreadable(err)
	}
	out := make(List)
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		out[e.Name()] = m.status(e.Name())
	}
	// What was unmounted meanwhile may have been listed in part.
	if _, err := os.Stat(filepath.Join(m.Dir, "device_tree")); err != nil {
		return nil, m.unreadable(err)
	}
	return out, nil
}

func (m *Multikernel) unreadable(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("ask multikernel: %w (mount -t multikernel none %s): %w", err, m.Dir, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("ask multikernel: %w", err)
}

// status reads the state of an instance that has a directory.
func (m *Multikernel) status(name string) Status {
	b, err := os.ReadFile(filepath.Join(m.Dir, "instances", name, "status"))
	if err != nil {
		return Status{Unclear, err.Error()}
	}
	switch word := strings.TrimSpace(string(b)); word {
	case "active":
		return Status{Running, word}
	case "ready", "empty":
		return Status{Stopped, word}
	default:
		return Status{Unclear, word}
	}
}
