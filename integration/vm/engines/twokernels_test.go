package engines

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/daxfs/containerd-daxfs/integration/lab"
	"github.com/daxfs/containerd-daxfs/integration/vm"
)

// Two kernels of different versions run containers from one image in one
// memory. The owner's daemon is killed, then its kernel shut down: the other
// kernel's containers, which hash every file and run its programs all the time,
// notice nothing.
func TestTwoKernels(t *testing.T) {
	bin, archive := prepare(t)
	pool := vm.TempPool(t, systemPool)
	kernel := func(name string) vm.Kernel {
		k, err := vm.FindKernel(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	owner := vm.Machine{Kernel: kernel("6.12"), Memory: 2 * gib, Pool: pool, Daxfs: true, Disk: newDisk(t)}
	// The owner comes back with another boot ID: its name says that it is the
	// same, and that its first boot is over.
	named := func(g *vm.Guest) string { return physPool(g) + "\n[share]\ninstance = \"owner\"" }
	a := newSystem(t, bin, owner, named)
	a.importImage(archive)
	a.sh("ctr run -d --snapshotter daxfs " + image + " first sleep 100000")
	sums := a.sh("ctr task exec --exec-id sums first sh -c '" + hashAll + "'")
	t.Logf("%d files in the image", strings.Count(sums, "\n"))

	shared := t.TempDir()
	if err := os.WriteFile(filepath.Join(shared, "sums"), []byte(sums), 0o600); err != nil {
		t.Fatal(err)
	}
	b := newReader(t, bin, vm.Machine{Kernel: kernel("7.3"), Memory: 2 * gib, Pool: pool, Daxfs: true, Shared: shared})
	b.containers(t, 3)
	b.rounds(t, 2)

	// Both at once, and not only one after the other.
	a.sh("ctr run --rm --snapshotter daxfs " + image + " second sh -c 'perl -e \"print 6*7\"; dpkg -l | tail -n1'")
	a.killDaemon()
	b.rounds(t, 2)
	if got := a.sh("ctr task exec --exec-id again first sh -c '" + hashAll + "'"); got != sums {
		t.Error("files differ in the owner's container while its daemon is dead")
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	b.rounds(t, 4)

	// The owner comes back to a pool that another kernel reads.
	a = newSystem(t, bin, owner, named)
	if got := a.sh("ctr run --rm --snapshotter daxfs " + image + " third sh -c '" + hashAll + "'"); got != sums {
		t.Error("files differ after the owner's return")
	}
	if out := a.sh("daxfsctl pool check --data"); !strings.Contains(out, "sound") {
		t.Errorf("%s", out)
	}
	b.rounds(t, 2)
	b.stop(t)
}

// reader is a guest without daemons that has one image of the pool mounted.
type reader struct {
	*system
	cancel context.CancelFunc
	wg     sync.WaitGroup
	loops  []*loop
}

// loop is one container, and how often it went round.
type loop struct {
	output
	err   atomic.Pointer[error]
	ended atomic.Bool
}

// round is the line that a container writes when all files and programs were
// as they should be. Anything else on its output is an error.
const round = "round"

// newReader boots a guest and mounts the pool's image in it. The digests of the
// image's files are in "sums" in the guest's shared directory.
func newReader(t *testing.T, bin string, m vm.Machine) *reader {
	t.Helper()
	s := &reader{system: &system{Guest: vm.Start(t, m), t: t, bin: bin}}
	s.sh("mkdir -p /etc/containerd-daxfs /run/image /run/containers && mount -t tmpfs tmpfs /run/containers")
	s.write("/etc/containerd-daxfs/config.toml", physPool(s.Guest))
	var ls struct {
		Records []struct{ Kind, Key string }
	}
	if err := json.Unmarshal([]byte(s.sh("daxfsctl pool ls --json 2>/dev/null")), &ls); err != nil {
		t.Fatal(err)
	}
	key := ""
	for _, r := range ls.Records {
		if r.Kind == "image" {
			key = r.Key
		}
	}
	if out := s.sh("daxfsctl image mount pool:" + key + " /run/image"); !strings.Contains(out, "mounted on /run/image by daxfs/phys") {
		t.Fatalf("daxfsctl says %q", out)
	}
	s.sh("cp " + m.Shared + "/sums /run/sums")
	return s
}

// containers starts n containers, which go round until stop.
func (r *reader) containers(t *testing.T, n int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r.cancel = cancel
	t.Cleanup(func() { cancel(); r.wg.Wait() })
	for i := range n {
		dir := fmt.Sprintf("/run/containers/%d", i)
		r.sh(fmt.Sprintf(`mkdir -p %[1]s/upper %[1]s/work %[1]s/rootfs
			mount -t overlay -o lowerdir=/run/image,upperdir=%[1]s/upper,workdir=%[1]s/work overlay %[1]s/rootfs
			cp /run/sums %[1]s/rootfs/sums
			runc spec -b %[1]s`, dir))
		r.write(dir+"/config.json", r.config(t, r.sh("cat "+dir+"/config.json"), i))
		l := &loop{output: output{name: fmt.Sprint("container ", i)}}
		r.loops = append(r.loops, l)
		r.logs = append(r.logs, &l.output)
		r.wg.Go(func() {
			res, err := r.Run(ctx, vm.Command{
				Args: []string{filepath.Join(lab.CacheDir(), "bin/runc"), "--root", "/run/runc", "run", "-b", dir, fmt.Sprint("c", i)},
				Env:  r.env(), Stdout: l, Stderr: l,
			})
			if err == nil {
				err = fmt.Errorf("exit status %d", res.Code)
			}
			l.err.Store(&err)
			l.ended.Store(true)
		})
	}
}

// config changes what runc proposes: the process, and no terminal.
func (r *reader) config(t *testing.T, proposed string, n int) string {
	t.Helper()
	var c map[string]any
	if err := json.Unmarshal([]byte(proposed), &c); err != nil {
		t.Fatal(err)
	}
	process := c["process"].(map[string]any)
	process["terminal"] = false
	// One hashes everything, one runs programs, one keeps them mapped all the time.
	script := []string{
		`while sha256sum --quiet -c /sums; do echo round; done`,
		`while test "$(perl -e 'print 6*7')" = 42 && dpkg -l >/dev/null && find /usr -type f >/dev/null && ls -lR /etc >/dev/null; do echo round; done`,
		`exec perl -MPOSIX -MSocket -e '$| = 1; while (1) { POSIX::strtol("42", 10) == 42 or die; open(my $f, "<", "/usr/bin/perl") or die; local $/; length(<$f>) > 1000000 or die; system("/bin/true") == 0 or die; print "round\n"; sleep 1 }'`,
	}[n%3]
	process["args"] = []string{"/bin/bash", "-c", script}
	c["root"] = map[string]any{"path": "rootfs", "readonly": false}
	out, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// rounds waits until every container has gone round n more times, and fails the
// test at once when one of them says or does anything else.
func (r *reader) rounds(t *testing.T, n int) {
	t.Helper()
	goal := make([]int, len(r.loops))
	for i, l := range r.loops {
		goal[i] = l.count() + n
	}
	deadline := time.Now().Add(10 * time.Minute)
	for i, l := range r.loops {
		for l.count() < goal[i] {
			if l.ended.Load() {
				t.Fatalf("%s ended: %v\n%s", l.name, *l.err.Load(), lastLines(l.String(), 20))
			}
			if other := strings.ReplaceAll(l.String(), round+"\n", ""); other != "" && other != round {
				t.Fatalf("%s wrote %q", l.name, lastLines(other, 20))
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s went round %d times, want %d", l.name, l.count(), goal[i])
			}
			time.Sleep(200 * time.Millisecond)
		}
	}
}

func (l *loop) count() int { return strings.Count(l.String(), round+"\n") }

// stop ends the containers and takes the image away, which then has no user.
func (r *reader) stop(t *testing.T) {
	t.Helper()
	for i, l := range r.loops {
		if l.ended.Load() {
			t.Errorf("%s ended by itself: %v\n%s", l.name, *l.err.Load(), lastLines(l.String(), 20))
			continue
		}
		t.Logf("%s went round %d times", l.name, l.count())
		r.sh(fmt.Sprintf("runc --root /run/runc kill c%d KILL", i))
	}
	r.wg.Wait()
	r.sh("umount /run/containers/*/rootfs && daxfsctl image unmount /run/image")
	if left := r.sh("ls /sys/fs/daxfs"); strings.TrimSpace(left) != "regions" {
		t.Errorf("the kernel still has %q", left)
	}
}
