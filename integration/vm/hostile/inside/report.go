package inside

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Report is what was found in a guest.
type Report struct {
	Images int
	// Mounts counts mounts by how they ended: "ok" or the error's name.
	Mounts map[string]int
	// Calls counts everything else by "CALL ERROR", successes not.
	Calls map[string]int
	// Done counts what succeeded, by call.
	Done map[string]int
	// Broken is what must not be.
	Broken []string
	// Seconds is how long the images took together.
	Seconds float64
	// Slowest has the longest time that a step took with an image.
	Slowest map[string]Slow

	mu sync.Mutex
}

// Slow is how long a step took with an image.
type Slow struct {
	Seconds float64
	Image   string
}

func newReport() *Report {
	return &Report{Mounts: map[string]int{}, Calls: map[string]int{}, Done: map[string]int{}, Slowest: map[string]Slow{}}
}

// took notes how long a step has taken since start.
func (r *Report) took(step, image string, start time.Time) {
	r.slow(step, Slow{time.Since(start).Seconds(), image})
}

func (r *Report) slow(step string, s Slow) {
	if s.Seconds > r.Slowest[step].Seconds {
		r.Slowest[step] = s
	}
}

// locked calls fn while no other goroutine does.
func (r *Report) locked(fn func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fn()
}

// errorName returns an error's symbol.
func errorName(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		if errno == unix.EUCLEAN {
			return "EUCLEAN" // package unix knows an alias
		}
		if n := unix.ErrnoName(errno); n != "" {
			return n
		}
	}
	return err.Error()
}

// call counts the end of a call and reports whether it succeeded.
func (r *Report) call(what string, err error) bool {
	if err != nil {
		r.Calls[what+" "+errorName(err)]++
		return false
	}
	r.Done[what]++
	return true
}

func (r *Report) broken(format string, args ...any) {
	// One cause breaks much.
	if len(r.Broken) < 50 {
		r.Broken = append(r.Broken, fmt.Sprintf(format, args...))
	}
}

// add adds what another process found.
func (r *Report) add(o *Report) {
	r.Images += o.Images
	for _, m := range []struct{ to, from map[string]int }{{r.Mounts, o.Mounts}, {r.Calls, o.Calls}, {r.Done, o.Done}} {
		for k, n := range m.from {
			m.to[k] += n
		}
	}
	for _, b := range o.Broken {
		r.broken("%s", b)
	}
	for step, slow := range o.Slowest {
		r.slow(step, slow)
	}
}

// String is the report for people.
func (r *Report) String() string {
	counts := func(m map[string]int) string {
		var out []string
		for _, k := range slices.Sorted(maps.Keys(m)) {
			out = append(out, fmt.Sprintf("%s %d", k, m[k]))
		}
		return strings.Join(out, ", ")
	}
	var slowest []string
	for _, step := range slices.Sorted(maps.Keys(r.Slowest)) {
		slowest = append(slowest, fmt.Sprintf("%s %.1f s (%s)", step, r.Slowest[step].Seconds, r.Slowest[step].Image))
	}
	return fmt.Sprintf("%d images in %.0f s, slowest: %s\nmounts: %s\nsuccesses: %s\nerrors: %s",
		r.Images, r.Seconds, strings.Join(slowest, ", "), counts(r.Mounts), counts(r.Done), counts(r.Calls))
}
