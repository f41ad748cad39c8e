package process

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"github.com/daxfs/containerd-daxfs/integration/vm"
	"github.com/daxfs/containerd-daxfs/integration/vm/process/inside"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

// TestGuests runs the tests on each kernel of the lab, over one pool.
func TestGuests(t *testing.T) {
	testutil.VM(t)
	tools(t)
	dir := t.TempDir()
	pool, err := os.OpenFile(vm.TempPool(t, poolSize), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	config := makeImages(t, pool, dir)
	binary := buildInside(t, dir)
	before := sum(t, pool)
	vm.EachKernel(t, func(t *testing.T, k vm.Kernel) {
		stop := tick(t, pool, config)
		runInside(t, &guestRunner{t: t, kernel: k, pool: pool.Name(), dir: dir, binary: binary, config: *config})
		stop()
		if sum(t, pool) != before {
			t.Error("the pool's bytes are not what they were before the guest used them")
		}
	})
}

// guestRunner runs the tests in a guest, and in another one if they have
// taken it along.
type guestRunner struct {
	t      *testing.T
	kernel vm.Kernel
	pool   string
	dir    string
	binary string
	config inside.Config

	guest    *vm.Guest
	file     string              // of the guest's configuration
	troubles map[string][]string // by test
}

func (r *guestRunner) boot(t *testing.T) {
	t.Helper()
	g, err := vm.Boot(t.Context(), vm.Machine{
		Kernel: r.kernel, Memory: 2 << 30, Pool: r.pool, Daxfs: true, Shared: r.dir,
	})
	if err != nil {
		t.Fatal(err)
	}
	r.t.Cleanup(g.Kill)
	r.guest = g
	r.config.FS, r.config.Kernel, r.config.Phys = "daxfs", r.kernel.Name, g.PoolAddress()
	if r.config.Module, err = r.kernel.Module(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.file = filepath.Join(r.dir, "config-"+r.kernel.Name+".json")
	if err := r.config.Write(r.file); err != nil {
		t.Fatal(err)
	}
}

func (r *guestRunner) run(t *testing.T, args ...string) ([]byte, error) {
	t.Helper()
	if r.guest == nil {
		r.boot(t)
	}
	// As it comes: a guest that dies has said something before.
	out := &watch{runner: r, seen: len(r.guest.Trouble())}
	res, err := r.guest.Run(t.Context(), vm.Command{
		Args:   append([]string{r.binary}, args...),
		Env:    []string{inside.ConfigEnv + "=" + r.file},
		Stdout: out, Stderr: out,
	})
	out.next("")
	if err != nil {
		console := r.guest.Console()
		t.Errorf("%v; end of the kernel's log:\n%s", err, console[max(0, len(console)-8000):])
		r.guest.Kill()
		r.guest = nil
	} else if res.Code != 0 {
		err = fmt.Errorf("exit status %d", res.Code)
	}
	return out.Bytes(), err
}

func (r *guestRunner) trouble(test string) []string { return r.troubles[test] }

// watch collects the output of the tests and what the guest's kernel reports
// while each runs.
type watch struct {
	bytes.Buffer
	runner *guestRunner
	test   string // that runs
	line   []byte // what has come of the current line
	seen   int    // lines of trouble that have been counted
}

func (w *watch) Write(b []byte) (int, error) {
	for _, c := range b {
		if c != '\n' {
			w.line = append(w.line, c)
			continue
		}
		// "\x16=== RUN   TestName", without the names of subtests
		name, ok := strings.CutPrefix(strings.TrimPrefix(string(w.line), "\x16"), "=== RUN   ")
		if ok && !strings.Contains(name, "/") {
			w.next(name)
		}
		w.line = w.line[:0]
	}
	return w.Buffer.Write(b)
}

// next notes that a test begins, or that none does.
func (w *watch) next(test string) {
	lines := w.runner.guest.Trouble()
	if new := lines[w.seen:]; len(new) > 0 {
		if w.runner.troubles == nil {
			w.runner.troubles = map[string][]string{}
		}
		w.runner.troubles[w.test] = append(w.runner.troubles[w.test], new...)
	}
	w.test, w.seen = test, len(lines)
}

// tick writes growing numbers into the page inside.Live until stop is called:
// the native image and the pool's have one.
func tick(t *testing.T, pool *os.File, c *inside.Config) (stop func()) {
	t.Helper()
	end, ended := make(chan struct{}), make(chan struct{})
	write := func(n uint64) {
		page := bytes.Repeat(binary.LittleEndian.AppendUint64(nil, n), inside.LiveSize/8)
		for _, image := range []string{inside.ImageNative, inside.ImagePool} {
			if _, err := pool.WriteAt(page, c.Images[image].Live); err != nil {
				t.Errorf("write to the pool: %v", err)
			}
		}
	}
	go func() {
		defer close(ended)
		for n := uint64(1); ; n++ {
			select {
			case <-end:
				write(0)
				return
			case <-time.After(inside.LivePeriod):
				write(n)
			}
		}
	}()
	return func() { close(end); <-ended }
}

// sum is the digest of all bytes of the pool.
func sum(t *testing.T, pool *os.File) [32]byte {
	t.Helper()
	h := blake3.New()
	b := make([]byte, 1<<20)
	for off := int64(0); off < poolSize; off += int64(len(b)) {
		if _, err := pool.ReadAt(b, off); err != nil {
			t.Fatal(err)
		}
		h.Write(b)
	}
	return [32]byte(h.Sum(nil))
}
