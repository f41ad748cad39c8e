package kills

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	"github.com/daxfs/containerd-daxfs/integration/lab/sweep"
	"github.com/daxfs/containerd-daxfs/integration/load"
)

// workers are the goroutines that work at each daemon.
const workers = 3

// kernel is a daemon that is killed and started again, with its directory and
// its clients. "Kernel" is what the pool takes it for.
type kernel struct {
	t      *testing.T
	scene  *scene
	name   string
	role   string // in the configuration
	keeps  bool   // as an owner, what nobody needs
	boots  int    // directories so far
	load   *load.Load
	daemon *daemon

	stop   context.CancelFunc // of the workers
	worked sync.WaitGroup

	mu      sync.Mutex
	sn      snapshots.Snapshotter // nil: no daemon
	changed chan struct{}         // closed when sn changes
}

// daemon is one process.
type daemon struct {
	cmd   *exec.Cmd
	ended chan struct{}
	conn  *grpc.ClientConn
}

func (k *kernel) dir() string {
	return filepath.Join(k.scene.dir, fmt.Sprintf("%s%d", k.name, k.boots))
}
func (k *kernel) root() string   { return filepath.Join(k.dir(), "root") }
func (k *kernel) socket() string { return filepath.Join(k.dir(), "sock") }
func (k *kernel) log() string    { return filepath.Join(k.scene.dir, k.name+".log") }

// boot makes the directory of a kernel that has never been there.
func (k *kernel) boot() {
	k.t.Helper()
	k.boots++
	err := os.Mkdir(k.dir(), 0o700)
	if err == nil {
		k.load, err = load.New(filepath.Join(k.dir(), "containers"), k.scene.images)
	}
	if err != nil {
		k.t.Fatal(err)
	}
	k.configure(k.keeps)
}

// configure writes the configuration of the next daemon. keep lets it keep what
// no snapshot needs, up to marks that the images exceed.
func (k *kernel) configure(keep bool) {
	k.t.Helper()
	err := os.WriteFile(filepath.Join(k.dir(), "config.toml"), fmt.Appendf(nil, `root = %q
address = %q
[pool]
path = %q
max_size = "48MiB"
keep_unused = %v
high_watermark = 20
low_watermark = 10
[share]
role = %q
ask_timeout = "3s"
[engine]
order = ["erofs"]
`, k.root(), k.socket(), k.scene.pool, keep, k.role), 0o600)
	if err != nil {
		k.t.Fatal(err)
	}
}

// exec starts the daemon's process.
func (k *kernel) exec() {
	k.t.Helper()
	out, err := os.OpenFile(k.log(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		k.t.Fatal(err)
	}
	defer out.Close()
	d := &daemon{cmd: exec.Command(k.scene.binary, "--config", filepath.Join(k.dir(), "config.toml")), ended: make(chan struct{})}
	d.cmd.Stdout, d.cmd.Stderr = out, out
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	go func() {
		_ = d.cmd.Wait()
		close(d.ended)
	}()
	k.daemon = d
}

// start starts the daemon and waits until it serves.
func (k *kernel) start() {
	k.t.Helper()
	k.exec()
	sn, conn, err := k.load.Dial(k.socket())
	if err != nil {
		k.t.Fatal(err)
	}
	k.daemon.conn = conn
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		if _, err = sn.Stat(ctx, "nothing"); errdefs.IsNotFound(err) {
			break
		}
		select {
		case <-k.daemon.ended:
			k.t.Fatalf("daemon of %s ended at its start: %v", k.name, k.daemon.cmd.ProcessState)
		case <-ctx.Done():
			k.t.Fatalf("daemon of %s does not serve: %v", k.name, err)
		case <-time.After(2 * time.Millisecond):
		}
	}
	k.connected(sn)
}

// end ends the daemon by a signal and returns what was in flight.
func (k *kernel) end(sig syscall.Signal) (doing []string) {
	k.t.Helper()
	k.connected(nil)
	k.alive()
	doing = k.load.Doing()
	if err := k.daemon.cmd.Process.Signal(sig); err != nil {
		k.t.Fatal(err)
	}
	select {
	case <-k.daemon.ended:
	case <-time.After(30 * time.Second):
		k.t.Fatalf("daemon of %s does not end on %v", k.name, sig)
	}
	if k.daemon.conn != nil {
		k.daemon.conn.Close()
	}
	k.daemon = nil
	return doing
}

// alive fails the test when the daemon has ended by itself.
func (k *kernel) alive() {
	k.t.Helper()
	if k.daemon == nil {
		return
	}
	select {
	case <-k.daemon.ended:
		k.t.Fatalf("daemon of %s ended by itself: %v", k.name, k.daemon.cmd.ProcessState)
	default:
	}
}

// halt stops the daemon where it is; the function it returns lets it go on.
func (k *kernel) halt() (resume func()) {
	k.t.Helper()
	pid := k.daemon.cmd.Process.Pid
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		k.t.Fatal(err)
	}
	for {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			k.t.Fatal(err)
		}
		if _, state, _ := strings.Cut(string(b), ") "); !strings.HasPrefix(state, "R") && !strings.HasPrefix(state, "S") && !strings.HasPrefix(state, "D") {
			break
		}
	}
	return func() { _ = syscall.Kill(pid, syscall.SIGCONT) }
}

// connected says which snapshotter the workers have from now on.
func (k *kernel) connected(sn snapshots.Snapshotter) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sn = sn
	close(k.changed)
	k.changed = make(chan struct{})
}

// connect waits for a daemon.
func (k *kernel) connect(ctx context.Context) (snapshots.Snapshotter, error) {
	for {
		k.mu.Lock()
		sn, changed := k.sn, k.changed
		k.mu.Unlock()
		if sn != nil {
			return sn, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// work starts the workers.
func (k *kernel) work() {
	ctx, cancel := context.WithCancel(context.Background())
	k.stop = cancel
	for range workers {
		rnd := rand.New(rand.NewPCG(k.scene.rnd.Uint64(), 1))
		k.worked.Go(func() {
			if err := k.load.Work(ctx, rnd, k.connect); err != nil {
				k.scene.wrong <- fmt.Errorf("client of %s: %w", k.name, err)
			}
		})
	}
}

// rest waits until nobody works here any more.
func (k *kernel) rest() {
	k.stop()
	k.worked.Wait()
}

// gone ends the whole kernel, whose daemon has ended: mounts, containers and
// directory are no more.
func (k *kernel) gone() {
	k.t.Helper()
	k.rest()
	k.scene.tally.add(k.load)
	if err := errors.Join(k.load.Abandon(), sweep.Mounts(k.dir())); err != nil {
		k.t.Fatal(err)
	}
	if left, err := sweep.MountsBelow(k.dir()); err != nil || len(left) > 0 {
		k.t.Fatalf("mounts below %s: %q, %v", k.dir(), left, err)
	}
	if err := os.RemoveAll(k.dir()); err != nil {
		k.t.Fatal(err)
	}
}

// showLog puts the end of the daemon's log into the test's.
func (k *kernel) showLog() {
	b, err := os.ReadFile(k.log())
	if err != nil {
		return
	}
	lines := strings.Split(string(b), "\n")
	k.t.Logf("end of the log of %s:\n%s", k.name, strings.Join(lines[max(0, len(lines)-40):], "\n"))
}
