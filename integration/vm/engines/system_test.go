package engines

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/daxfs/containerd-daxfs/integration/lab"
	"github.com/daxfs/containerd-daxfs/integration/vm"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

// system is a guest with containerd and our daemon in it, at the places and
// with the configurations that the repository shows to users. Their directories
// are on a disk of the guest's own.
type system struct {
	*vm.Guest
	t    *testing.T
	bin  string // our commands
	logs []*output
}

// output is what a process in a guest writes.
type output struct {
	name string
	testutil.Output
}

// prepare is what systems need of the machine: our commands, containerd's, and
// an image as an archive.
func prepare(t *testing.T) (bin, archive string) {
	t.Helper()
	testutil.VM(t)
	if testing.Short() {
		t.Skip("whole systems take minutes")
	}
	for _, name := range []string{"containerd", "ctr", "containerd-shim-runc-v2", "runc"} {
		if _, err := os.Stat(filepath.Join(lab.CacheDir(), "bin", name)); err != nil {
			testutil.Missing(t, "vm", "%s is not in .cache/bin; run script/setup.sh", name)
		}
	}
	layout, err := lab.MakeImage(t, "debian")
	if err != nil {
		t.Fatal(err)
	}
	archive = filepath.Join(t.TempDir(), "debian.tar")
	host(t, "tar", "-C", layout.Dir, "-cf", archive, ".")
	return build(t, "../../../cmd/daxfsctl", "../../../cmd/containerd-daxfs-grpc"), archive
}

// newDisk makes an empty disk, which takes what is written to it.
func newDisk(t *testing.T) string {
	t.Helper()
	testutil.Tool(t, "mkfs.ext4")
	disk := filepath.Join(t.TempDir(), "disk")
	host(t, "truncate", "-s", "4G", disk)
	host(t, "mkfs.ext4", "-q", "-F", "-O", "^has_journal", disk)
	return disk
}

func host(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
}

// newSystem boots a guest and starts both daemons in it. pool is the [pool]
// section of our configuration.
func newSystem(t *testing.T, bin string, m vm.Machine, pool func(g *vm.Guest) string) *system {
	t.Helper()
	s := &system{Guest: vm.Start(t, m), t: t, bin: bin}
	t.Cleanup(func() {
		if t.Failed() {
			for _, o := range s.logs {
				t.Logf("%s in guest %s wrote:\n%s", o.name, s.Kernel.Name, lastLines(o.String(), 60))
			}
		}
	})
	s.sh(`mkdir -p /disk /var/lib/containerd-daxfs /var/lib/containerd /etc/containerd /etc/containerd-daxfs
		mount /dev/vda /disk
		for d in containerd containerd-daxfs; do
			mkdir -p /disk/$d && mount --bind /disk/$d /var/lib/$d
		done`)
	s.write("/etc/containerd-daxfs/config.toml", pool(s.Guest))
	example, err := os.ReadFile(filepath.Join(lab.RepoRoot(), "containerd-config.toml.example"))
	if err != nil {
		t.Fatal(err)
	}
	s.write("/etc/containerd/config.toml", string(example)+`
[plugins.'io.containerd.internal.v1.opt']
  path = "/run/opt"
`)
	s.startDaemon()
	s.start("containerd", "containerd")
	s.wait(`ctr version`)
	return s
}

// env is what our commands and containerd's are found by.
func (s *system) env() []string {
	return []string{"PATH=" + s.bin + ":" + filepath.Join(lab.CacheDir(), "bin") + ":/usr/sbin:/usr/bin:/sbin:/bin"}
}

// sh runs a script that has to succeed and returns what it wrote.
func (s *system) sh(script string) string {
	s.t.Helper()
	out, err := s.try(s.t.Context(), script)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// try runs a script. The error has what it wrote to standard error.
func (s *system) try(ctx context.Context, script string) (string, error) {
	r, err := s.Run(ctx, vm.Command{Args: []string{"sh", "-euc", script}, Env: s.env()})
	if err != nil {
		return "", err
	}
	if r.Code != 0 {
		return string(r.Stdout), fmt.Errorf("guest %s: %s: exit status %d\n%s%s", s.Kernel.Name, script, r.Code, r.Stdout, r.Stderr)
	}
	return string(r.Stdout), nil
}

func (s *system) write(path, text string) {
	s.t.Helper()
	s.sh("cat >" + path + " <<'END OF FILE'\n" + text + "\nEND OF FILE")
}

// start starts a daemon, which runs until the guest ends or it is killed.
func (s *system) start(name string, args ...string) {
	o := &output{name: name}
	s.logs = append(s.logs, o)
	go func() {
		// The guest's end ends it, as an error that nobody needs.
		_, _ = s.Run(context.Background(), vm.Command{Args: append([]string{"env"}, args...), Env: s.env(), Stdout: o, Stderr: o})
	}()
}

// wait waits until a script succeeds.
func (s *system) wait(script string) {
	s.t.Helper()
	var err error
	for deadline := time.Now().Add(5 * time.Minute); time.Now().Before(deadline); time.Sleep(500 * time.Millisecond) {
		if _, err = s.try(s.t.Context(), script); err == nil {
			return
		}
	}
	s.t.Fatalf("not within five minutes: %v", err)
}

func (s *system) startDaemon() {
	s.t.Helper()
	s.start("our daemon", "containerd-daxfs-grpc")
	s.wait(`daxfsctl pool ls --json | grep -q '"references_from": "daemon"'`)
}

// killDaemon ends our daemon with SIGKILL.
func (s *system) killDaemon() {
	s.t.Helper()
	s.sh("pkill -KILL -f '^containerd-daxfs-grpc'")
}

const image = "docker.io/library/debian:latest"

// importImage has containerd unpack the image for our snapshotter.
func (s *system) importImage(archive string) {
	s.t.Helper()
	s.sh("ctr images import --snapshotter daxfs --base-name docker.io/library/debian " + archive)
}

// hashAll is a command that hashes all files of a container's image.
const hashAll = `find / -xdev -type f -exec sha256sum {} + | sort -k 2`

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
