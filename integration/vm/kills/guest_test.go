package kills

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/daxfs/containerd-daxfs/integration/vm"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

// kernel is a guest with a daemon, which is started again whenever it ends, and
// clients.
type kernel struct {
	*vm.Guest
	t    *testing.T
	lab  *kills
	name string

	daemon, load testutil.Output
	loaded       chan struct{} // closed when the clients have ended
	loadErr      error         // why, if not as they should
}

// daemonServes succeeds when the daemon can be asked for its snapshots.
const daemonServes = `daxfsctl pool ls --json | grep -q '"references_from": "daemon"'`

// boot boots a guest that has never been there, but for its name, and starts all
// that it runs. /run is in its memory.
func (l *kills) boot(t *testing.T, name string) *kernel {
	t.Helper()
	g := vm.Start(t, vm.Machine{Kernel: l.kernels[name], Memory: gib, Pool: l.pool, Daxfs: true})
	k := &kernel{Guest: g, t: t, lab: l, name: name, loaded: make(chan struct{})}
	k.sh(fmt.Sprintf(`mkdir -p /run/k /etc/containerd-daxfs
		cat >/etc/containerd-daxfs/config.toml <<END
root = "/run/k/root"
address = "/run/k/sock"
[pool]
path = "phys:%#x,size=%d"
max_size = "%d"
[share]
role = "auto"
instance = "%s"
ask_timeout = "20s"
END`, g.PoolAddress(), poolSize, poolSize, name))
	go k.background(&k.daemon, "while :; do containerd-daxfs-grpc || :; sleep 0.3; done")
	k.wait(daemonServes)
	l.serial++
	go func() {
		k.loadErr = k.background(&k.load, fmt.Sprintf("exec load -socket /run/k/sock -dir /run/k/containers -program %s -seed %d", l.program, l.seed+l.serial))
		close(k.loaded)
	}()
	return k
}

func (k *kernel) command(script string) vm.Command {
	return vm.Command{Args: []string{"sh", "-euc", script}, Env: []string{"PATH=" + k.lab.bin + ":/usr/sbin:/usr/bin:/sbin:/bin"}}
}

func (k *kernel) background(out *testutil.Output, script string) error {
	c := k.command(script)
	c.Stdout, c.Stderr = out, out
	res, err := k.Run(context.Background(), c)
	if err == nil && res.Code != 0 {
		err = fmt.Errorf("exit status %d", res.Code)
	}
	return err
}

func (k *kernel) try(script string) (string, error) {
	ctx, cancel := context.WithTimeout(k.t.Context(), 2*time.Minute)
	defer cancel()
	res, err := k.Run(ctx, k.command(script))
	if err != nil {
		return "", err
	}
	if res.Code != 0 {
		return string(res.Stdout), fmt.Errorf("guest %s: %s: exit status %d\n%s%s", k.name, script, res.Code, res.Stdout, res.Stderr)
	}
	return string(res.Stdout), nil
}

func (k *kernel) sh(script string) string {
	k.t.Helper()
	out, err := k.try(script)
	if err != nil {
		k.t.Fatal(err)
	}
	return out
}

// wait waits until a script succeeds.
func (k *kernel) wait(script string) {
	k.t.Helper()
	var err error
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); time.Sleep(300 * time.Millisecond) {
		if _, err = k.try(script); err == nil {
			return
		}
	}
	k.t.Fatalf("not within three minutes: %v\n%s", err, lastLines(k.daemon.String()))
}

var verified = regexp.MustCompile(`(?m)^verified \d+ containers$`)

// rounds waits until all held containers were compared n times more, by clients
// that find nothing wrong.
func (k *kernel) rounds(n int) {
	k.t.Helper()
	count := func() int { return len(verified.FindAllString(k.load.String(), -1)) }
	goal := count() + n
	for deadline := time.Now().Add(5 * time.Minute); count() < goal; time.Sleep(50 * time.Millisecond) {
		k.sound()
		if time.Now().After(deadline) {
			k.t.Fatalf("guest %s: held containers were compared %d times, want %d\n%s", k.name, count(), goal, lastLines(k.daemon.String()))
		}
	}
	k.lab.compared += n
}

// sound fails the test when the clients have ended.
func (k *kernel) sound() {
	k.t.Helper()
	select {
	case <-k.loaded:
		k.t.Fatalf("guest %s: clients ended: %v\n%s\n%s", k.name, k.loadErr, lastLines(k.load.String()), lastLines(k.daemon.String()))
	default:
	}
}

// release lets the clients remove all that they have made.
func (k *kernel) release() {
	k.t.Helper()
	k.sh("pkill -TERM -x load")
	select {
	case <-k.loaded:
	case <-time.After(5 * time.Minute):
		k.t.Fatalf("guest %s: clients do not end\n%s", k.name, lastLines(k.daemon.String()))
	}
	if k.loadErr != nil {
		k.t.Fatalf("guest %s: clients: %v\n%s\n%s", k.name, k.loadErr, lastLines(k.load.String()), lastLines(k.daemon.String()))
	}
	k.t.Logf("guest %s: %s", k.name, lastLine(k.load.String()))
	left := k.sh("find /sys/fs/daxfs -mindepth 1 -maxdepth 1 ! -name regions; find /run/k/root/images /run/k/root/snapshots /run/k/containers -mindepth 1")
	if left != "" {
		k.t.Errorf("guest %s after the last release:\n%s", k.name, left)
	}
}

func lastLines(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}

func lastLine(s string) string { return s[strings.LastIndex(strings.TrimRight(s, "\n"), "\n")+1:] }
