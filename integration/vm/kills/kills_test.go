package kills

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/daxfs/containerd-daxfs/integration/poolcheck"
	"github.com/daxfs/containerd-daxfs/integration/vm"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

const (
	mib      = 1 << 20
	gib      = 1 << 30
	poolSize = 64 * mib
)

// kills is one pool and the guests at it.
type kills struct {
	bin, program string
	pool         string
	kernels      map[string]vm.Kernel // by guest
	seed, serial uint64
	compared     int
	checked      int64
}

// TestRandomGuestKills ends one of two guests after the other, as a power failure
// would, at moments that a seed chooses. After an owner's end the other takes the
// pool, on an operator's word; or the same instance comes back and has it again.
// DAXFS_GUEST_KILLS and DAXFS_KILLS_SEED say how many, and which.
func TestRandomGuestKills(t *testing.T) {
	testutil.VM(t)
	number := func(name string, otherwise uint64) uint64 {
		if v := os.Getenv(name); v != "" {
			n, err := strconv.ParseUint(v, 10, 64)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			return n
		}
		return otherwise
	}
	n := number("DAXFS_GUEST_KILLS", 20)
	if testing.Short() {
		n = 2
	}
	l := &kills{seed: number("DAXFS_KILLS_SEED", uint64(time.Now().UnixNano())), pool: vm.TempPool(t, poolSize), kernels: map[string]vm.Kernel{}}
	t.Logf("%d kills, seed %d", n, l.seed)
	rnd := rand.New(rand.NewPCG(l.seed, 3))
	l.build(t)
	for name, version := range map[string]string{"a": "6.12", "b": "7.3"} {
		k, err := vm.FindKernel(t.Context(), version)
		if err != nil {
			t.Fatal(err)
		}
		l.kernels[name] = k
	}
	start := time.Now()
	owner := l.boot(t, "a")
	owner.rounds(1)
	reader := l.boot(t, "b")
	reader.rounds(1)
	owners := 0
	for i := range n {
		time.Sleep(time.Duration(rnd.IntN(2000)) * time.Millisecond)
		owner.sound()
		reader.sound()
		evicted := rnd.IntN(2) == 0
		// With -short one of each.
		if rnd.IntN(2) == 0 && !testing.Short() || testing.Short() && i == 0 {
			owners++
			owner, reader = l.killOwner(t, owner, reader, evicted)
		} else {
			reader = l.killReader(t, owner, reader, evicted)
		}
		t.Logf("%d guests killed after %v", i+1, time.Since(start).Round(time.Second))
	}
	l.release(t, owner, reader)
	t.Logf("%d guests killed in %v: %d owners, %d readers; held containers compared %d times after a kill, checks of the pool read %d bytes",
		n, time.Since(start).Round(time.Second), owners, int(n)-owners, l.compared, l.checked)
}

// build builds what runs in the guests.
func (l *kills) build(t *testing.T) {
	t.Helper()
	l.bin = t.TempDir()
	l.program = filepath.Join(l.bin, "testprog")
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", l.bin+"/",
		"../../../cmd/containerd-daxfs-grpc", "../../../cmd/daxfsctl", "../../cmd/load", "../../testprog")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
}

// killOwner ends the owner's guest. evicted: an operator says that it is gone,
// and the reader owns the pool. Else the same instance comes back to its pool.
func (l *kills) killOwner(t *testing.T, owner, reader *kernel, evicted bool) (nextOwner, nextReader *kernel) {
	t.Helper()
	owner.Kill()
	l.checked += poolcheck.Sound(t, l.pool, false)
	reader.rounds(2)
	if evicted {
		reader.sh("daxfsctl lease evict --owner " + l.seatOf(t, owner.name))
		l.owned(t, reader)
		reader.rounds(1)
		l.checked += poolcheck.Sound(t, l.pool, false)
		back := l.boot(t, owner.name)
		back.rounds(1)
		return reader, back
	}
	back := l.boot(t, owner.name)
	l.owned(t, back)
	back.rounds(1)
	reader.rounds(1)
	l.checked += poolcheck.Sound(t, l.pool, false)
	return back, reader
}

// killReader ends the reader's guest. evicted: an operator says that it is gone;
// else its pins count until the same instance is back.
func (l *kills) killReader(t *testing.T, owner, reader *kernel, evicted bool) (next *kernel) {
	t.Helper()
	reader.Kill()
	l.checked += poolcheck.Sound(t, l.pool, false)
	if evicted {
		owner.sh("daxfsctl lease evict " + l.seatOf(t, reader.name))
	}
	owner.rounds(2)
	l.checked += poolcheck.Sound(t, l.pool, false)
	next = l.boot(t, reader.name)
	next.rounds(1)
	return next
}

// seatOf is the number of an instance's seat.
func (l *kills) seatOf(t *testing.T, instance string) string {
	t.Helper()
	for _, s := range poolcheck.Seats(t, l.pool) {
		if s.Held && s.Instance == instance {
			return fmt.Sprint(s.Number)
		}
	}
	t.Fatalf("%s has no seat", instance)
	return ""
}

// owned waits until a guest owns the pool.
func (l *kills) owned(t *testing.T, k *kernel) {
	t.Helper()
	k.wait("daxfsctl lease ls | grep -q 'owner *" + k.name + " '")
}

// release removes everything everywhere, and holds the pool against nothing.
func (l *kills) release(t *testing.T, owner, reader *kernel) {
	t.Helper()
	for _, k := range []*kernel{reader, owner} {
		k.release()
	}
	if out := owner.sh("daxfsctl pool check --data"); !strings.Contains(out, "sound") {
		t.Errorf("%s", out)
	}
	reader.end()
	// What the owner had made for others stays for a minute, or until it ends:
	// its next daemon frees it.
	owner.sh("daemon=$(pgrep -f '^containerd-daxfs-grpc'); kill $daemon; while kill -0 $daemon; do sleep 0.1; done")
	owner.wait(daemonServes + " && daxfsctl lease ls | grep -q 'owner *" + owner.name + " '")
	owner.end()
	for _, s := range poolcheck.Seats(t, l.pool) {
		if s.Held {
			t.Errorf("%v, with %d pins, is left by nobody", s, s.Pins)
		}
	}
	l.checked += poolcheck.Sound(t, l.pool, true)
	poolcheck.Empty(t, l.pool)
}

// end ends the daemon for good.
func (k *kernel) end() {
	k.t.Helper()
	k.sh("pkill -KILL -f '^sh -euc while'; pkill -TERM -f '^containerd-daxfs-grpc'")
	k.wait("! pgrep -f '^containerd-daxfs-grpc'")
}
