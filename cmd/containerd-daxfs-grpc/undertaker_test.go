package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

// bootVar names a file with a boot ID: the daemon runs as if on another kernel.
const bootVar = "DAXFS_TEST_BOOT_ID"

// becomeKernel gives this process, which has mounts of its own, another boot ID.
func becomeKernel(file string) {
	if err := unix.Mount(file, "/proc/sys/kernel/random/boot_id", "", unix.MS_BIND, ""); err != nil {
		panic(err)
	}
	watchPause = 50 * time.Millisecond
}

// machine is memory that several kernels share, and what the one that spawned
// them says about them.
type machine struct {
	t    *testing.T
	pool string
	tree string // as /sys/fs/multikernel
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	testutil.Root(t)
	memory, err := os.MkdirTemp("/dev/shm", "dxd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(memory) })
	m := &machine{t, filepath.Join(memory, "pool"), t.TempDir()}
	m.write("device_tree", "")
	return m
}

func (m *machine) write(path, text string) {
	m.t.Helper()
	file := filepath.Join(m.tree, path)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		m.t.Fatal(err)
	}
	// At once, as the kernel's own files change.
	if err := os.WriteFile(file+".new", []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) set(instance, status string) {
	m.t.Helper()
	m.write("instances/"+instance+"/status", status+"\n")
}

func (m *machine) remove(path string) {
	m.t.Helper()
	if err := os.RemoveAll(filepath.Join(m.tree, path)); err != nil {
		m.t.Fatal(err)
	}
}

// kernel is a daemon with a boot ID of its own.
type kernel struct {
	site
	*process
	boot string // file
}

// boots starts a kernel's daemon. share are more lines of its [share].
func (m *machine) boots(instance, role, share string) *kernel {
	m.t.Helper()
	k := &kernel{site: newSite(m.t)}
	k.boot = filepath.Join(k.dir, "boot_id")
	if err := os.WriteFile(k.boot, []byte(uuid.NewString()+"\n"), 0o600); err != nil {
		m.t.Fatal(err)
	}
	text := fmt.Sprintf("root = %q\naddress = %q\n[pool]\npath = %q\nmax_size = \"64MiB\"\n[share]\ninstance = %q\nrole = %q\n%s\n",
		k.root, k.socket, m.pool, instance, role, share)
	if err := os.WriteFile(k.config, []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
	k.again(m.t)
	return k
}

// again starts the kernel's daemon, in the same boot.
func (k *kernel) again(t *testing.T) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "--config", k.config)
	cmd.Env = []string{bootVar + "=" + k.boot}
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	k.process = launch(t, cmd)
	k.ready(t, k.process)
}

func (k *kernel) dies(t *testing.T) {
	t.Helper()
	k.signal(t, syscall.SIGKILL)
	k.end(t)
}

func (k *kernel) snapshots(t *testing.T) snapshots.Snapshotter {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+k.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "")
}

var chain = digest.FromString("layer").String()

// unpack commits a layer with one file as an unpack does. It reports whether the
// layer had to be unpacked.
func (k *kernel) unpack(t *testing.T) (unpacked bool) {
	t.Helper()
	sn, key := k.snapshots(t), "test/1/extract-1 "+chain
	labels := snapshots.WithLabels(map[string]string{"containerd.io/snapshot.ref": chain})
	mounts, err := sn.Prepare(t.Context(), key, "", labels)
	if errdefs.IsAlreadyExists(err) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range mounts[0].Options {
		if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
			if err := os.WriteFile(filepath.Join(dir, "file"), make([]byte, 1<<20), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := sn.Commit(t.Context(), "test/2/"+chain, key, labels); err != nil {
		t.Fatal(err)
	}
	return true
}

// look returns the pool's seats by the names of their instances, and how many
// layers there are.
func (m *machine) look() (seats map[string]*daxmem.Seat, layers int) {
	m.t.Helper()
	region, err := daxmem.OpenRegionReadOnly(m.pool)
	if err != nil {
		m.t.Fatal(err)
	}
	pool, err := daxmem.OpenReadOnly(context.Background(), region)
	if err != nil {
		m.t.Fatal(err)
	}
	defer pool.Close()
	all, err := pool.Seats()
	if err != nil {
		m.t.Fatal(err)
	}
	seats = make(map[string]*daxmem.Seat)
	for _, s := range all {
		seats[s.Instance] = s
	}
	for _, r := range pool.Records() {
		if r.Kind == daxmem.KindLayer {
			layers++
		}
	}
	return seats, layers
}

// until waits for something.
func (m *machine) until(what string, done func() bool) {
	m.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			m.t.Fatalf("does not come: %s", what)
		}
	}
}

// manyLooks is long enough for an undertaker to make up its mind. seenAlive is
// more than that on a slow machine: nothing tells when it has looked.
const (
	manyLooks = 10 * 50 * time.Millisecond
	seenAlive = 2 * time.Second
)

// What a reader has pinned stays as long as it may run, and goes when the
// orchestrator says that its instance is gone. Who is unknown there stays.
func TestInstanceGone(t *testing.T) {
	m := newMachine(t)
	m.set("spawn", "active")
	owner := m.boots("host", "owner", fmt.Sprintf("instances = \"multikernel:%s\"", m.tree))
	if !owner.unpack(t) {
		t.Fatal("the pool was not empty")
	}
	reader := m.boots("spawn", "reader", "missing = \"fail\"")
	if reader.unpack(t) {
		t.Fatal("unpacked what the pool has")
	}
	region, err := daxmem.OpenRegionShared(m.pool)
	if err != nil {
		t.Fatal(err)
	}
	unknown, err := daxmem.Attach(t.Context(), region, daxmem.Options{Instance: "vm", Holder: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	defer unknown.Close()
	time.Sleep(seenAlive)

	reader.dies(t)
	if err := owner.snapshots(t).Remove(t.Context(), "test/2/"+chain); err != nil {
		t.Fatal(err)
	}
	before, layers := m.look()
	if before["spawn"] == nil || before["spawn"].Pins == 0 || layers != 1 {
		t.Fatalf("after the removal: %d layers, seat %+v", layers, before["spawn"])
	}
	for name, say := range map[string]func(){
		"running":         func() { m.set("spawn", "active") },
		"halted":          func() { m.set("spawn", "loaded") },
		"failed":          func() { m.set("spawn", "failed") },
		"torn":            func() { m.set("spawn", "rea") },
		"no status":       func() { m.remove("instances/spawn/status") },
		"unreadable":      func() { m.remove("instances/spawn/status"); m.write("instances/spawn/status/x", "ready") },
		"no instances":    func() { m.remove("instances") },
		"nothing mounted": func() { m.remove("device_tree"); m.remove("instances") },
	} {
		say()
		time.Sleep(manyLooks)
		now, layers := m.look()
		if s := now["spawn"]; s == nil || s.Generation != before["spawn"].Generation || s.Pins != before["spawn"].Pins || layers != 1 {
			t.Fatalf("%s: %d layers, seat %+v", name, layers, s)
		}
		m.remove("instances/spawn")
		m.write("device_tree", "")
		m.set("spawn", "active")
	}
	m.set("spawn", "ready")
	m.until("the layer is freed", func() bool { _, layers := m.look(); return layers == 0 })
	now, _ := m.look()
	if now["spawn"] != nil || now["vm"] == nil || now["host"] == nil {
		t.Errorf("left: %v", now)
	}
	for _, w := range []string{"evicted the seat of an instance that is gone", "instance=spawn", "evicted=1", "cannot be asked"} {
		if !strings.Contains(owner.log.String(), w) {
			t.Errorf("does not log %q:\n%s", w, owner.log.String())
		}
	}
	if err := unknown.Check(); err != nil {
		t.Error(err)
	}
}

// An owner that is gone is followed by a reader with the role auto, and by nobody
// as long as it may run.
func TestOwnerGone(t *testing.T) {
	m := newMachine(t)
	m.set("spawn", "active")
	owner := m.boots("spawn", "owner", "")
	owner.unpack(t)
	next := m.boots("host", "auto", fmt.Sprintf("instances = \"multikernel:%s\"", m.tree))
	other := m.boots("other", "reader", "missing = \"fail\"")
	m.set("other", "active")
	time.Sleep(seenAlive)
	owner.dies(t)
	other.dies(t)
	m.remove("instances/other") // a reader's business is the owner's
	for _, status := range []string{"active", "loaded"} {
		m.set("spawn", status)
		time.Sleep(manyLooks)
		if now, _ := m.look(); now["spawn"] == nil || !now["spawn"].Owner || now["other"] == nil {
			t.Fatalf("%s: seats %v", status, now)
		}
	}
	m.remove("instances/spawn")
	if code := next.end(t); code != 1 || !strings.Contains(next.log.String(), "the pool has no owner any more") {
		t.Fatalf("status %d:\n%s", code, next.log.String())
	}
	next.again(t)
	now, _ := m.look()
	if s := now["host"]; s == nil || !s.Owner || now["spawn"] != nil {
		t.Errorf("seats %v", now)
	}
	// The new owner did not see the other reader alive.
	time.Sleep(manyLooks)
	if now, _ := m.look(); now["other"] == nil {
		t.Error("evicted a kernel that this daemon has not seen running")
	}
}

// Only memory that decides between an eviction and a claim will do.
func TestNeedSwap(t *testing.T) {
	for _, k := range daxmem.Kinds() {
		if err := needSwap("multikernel", k.Kind); k.Atomic != (err == nil) || err != nil && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", k.Kind, err)
		}
	}
	if err := needSwap("multikernel", "unheard of"); err == nil {
		t.Error("a kind that nobody knows was taken")
	}
}

// A pool that a reader would take for its own as well.
func TestShareRefused(t *testing.T) {
	testutil.Root(t)
	s := newSite(t)
	text := fmt.Sprintf("root = %q\naddress = %q\n[pool]\npath = \"%s/pool.daxfs\"\n[share]\nrole = \"reader\"\n", s.root, s.socket, s.root)
	if err := os.WriteFile(s.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, "--config", s.config)
	if code := p.end(t); code != 1 || !strings.Contains(p.log.String(), "share.own_pool and pool.path are both") {
		t.Errorf("status %d:\n%s", code, p.log.String())
	}
}
