// Package lab runs a private containerd with our snapshotter in it, for tests:
// its own directories, sockets and registry, all below one directory with a
// random name, by which everything is found and removed at the end.
package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/images"
	"github.com/daxfs/containerd-daxfs/integration/lab/sweep"
	"github.com/daxfs/containerd-daxfs/integration/registry"
)

// Names of snapshotters in the lab's containerd.
const (
	Daxfs     = "daxfs"
	Overlayfs = "overlayfs"
	Erofs     = "erofs"  // with Config.Peers
	Stargz    = "stargz" // with Config.Peers
)

// Config says how a lab's containerd is set up.
type Config struct {
	// Rebase declares the proxy plugin's "rebase" capability, without which
	// containerd unpacks one layer after the other.
	Rebase bool
	// Parallel is the number of layers unpacked at once; 0 and 1 mean one.
	Parallel int
	// Walking has layers unpacked by containerd's own differ instead of ours.
	Walking bool
	// RemapIDs declares "remap-ids", without which containerd's client copies
	// and chowns a whole image for a container in a user namespace.
	RemapIDs bool
	// Standin takes the stand-in in our daemon's place, whatever is under test.
	Standin bool
	// Examples takes the configurations that the repository shows to users,
	// with other paths, and starts the daemon with --config alone.
	Examples bool
	// Memory puts the pool into a tmpfs, which Reboot empties.
	Memory bool
	// PoolSize is the pool's max_size, "8GiB" if empty.
	PoolSize string
	// KeepMounted has images stay mounted after their last container, as users
	// have it. Otherwise tests see whether they are let go.
	KeepMounted bool
	// Measured has the daemons log no details, and ours serve profiles.
	Measured bool
	// Peers are snapshotters to be measured beside ours.
	Peers Peers
	// CRI returns containerd's configuration of its Kubernetes plugins, which are
	// off if it is nil. What they do outside of the lab's directory (network
	// interfaces, cgroups, NRI's socket) is the test's business.
	CRI func(*Lab) string
}

// Lab is a running containerd, daemon and registry. Methods that return no
// error fail the test that the Lab is for.
type Lab struct {
	Config
	Dir      string // everything is below it
	Registry *registry.Registry

	t     testing.TB
	built *Built
	addr  string // of the registry
	*running
}

// running is what restarts replace, shared by all handles on a lab.
type running struct {
	ctrd   *process
	daemon *process
	stargz *process // nil without
	client *client.Client
}

// For returns a handle on the same lab that fails another test: a subtest.
func (l *Lab) For(t testing.TB) *Lab {
	c := *l
	c.t = t
	return &c
}

// New starts a lab, which ends with the test. It skips the test, or fails it,
// where Require says so.
func New(t testing.TB, c Config) *Lab {
	t.Helper()
	Require(t)
	l := &Lab{Config: c, t: t, built: Build(t), Registry: registry.New(), running: &running{}}

	// Not t.TempDir: its name is long, and a unix socket's path may have 108 bytes.
	dir, err := os.MkdirTemp("", "dxlab")
	if err != nil {
		t.Fatal(err)
	}
	l.Dir = dir
	// Containers in user namespaces must get through to their root.
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	disarm := l.built.Watch(t, l.Dir)
	// Cleanups run last first: whatever is registered later still finds containerd.
	t.Cleanup(func() {
		l.close()
		disarm()
	})
	for _, d := range []string{"tmp", "fifo", "daxfs", "memory"} {
		if err := os.Mkdir(l.path(d), 0o711); err != nil {
			t.Fatal(err)
		}
	}
	l.mountMemory()
	addr, stop, err := l.Registry.Serve()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	l.addr = addr

	l.writeConfigs()
	l.startPeers()
	l.StartDaemon()
	l.StartContainerd()
	return l
}

func (l *Lab) path(name string) string { return filepath.Join(l.Dir, name) }

// Endpoint is containerd's socket.
func (l *Lab) Endpoint() string { return l.path("c.sock") }

// Root is our daemon's root directory.
func (l *Lab) Root() string { return l.path("daxfs") }

// ImageMounts is where the daemon mounts images, one directory each.
func (l *Lab) ImageMounts() string { return l.path("daxfs/images") }

// PoolPath is the daemon's pool file.
func (l *Lab) PoolPath() string {
	if l.Memory {
		return l.path("memory/pool")
	}
	return l.path("daxfs/pool")
}

// mountMemory mounts the tmpfs for a pool in memory.
func (l *Lab) mountMemory() {
	if !l.Memory {
		return
	}
	if err := unix.Mount("tmpfs", l.path("memory"), "tmpfs", 0, ""); err != nil {
		l.t.Fatalf("mount tmpfs: %v", err)
	}
}

// Socket is our daemon's address.
func (l *Lab) Socket() string { return l.path("daxfs.sock") }

// Watch starts the sweeper, which cleans up what a lab has in dir if this
// process dies before it could. The function it returns ends it.
func (b *Built) Watch(t testing.TB, dir string) func() {
	t.Helper()
	cmd := exec.Command(b.Sweep)
	cmd.Env = append(os.Environ(), "LAB_DIR="+dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() {
		in.Close()
		cmd.Wait()
	}
}

// Client returns containerd's client. It is another one after a restart.
func (l *Lab) Client() *client.Client { return l.client }

// Namespace returns the context of one of the lab's namespaces. Their names
// start with the lab's own, so that cgroups can be told apart.
func (l *Lab) Namespace(name string) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	l.t.Cleanup(cancel)
	return namespaces.WithNamespace(ctx, filepath.Base(l.Dir)+"-"+name)
}

// Ctr runs ctr in a namespace and returns its output.
func (l *Lab) Ctr(ctx context.Context, args ...string) (string, error) {
	return l.ctr(ctx, tool("ctr"), args)
}

// CtrDaxfs is Ctr with ctr-daxfs.
func (l *Lab) CtrDaxfs(ctx context.Context, args ...string) (string, error) {
	return l.ctr(ctx, l.built.CtrDaxfs, args)
}

// RuncRoot is where runc keeps its state: --runc-root of ctr run.
func (l *Lab) RuncRoot() string { return l.path("runc") }

func (l *Lab) ctr(ctx context.Context, binary string, args []string) (string, error) {
	ns, _ := namespaces.Namespace(ctx)
	cmd := exec.CommandContext(ctx, binary, append([]string{"--address", l.path("c.sock"), "--namespace", ns}, args...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s", filepath.Base(binary), strings.Join(args, " "), err, errOut.String())
	}
	return out.String(), nil
}

// Daxfsctl runs daxfsctl with the daemon's configuration and returns what it
// prints.
func (l *Lab) Daxfsctl(args ...string) (string, error) {
	cmd := exec.Command(l.built.Daxfsctl, append([]string{"--config", l.path("daxfs.toml")}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("daxfsctl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// Image makes an image of the images package available in the registry, under
// its own name, and returns its layout.
func (l *Lab) Image(name string) *images.Layout {
	l.t.Helper()
	layout, err := MakeImage(l.t, name)
	if err != nil {
		l.t.Fatal(err)
	}
	l.Registry.Add(name, layout.Dir)
	return layout
}

// MakeImage returns the layout of a test image, made now if it is not in the
// cache. It is another process that makes it: compressing under the race
// detector takes minutes.
func MakeImage(t testing.TB, name string) (*images.Layout, error) {
	b := Build(t)
	cmd := exec.Command(b.MkImages, "-dir", filepath.Join(CacheDir(), "images"), "-testprog", b.TestProg, name)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("make image %s: %w\n%s", name, err, errOut.String())
	}
	return &images.Layout{Dir: strings.TrimSpace(string(out))}, nil
}

// close ends the lab and fails the test if the daemon left something behind
// after everything of it had been removed.
func (l *Lab) close() {
	if l.t.Failed() {
		l.ctrd.showLog(l.t)
		l.daemon.showLog(l.t)
	}
	if l.client != nil {
		l.client.Close()
	}
	l.ctrd.kill(syscall.SIGTERM)
	l.daemon.kill(syscall.SIGTERM)
	l.stargz.kill(syscall.SIGTERM)
	if err := sweep.All(l.Dir); err != nil {
		l.t.Errorf("clean up: %v", err)
	}
}
