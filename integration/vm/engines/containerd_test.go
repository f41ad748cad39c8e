package engines

import (
	"fmt"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/integration/vm"
)

// containerd runs containers of a real image from memory: on a stock kernel
// with a pmem device, and on a bare range with our module. The daemon dies and
// comes back meanwhile.
func TestContainerd(t *testing.T) {
	bin, archive := prepare(t)
	for _, c := range []struct {
		kernel, engine string
		machine        vm.Machine
		pool           func(g *vm.Guest) string
	}{
		{"6.1", "erofs-dax/dm-linear", vm.Machine{NdPmem: true}, func(*vm.Guest) string {
			return "[pool]\npath = \"/dev/pmem0\"\nshare_extents = false"
		}},
		{"7.3", "daxfs/phys", vm.Machine{Daxfs: true}, physPool},
	} {
		t.Run(c.kernel, func(t *testing.T) {
			k, err := vm.FindKernel(t.Context(), c.kernel)
			if err != nil {
				t.Fatal(err)
			}
			c.machine.Kernel, c.machine.Memory, c.machine.Disk = k, 2*gib, newDisk(t)
			c.machine.Pool = vm.TempPool(t, systemPool)
			s := newSystem(t, bin, c.machine, c.pool)
			s.importImage(archive)
			runContainers(t, s, c.engine)
		})
	}
}

// systemPool holds the image twice.
const systemPool = 768 * mib

// physPool is our configuration for all of the guest's shared memory.
func physPool(g *vm.Guest) string {
	return fmt.Sprintf("[pool]\npath = \"phys:%#x,size=%dMiB\"", g.PoolAddress(), systemPool/mib)
}

func runContainers(t *testing.T, s *system, engine string) {
	s.sh("ctr run -d --snapshotter daxfs " + image + " first sleep 100000")
	info := s.sh("ctr snapshots --snapshotter daxfs info first")
	if want := fmt.Sprintf("%q: %q", "containerd.io/snapshot/daxfs.engine", engine); !strings.Contains(info, want) {
		t.Errorf("no %s in\n%s", want, info)
	}
	if out := s.sh("ctr run --rm --snapshotter daxfs " + image + ` second sh -c 'cat /etc/debian_version; echo more >>/etc/debian_version; tail -n1 /etc/debian_version'`); !strings.HasPrefix(out, "12.") || !strings.HasSuffix(out, "\nmore\n") {
		t.Errorf("container wrote %q", out)
	}
	// All of the image, from memory and as the archive's digests have it.
	if out := s.sh("daxfsctl pool check --data"); !strings.Contains(out, "sound") {
		t.Errorf("%s", out)
	}
	before := s.sh(`ctr task exec --exec-id h1 first sh -c '` + hashAll + `'`)
	if n := strings.Count(before, "\n"); n < 1000 {
		t.Errorf("only %d files in the image:\n%s", n, lastLines(before, 5))
	}
	doctor := s.sh("daxfsctl doctor || true")
	name, method, _ := strings.Cut(engine, "/")
	for _, want := range []string{"engine_" + name, "mounts by " + method, "mounted by " + engine} {
		if !strings.Contains(doctor+s.sh("daxfsctl pool ls"), want) {
			t.Errorf("no %q in what daxfsctl says:\n%s", want, doctor)
		}
	}
	if strings.Contains(doctor, "FAIL") {
		t.Errorf("the doctor is not content:\n%s", doctor)
	}

	s.killDaemon()
	if during := s.sh(`ctr task exec --exec-id h2 first sh -c '` + hashAll + `'`); during != before {
		t.Error("files differ while the daemon is dead")
	}
	s.startDaemon()
	s.wait("ctr run --rm --snapshotter daxfs " + image + " third true") // containerd dials again after a while
	if after := s.sh(`ctr task exec --exec-id h3 first sh -c '` + hashAll + `'`); after != before {
		t.Error("files differ after the daemon's restart")
	}
	s.sh("ctr task kill -s KILL first; ctr task delete first; ctr containers delete first; ctr images rm --sync " + image)
	s.wait("test $(daxfsctl pool stat --json | tr -d ' \n' | grep -c '\"layers\":0,\"images\":0') = 1")
	s.wait("! grep -q ' /var/lib/containerd-daxfs/images/' /proc/self/mountinfo && ! ls /sys/block/dm-* 2>/dev/null")
}
