package load

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// Load is one kernel's clients: several goroutines in Work, over any number of
// lives of the daemon.
type Load struct {
	dir    string // containers are mounted below it
	images []*Image

	mu     sync.Mutex
	serial int
	active map[string]bool // keys of snapshots that an operation is at
	held   []*container    // stay mounted for a while
	calls  map[string]int  // that run, by operation
	done   map[string]int  // operations that succeeded
	failed map[string]int  // operations that did not, with a reason that a kill gives
	read   Read

	began chan string // an operation's call begins, if somebody wants to know
}

// Read counts what was compared.
type Read struct {
	Files int
	Bytes int64
	Runs  int // of the program in an image
}

// Operations are what the goroutines do.
var Operations = []string{"pull", "run", "view", "remove", "collect"}

// maxHeld bounds the containers that stay.
const maxHeld = 4

// New returns a load over images, which mounts containers below dir.
func New(dir string, images []*Image) (*Load, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return &Load{
		dir: dir, images: images, active: map[string]bool{}, calls: map[string]int{},
		done: map[string]int{}, failed: map[string]int{}, began: make(chan string),
	}, nil
}

// Work does one operation after the other until ctx ends. connect returns the
// snapshotter as it is there now, and waits until it is. The error is about
// something that no kill explains: above all, wrong bytes.
func (l *Load) Work(ctx context.Context, rnd *rand.Rand, connect func(context.Context) (snapshots.Snapshotter, error)) error {
	for {
		sn, err := connect(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		op := l.choose(rnd)
		// An operation ends by itself, or with the daemon.
		err = l.do(context.WithoutCancel(ctx), sn, op, rnd)
		l.mu.Lock()
		if err == nil {
			l.done[op]++
		} else {
			l.failed[op]++
		}
		l.mu.Unlock()
		if err != nil && !explained(err) {
			return fmt.Errorf("%s: %w", op, err)
		}
		if errdefs.IsUnavailable(err) {
			pause(ctx)
		}
	}
}

// pause gives a daemon that is gone time to come back.
func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(20 * time.Millisecond):
	}
}

func (l *Load) choose(rnd *rand.Rand) string {
	switch n := rnd.IntN(16); {
	case n < 4:
		return "pull"
	case n < 10:
		return "run"
	case n < 12:
		return "view"
	case n < 14:
		return "remove"
	default:
		return "collect"
	}
}

func (l *Load) do(ctx context.Context, sn snapshots.Snapshotter, op string, rnd *rand.Rand) error {
	ctx = context.WithValue(ctx, operation{}, op)
	img := l.images[rnd.IntN(len(l.images))]
	switch op {
	case "pull":
		return l.pull(ctx, sn, img, rnd.IntN(3) == 0)
	case "run":
		if c := l.takeHeld(rnd); c != nil {
			return l.end(ctx, sn, c)
		}
		return l.run(ctx, sn, img, rnd)
	case "view":
		return l.view(ctx, sn, img)
	case "remove":
		return l.remove(ctx, sn, img)
	default:
		return l.collect(ctx, sn)
	}
}

// ErrWrong: what was read is not what was put there.
var ErrWrong = errors.New("wrong bytes")

// explained reports whether an operation may end like this: because the daemon
// was killed, because another operation was faster, or because a small pool is
// full. A layer that is lost is none of these, nor is a mount that fails.
func explained(err error) bool {
	var p *os.PathError
	switch {
	case errors.Is(err, ErrWrong), errors.As(err, &p):
		return false
	}
	return errdefs.IsUnavailable(err) || errdefs.IsCanceled(err) || errdefs.IsNotFound(err) ||
		errdefs.IsAlreadyExists(err) || errdefs.IsResourceExhausted(err)
}

// key makes a key that no snapshot has had. Snapshots that a pool gives to an
// unpack are named after the namespace and number in its key.
func (l *Load) key(what, suffix string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.serial++
	k := fmt.Sprintf("%s%s-%d%s", prefix, what, l.serial, suffix)
	l.active[k] = true
	return k
}

// finished says that nobody is at a snapshot any more: what is left of it is for
// collect.
func (l *Load) finished(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.active, key)
}

// Counts returns how many operations succeeded, and failed for a reason, and
// what was read.
func (l *Load) Counts() (done, failed map[string]int, read Read) {
	l.mu.Lock()
	defer l.mu.Unlock()
	done, failed = map[string]int{}, map[string]int{}
	for op, n := range l.done {
		done[op] = n
	}
	for op, n := range l.failed {
		failed[op] = n
	}
	return done, failed, l.read
}

func sorted(keys iter.Seq[string]) []string { return slices.Sorted(keys) }

func split(p string) (dir, name string) { return path.Split(p) }
