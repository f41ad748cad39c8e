// Package instances tells which kernels at a pool are gone, by what an
// orchestrator says about the instances that it runs. Nothing is guessed: what
// cannot be read, or is not understood, is no reason to evict anybody, since an
// eviction frees memory that a kernel which is not gone still reads.
package instances

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// State is what an orchestrator says about an instance.
type State int

const (
	// Unclear: it may run, for all that is known. The zero value.
	Unclear State = iota
	// Running: it runs, or has not been stopped.
	Running
	// Stopped: no kernel runs in it, and none is loaded.
	Stopped
	// Absent: there is no instance of that name now.
	Absent
)

// String is for people.
func (s State) String() string { return [...]string{"unclear", "running", "stopped", "absent"}[s] }

// MarshalText makes states words in JSON.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Status is the state of an instance, and the orchestrator's own word for it or
// the reason why it is unclear.
type Status struct {
	State State
	Word  string
}

// List is the status of all instances at one time, by name.
type List map[string]Status

// Of returns the status of an instance, which is Absent where the list has none.
func (l List) Of(name string) Status {
	s, ok := l[name]
	if !ok {
		return Status{State: Absent}
	}
	return s
}

// Orchestrator knows instances. Implementations are safe for concurrent use.
type Orchestrator interface {
	// List returns all instances. With an error nothing is known about any. An
	// instance whose own state cannot be read is in the list as Unclear.
	List(ctx context.Context) (List, error)
	// String says who is asked and where.
	String() string
}

// New returns the orchestrator of a text such as the configuration has:
// "multikernel", or "multikernel:DIR" where its file system is mounted elsewhere
// than on MultikernelDir. It is not asked yet.
func New(text string) (Orchestrator, error) {
	kind, dir, given := strings.Cut(text, ":")
	if !given {
		dir = MultikernelDir
	}
	if kind != "multikernel" || !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("orchestrator %q: want multikernel, or multikernel:DIR with an absolute path: %w", text, errdefs.ErrInvalidArgument)
	}
	return &Multikernel{Dir: filepath.Clean(dir)}, nil
}
