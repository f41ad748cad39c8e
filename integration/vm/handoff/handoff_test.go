package handoff

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/daxfs/containerd-daxfs/integration/lab"
	"github.com/daxfs/containerd-daxfs/integration/vm"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

const memory = 1 << 30 // of guests, bytes

// digestAll prints one digest of names, kinds, modes, owners, targets and
// bytes below some of the image's directories.
const digestAll = `{ find usr/bin usr/lib/x86_64-linux-gnu etc app -printf '%p %y %m %U %G %l\n' | LC_ALL=C sort; ` +
	`find usr/bin etc app -type f -print0 | LC_ALL=C sort -z | xargs -0 cat; } | sha256sum | cut -c 1-64`

// guestInit is what the guest runs as its first process: the image's own shell,
// which says what it finds and ends the guest. It stands on the command line, so
// it has no double quotes.
const guestInit = `init=/bin/bash -- -c "cd /; exec 2>&1; ` +
	`echo proof root: $(grep ' / ' /proc/mounts | tail -n 1).; ` +
	`echo proof version: $(cat /etc/debian_version).; ` +
	`echo proof perl: $(perl -e 'print 6*7').; ` +
	`echo proof digest: $(` + digestAll + `).; ` +
	`touch /new && echo proof written.; ` +
	`echo o >/proc/sysrq-trigger; sleep 600"`

// handed is what daxfsctl prints in JSON.
type handed struct {
	Ways []struct {
		To           string
		Engine       string
		CommandLine  string `json:"command_line"`
		QEMU         []string
		DeviceMemory int64 `json:"device_memory"`
		Reason       string
	}
}

// Guests of each kernel have an image as their root file system: of a pool whose
// owner is at work, by our module, once where they find the memory and once
// at an address that another kernel was told; and of an image file, by our module
// and by the kernel's own EROFS.
func TestRoot(t *testing.T) {
	testutil.VM(t)
	layout, err := lab.MakeImage(t, "debian")
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	for _, name := range []string{"daxfsctl", "mkdaxfs"} {
		cmd := exec.Command("go", "build", "-o", bin+"/", "../../../cmd/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", name, err, out)
		}
	}
	ctl := filepath.Join(bin, "daxfsctl")
	pool, spec := fillPool(t, layout)
	file := filepath.Join(filepath.Dir(pool), "debian.img")
	run(t, filepath.Join(bin, "mkdaxfs"), "--quiet", "--oci", layout.Dir, "-o", file)
	run(t, "truncate", "-s", "%2M", file)
	want := wanted(t, ctl, file)

	vm.EachKernel(t, func(t *testing.T, k vm.Kernel) {
		if testing.Short() && k.Name != "6.12" {
			t.Skip("one kernel is enough in short")
		}
		root := initrd(t, k)
		for _, c := range []struct {
			name   string
			args   []string
			engine string
			mount  string // what is mounted on /
		}{
			{"pool by daxfs", []string{"--pool", pool, spec}, "daxfs", `none / daxfs ro,.*,size=536870912,offset=[1-9]`},
			{"file by daxfs", []string{file}, "daxfs", `none / daxfs ro,.*,offset=0`},
			{"file by erofs", []string{file}, "erofs-dax", `/dev/pmem0 / erofs ro,.*dax=always`},
		} {
			t.Run(c.name, func(t *testing.T) {
				if testing.Short() && c.name != "pool by daxfs" {
					t.Skip("one image is enough in short")
				}
				var h handed
				args := append([]string{ctl, "image", "handoff", "--json", "--engine", c.engine, "--append", guestInit}, c.args...)
				if err := json.Unmarshal([]byte(run(t, args...)), &h); err != nil {
					t.Fatal(err)
				}
				way := h.Ways[len(h.Ways)-1]
				if way.To != "qemu" || way.Engine != c.engine || way.Reason != "" {
					t.Fatalf("%+v", h)
				}
				m := vm.Machine{Kernel: k, Memory: memory, Append: way.CommandLine}
				m.Args = append(way.QEMU, "-m", fmt.Sprintf("maxmem=%d", memory+way.DeviceMemory))
				want.boot(t, m, root, c.mount)
			})
		}
		t.Run("other memory", func(t *testing.T) {
			if k.Name != "6.12" {
				t.Skip("one kernel is enough")
			}
			m := vm.Machine{Kernel: k, Memory: memory, Pool: pool}
			m.Append = "root=none rootfstype=daxfs rootflags=phys=region0,size=2097152,fsoffset=0 modprobe.blacklist=nd_pmem ro"
			console, err := vm.RunInitrd(t.Context(), m, root)
			if want := fmt.Sprintf("root: region0 has %d bytes, rootflags says 2097152", poolSize); err != nil || !strings.Contains(console, want) {
				t.Errorf("%v, want %q in\n%s", err, want, console)
			}
		})
		t.Run("pool by address", func(t *testing.T) {
			if testing.Short() {
				t.Skip("two guests more")
			}
			// What one kernel says, another one with the memory at the same place is
			// booted with.
			m := vm.Machine{Kernel: k, Memory: memory, Pool: pool}
			g := vm.Start(t, m)
			place := fmt.Sprintf("phys:%#x,size=%d", g.PoolAddress(), poolSize)
			m.Append = strings.TrimSpace(g.MustRun(t, ctl, "image", "handoff", "--kernel-cmdline", "--pool", place, "--append", guestInit, spec))
			if err := g.Close(); err != nil {
				t.Fatal(err)
			}
			want.boot(t, m, root, fmt.Sprintf(`none / daxfs ro,.*,phys=%#x,size=536870912,offset=[1-9]`, g.PoolAddress()))
		})
	})
	if out := run(t, ctl, "pool", "check", "--data", "--pool", pool); !strings.Contains(out, "sound") {
		t.Errorf("the pool afterwards: %s", out)
	}
}

// proof is what a guest's first process has to say.
type proof struct{ version, digest string }

// wanted reads an image without mounting it.
func wanted(t *testing.T, ctl, image string) proof {
	t.Helper()
	tree := filepath.Join(t.TempDir(), "tree")
	run(t, ctl, "image", "extract", image, "/", tree)
	return proof{
		version: strings.TrimSpace(run(t, "cat", filepath.Join(tree, "etc/debian_version"))),
		digest:  strings.TrimSpace(run(t, "sh", "-c", "cd "+tree+" && "+digestAll)),
	}
}

// boot boots a guest and holds what it says against the proof.
func (p proof) boot(t *testing.T, m vm.Machine, initrd []byte, mount string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	console, err := vm.RunInitrd(ctx, m, initrd)
	if err != nil {
		t.Fatalf("%v\n%s", err, console)
	}
	for what, want := range map[string]string{
		"root":    mount,
		"version": regexp.QuoteMeta(p.version) + `\.$`,
		"perl":    `42\.$`,
		"digest":  regexp.QuoteMeta(p.digest) + `\.$`,
	} {
		got := regexp.MustCompile(`(?m)^proof ` + what + `: (.*)$`).FindStringSubmatch(console)
		if got == nil || !regexp.MustCompile(`^`+want).MatchString(got[1]) {
			t.Errorf("%s: %q, want %s\n%s", what, got, want, console)
		}
	}
	if strings.Contains(console, "\nproof written") {
		t.Errorf("the root file system can be written to:\n%s", console)
	}
}
