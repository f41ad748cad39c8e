package engines

import (
	"fmt"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"

	"github.com/daxfs/containerd-daxfs/integration/lab"
	"github.com/daxfs/containerd-daxfs/integration/vm"
)

// registryAt is where each guest has a registry of its own.
const registryAt = "127.0.0.1:5000"

// A second kernel runs what the first has unpacked, and what the first unpacks
// because the second asks, without fetching or unpacking one layer. What it
// needs stays when the first removes its image.
func TestAttach(t *testing.T) {
	bin, _ := prepare(t)
	bin2 := build(t, "../../cmd/registry")
	pool := vm.TempPool(t, systemPool)
	images := map[string]*layoutOf{"debian": newLayout(t, "debian"), "rootopaque": newLayout(t, "rootopaque")}
	boot := func(kernel, share string) *system {
		t.Helper()
		k, err := vm.FindKernel(t.Context(), kernel)
		if err != nil {
			t.Fatal(err)
		}
		m := vm.Machine{Kernel: k, Memory: 2 * gib, Pool: pool, Daxfs: true, Disk: newDisk(t)}
		s := newSystem(t, bin, m, func(g *vm.Guest) string { return physPool(g) + "\n[share]\n" + share })
		args := []string{bin2 + "/registry", "-listen", registryAt}
		for name, l := range images {
			args = append(args, name+"="+l.dir)
		}
		s.start("registry", args...)
		return s
	}
	a := boot("6.12", "instance = \"a\"\ncontainerd = \"/run/containerd/containerd.sock\"")
	a.pull("debian")
	if n := images["debian"].fetched(a); n != len(images["debian"].layers) {
		t.Fatalf("the owner fetched %d of %d layers", n, len(images["debian"].layers))
	}
	a.sh("ctr run -d --snapshotter daxfs " + registryAt + "/debian:latest first sleep 100000")
	sums := a.sh("ctr task exec --exec-id sums first sh -c '" + hashAll + "'")

	b := boot("7.3", "instance = \"b\"\nrole = \"reader\"")
	before := b.sh("cat /proc/diskstats")
	for name, l := range images {
		b.pull(name)
		if n := l.fetched(b); n != 0 {
			t.Errorf("the reader fetched %d layers of %s", n, name)
		}
	}
	t.Logf("disk before %q, after %q", before, b.sh("cat /proc/diskstats"))
	if n := images["rootopaque"].fetched(a); n != len(images["rootopaque"].layers) {
		t.Errorf("the owner, asked for it, fetched %d of %d layers of rootopaque", n, len(images["rootopaque"].layers))
	}
	if got := b.sh("ctr run --rm --snapshotter daxfs " + registryAt + "/debian:latest one sh -c '" + hashAll + "'"); got != sums {
		t.Error("files differ in the reader's container")
	}
	if out := b.sh("daxfsctl pool stat"); strings.Contains(out, "copies") {
		t.Errorf("%s", out)
	}
	lease := b.sh("daxfsctl lease ls")
	for _, want := range []string{"owner", "reader", " a ", " b "} {
		if !strings.Contains(lease, want) {
			t.Errorf("no %q in\n%s", want, lease)
		}
	}

	// The owner's containerd removes all it has; the reader's containers start
	// and run all the same.
	b.sh("ctr run -d --snapshotter daxfs " + registryAt + "/debian:latest stays sleep 100000")
	a.sh("ctr task kill -s KILL first; ctr task delete first; ctr containers delete first; ctr images rm --sync " + registryAt + "/debian:latest")
	if got := b.sh("ctr task exec --exec-id again stays sh -c '" + hashAll + "'"); got != sums {
		t.Error("files differ after the owner's removal")
	}
	if got := b.sh("ctr run --rm --snapshotter daxfs " + registryAt + "/debian:latest two sh -c '" + hashAll + "'"); got != sums {
		t.Error("files differ in a container that was started after the owner's removal")
	}
	if out := a.sh("daxfsctl pool check --data"); !strings.Contains(out, "sound") {
		t.Errorf("%s", out)
	}
	b.sh("ctr task kill -s KILL stays; ctr task delete stays; ctr containers delete stays; ctr images ls -q | xargs ctr images rm --sync")
	b.wait("daxfsctl lease ls | grep ' b ' | grep -qw 0")
}

func (s *system) pull(name string) {
	s.t.Helper()
	s.sh("ctr images pull --plain-http --snapshotter daxfs " + registryAt + "/" + name + ":latest")
}

// layoutOf is an image as the registries have it.
type layoutOf struct {
	dir    string
	layers []digest.Digest
}

func newLayout(t *testing.T, name string) *layoutOf {
	t.Helper()
	l, err := lab.MakeImage(t, name)
	if err != nil {
		t.Fatal(err)
	}
	out := &layoutOf{dir: l.Dir}
	layers, err := l.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range layers {
		out.layers = append(out.layers, d.Digest)
	}
	return out
}

// fetched counts the layers that a guest's registry has given out.
func (l *layoutOf) fetched(s *system) (n int) {
	for _, o := range s.logs {
		for _, d := range l.layers {
			if o.name == "registry" && strings.Contains(o.String(), fmt.Sprint(d)) {
				n++
			}
		}
	}
	return n
}
