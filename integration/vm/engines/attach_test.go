package engines

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"

	"github.com/daxfs/containerd-daxfs/integration/images"
	"github.com/daxfs/containerd-daxfs/integration/lab"
	"github.com/daxfs/containerd-daxfs/integration/vm"
)

// registryAt is where each guest has a registry of its own.
const registryAt = "127.0.0.1:5000"

// The [share] sections of the two kernels.
const (
	ownerShare  = "instance = \"a\""
	readerShare = "instance = \"b\"\nrole = \"reader\""
)

// kernels are guests at one pool, each with a registry of its own that has the
// same images.
type kernels struct {
	bin, registry string
	pool          string
	size          int64
	images        map[string]*layoutOf
}

func newKernels(t *testing.T, size int64, images ...string) *kernels {
	t.Helper()
	bin, _ := prepare(t)
	k := &kernels{bin: bin, registry: build(t, "../../cmd/registry") + "/registry", pool: vm.TempPool(t, size), size: size, images: map[string]*layoutOf{}}
	for _, name := range images {
		k.images[name] = newLayout(t, name)
	}
	return k
}

// boot boots a guest with both daemons and its registry.
func (k *kernels) boot(t *testing.T, kernel, share string) *system {
	t.Helper()
	found, err := vm.FindKernel(t.Context(), kernel)
	if err != nil {
		t.Fatal(err)
	}
	m := vm.Machine{Kernel: found, Memory: 2 * gib, Pool: k.pool, Daxfs: true, Disk: newDisk(t)}
	s := newSystem(t, k.bin, m, func(g *vm.Guest) string {
		return fmt.Sprintf("[pool]\npath = \"phys:%#x,size=%dMiB\"\n[share]\n%s", g.PoolAddress(), k.size/mib, share)
	})
	args := []string{k.registry, "-listen", registryAt}
	for name, l := range k.images {
		args = append(args, name+"="+l.dir)
	}
	s.start("registry", args...)
	s.wait("bash -c ': </dev/tcp/" + strings.Replace(registryAt, ":", "/", 1) + "'")
	return s
}

// A second kernel runs what the first has unpacked, and what the first unpacks
// because the second asks, without fetching or unpacking one layer. What it
// needs stays when the first removes its image.
func TestAttach(t *testing.T) {
	k := newKernels(t, systemPool, "debian", "rootopaque")
	debian, rootopaque := k.images["debian"], k.images["rootopaque"]
	a := k.boot(t, "6.12", ownerShare)
	a.pull("debian")
	if n := debian.fetched(a); n != len(debian.layers) {
		t.Fatalf("the owner fetched %d of %d layers", n, len(debian.layers))
	}
	a.sh("ctr run -d --snapshotter daxfs " + registryAt + "/debian:latest first sleep 100000")
	sums := a.sh("ctr task exec --exec-id sums first sh -c '" + hashAll + "'")

	b := k.boot(t, "7.3", readerShare)
	before := b.sh("cat /proc/diskstats")
	for name, l := range k.images {
		b.pull(name)
		if n := l.fetched(b); n != 0 {
			t.Errorf("the reader fetched %d layers of %s", n, name)
		}
	}
	t.Logf("disk before %q, after %q", before, b.sh("cat /proc/diskstats"))
	if n := rootopaque.fetched(a); n != len(rootopaque.layers) {
		t.Errorf("the owner, asked for it, fetched %d of %d layers of rootopaque", n, len(rootopaque.layers))
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

// How long a container takes to start on the second kernel does not depend on
// the size of the image.
func TestAttachSize(t *testing.T) {
	k := newKernels(t, 2*gib, images.Sized...)
	a := k.boot(t, "6.12", ownerShare)
	for _, name := range images.Sized {
		a.pull(name)
	}
	b := k.boot(t, "7.3", readerShare)
	const turns = 7
	took := map[string][]float64{}
	for _, name := range images.Sized {
		b.pull(name)
		if n := k.images[name].fetched(b); n != 0 {
			t.Errorf("the reader fetched %d layers of %s", n, name)
		}
		b.run(name) // the owner is asked for the image, once
	}
	for range turns {
		for _, name := range images.Sized {
			took[name] = append(took[name], b.run(name))
		}
	}
	var medians []float64
	for _, name := range images.Sized {
		slices.Sort(took[name])
		medians = append(medians, took[name][turns/2])
		t.Logf("%s: ctr run --rm took %.2f s (%.2f to %.2f, n = %d)", name, took[name][turns/2], took[name][0], took[name][turns-1], turns)
	}
	if r := medians[1] / medians[0]; r > 1.2 || r < 1/1.2 {
		t.Errorf("the large image takes %.2f times as long as the small one, want within 20 %%", r)
	}
}

// run runs a container to its end and returns the seconds that it took.
func (s *system) run(name string) float64 {
	s.t.Helper()
	out := s.sh("a=$(date +%s%N); ctr run --rm --snapshotter daxfs " + registryAt + "/" + name + ":latest c /bin/true; echo $(($(date +%s%N) - a))")
	n, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return n / 1e9
}

// Three kernels at one pool: the owner's is cut off, another takes the pool
// over when somebody has said that it is gone, the third notices nothing, and
// the first comes back as a reader.
func TestThreeKernels(t *testing.T) {
	k := newKernels(t, systemPool, "debian", "rootopaque")
	auto := func(name string) string {
		return "role = \"auto\"\ninstance = \"" + name + "\""
	}
	a := k.boot(t, "6.12", auto("a"))
	a.pull("debian")
	a.sh("ctr run -d --snapshotter daxfs " + registryAt + "/debian:latest first sleep 100000")
	sums := a.sh("ctr task exec --exec-id sums first sh -c '" + hashAll + "'")

	b := k.boot(t, "7.3", auto("b"))
	c := k.boot(t, "6.1", "instance = \"c\"\nrole = \"reader\"")
	for _, s := range []*system{b, c} {
		s.pull("debian")
		s.sh("ctr run -d --snapshotter daxfs " + registryAt + "/debian:latest stays sleep 100000")
	}
	same := func(s *system, when string) {
		t.Helper()
		for _, run := range []string{"ctr task exec --exec-id again stays", "ctr run --rm --snapshotter daxfs " + registryAt + "/debian:latest another"} {
			if got := s.sh(run + " sh -c '" + hashAll + "'"); got != sums {
				t.Errorf("guest %s, %s: files differ (%s)", s.Kernel.Name, when, run)
			}
		}
	}
	same(b, "at first")
	a.Kill()
	same(b, "when the owner's machine was gone")
	same(c, "when the owner's machine was gone")

	lease := b.sh("daxfsctl lease ls")
	if !strings.Contains(lease, "owner   a ") {
		t.Errorf("the dead owner's seat is not there:\n%s", lease)
	}
	owner := strings.Fields(strings.TrimSpace(b.sh("daxfsctl lease ls | grep owner")))[0]
	if _, err := b.try(t.Context(), "daxfsctl lease evict "+owner); err == nil {
		t.Error("the owner is evicted without --owner")
	}
	b.sh("daxfsctl lease evict --owner " + owner)
	b.wait("! pgrep -f '^containerd-daxfs-grpc'") // it ends, for systemd to start it again
	b.startDaemon()
	b.wait("daxfsctl lease ls | grep -q 'owner *b '")
	if out := b.sh("daxfsctl pool check --data"); !strings.Contains(out, "sound") {
		t.Errorf("%s", out)
	}
	b.wait("ctr run --rm --snapshotter daxfs " + registryAt + "/debian:latest dials true")
	c.pull("rootopaque") // which the new owner pulls, being asked
	if n := k.images["rootopaque"].fetched(c); n != 0 {
		t.Errorf("the reader fetched %d layers", n)
	}
	same(b, "as the owner")
	same(c, "under the new owner")

	a = k.boot(t, "6.12", auto("a"))
	if out := a.sh("daxfsctl lease ls"); !strings.Contains(out, "reader  a ") {
		t.Errorf("the former owner is back:\n%s", out)
	}
	a.pull("debian")
	if n := k.images["debian"].fetched(a); n != 0 {
		t.Errorf("the former owner fetched %d layers", n)
	}
	if out := b.sh("daxfsctl pool check --data"); !strings.Contains(out, "sound") {
		t.Errorf("%s", out)
	}
}
