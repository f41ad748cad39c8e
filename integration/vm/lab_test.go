package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

// peekVar makes this test binary, run in a guest, print a page of physical
// memory instead of running tests.
const peekVar = "LAB_TEST_PEEK"

func TestMain(m *testing.M) {
	if addr := os.Getenv(peekVar); addr != "" {
		if err := peek(addr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// peek maps memory, as read(2) of /dev/mem ends where RAM does.
func peek(addr string) error {
	off, err := strconv.ParseInt(addr, 0, 64)
	if err != nil {
		return err
	}
	f, err := os.Open("/dev/mem")
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), off, 4096, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map /dev/mem at %#x: %w", off, err)
	}
	_, err = os.Stdout.Write(b)
	return err
}

func peekInside(t *testing.T, g *Guest, addr uint64) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return g.MustRun(t, "env", fmt.Sprintf("%s=%#x", peekVar, addr), self)
}

// The short lab: what a guest on each kernel offers.
func TestGuest(t *testing.T) {
	EachKernel(t, func(t *testing.T, k Kernel) {
		shared := t.TempDir()
		disk := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(disk, bytes.Repeat([]byte("disk"), mib/4), 0o644); err != nil {
			t.Fatal(err)
		}
		g := Start(t, Machine{Kernel: k, Shared: shared, Disk: disk, Append: "lab.word=in-command-line", Modules: []string{"dm-snapshot"}})

		if got := strings.TrimSpace(g.MustRun(t, "uname", "-r")); got != k.Release {
			t.Errorf("uname -r is %q, want %q", got, k.Release)
		}
		t.Run("userland", func(t *testing.T) { guestUserland(t, g) })
		t.Run("commands", func(t *testing.T) { guestCommands(t, g) })
		t.Run("modules", func(t *testing.T) { guestModules(t, g) })
		t.Run("shared directory", func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(shared, "to"), []byte("from outside"), 0o644); err != nil {
				t.Fatal(err)
			}
			g.MustRun(t, "cp", filepath.Join(shared, "to"), filepath.Join(shared, "back"))
			if b, err := os.ReadFile(filepath.Join(shared, "back")); err != nil || string(b) != "from outside" {
				t.Errorf("read back %q, %v", b, err)
			}
		})
		t.Run("disk", func(t *testing.T) {
			if got := g.MustRun(t, "head", "-c8", "/dev/vda"); got != "diskdisk" {
				t.Errorf("disk begins with %q, want diskdisk", got)
			}
		})
		t.Run("kernel log", func(t *testing.T) {
			g.MustRun(t, "sh", "-c", "echo word-for-the-log >/dev/kmsg")
			for _, word := range []string{"lab.word=in-command-line", "word-for-the-log"} {
				if !strings.Contains(g.Console(), word) {
					t.Errorf("no %q in the kernel's log", word)
				}
			}
		})
	})
}

// The machine's files are there and safe; the rest is the guest's own.
func guestUserland(t *testing.T, g *Guest) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	this := filepath.Join(wd, "lab_test.go")
	want, err := os.ReadFile(this)
	if err != nil {
		t.Fatal(err)
	}
	if got := g.MustRun(t, "cat", this); got != string(want) {
		t.Errorf("%s has %d bytes inside, %d outside", this, len(got), len(want))
	}
	g.MustRun(t, "sh", "-c", "echo >/etc/lab-was-here; rm "+this)
	if _, err := os.Stat("/etc/lab-was-here"); !os.IsNotExist(err) {
		t.Errorf("a file made in the guest is outside: %v", err)
	}
	if _, err := os.Stat(this); err != nil {
		t.Errorf("a file removed in the guest is gone outside: %v", err)
	}
	g.MustRun(t, "sh", "-c", `for dir in /proc /sys /sys/fs/cgroup /sys/kernel/debug /dev /dev/pts /dev/shm /run; do
		mountpoint "$dir" || exit 1
	done`)
	if got := strings.TrimSpace(g.MustRun(t, "nproc")); got != "2" {
		t.Errorf("%s CPUs, want 2", got)
	}
	if got := strings.TrimSpace(g.MustRun(t, "cat", "/sys/class/net/lo/carrier")); got != "1" {
		t.Errorf("carrier of lo is %s, want 1", got)
	}
}

func guestCommands(t *testing.T, g *Guest) {
	r, err := g.Run(t.Context(), Command{
		Args: []string{"sh", "-c", `echo "$WORD in $PWD"; echo trouble >&2; exit 42`},
		Env:  []string{"WORD=here"}, Dir: "/usr",
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%s%s%d", r.Stdout, r.Stderr, r.Code); got != "here in /usr\ntrouble\n42" {
		t.Errorf("command gave %q", got)
	}
	r, err = g.Run(t.Context(), Command{Args: []string{"sh", "-c", "kill -TERM $$"}})
	if err != nil || r.Code != 128+15 {
		t.Errorf("a command killed by SIGTERM: %+v, %v, want code 143", r, err)
	}
	if r, err := g.Run(t.Context(), Command{Args: []string{"/no/such/program"}}); err == nil {
		t.Errorf("a program that does not exist: %+v, want an error", r)
	}
	// More than any buffer on the way holds.
	const size = 20 * mib
	if got := g.MustRun(t, "head", "-c", fmt.Sprint(size), "/dev/zero"); len(got) != size {
		t.Errorf("%d bytes of output, want %d", len(got), size)
	}

	// Two at once: each waits for the other.
	g.MustRun(t, "mkfifo", "/run/a", "/run/b")
	var wg sync.WaitGroup
	for _, script := range []string{"echo x >/run/a; read y </run/b", "read x </run/a; echo y >/run/b"} {
		wg.Go(func() {
			if r, err := g.Run(t.Context(), Command{Args: []string{"sh", "-c", script}}); err != nil || r.Code != 0 {
				t.Errorf("%s: %+v, %v", script, r, err)
			}
		})
	}
	wg.Wait()

	// A context's end ends the command with its children.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := g.Run(ctx, Command{Args: []string{"sh", "-c", "sleep 1234 & sleep 1234; true"}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command that takes too long: %v, want %v", err, context.DeadlineExceeded)
	}
	g.MustRun(t, "sh", "-c", "for i in $(seq 100); do pgrep -fx 'sleep 1234' >/dev/null || exit 0; sleep 0.1; done; exit 1")
}

// Modules asked for are loaded, with what they need, and modprobe finds others.
func guestModules(t *testing.T, g *Guest) {
	loaded := g.MustRun(t, "cat", "/proc/modules")
	for _, name := range []string{"erofs", "dm_snapshot", "dm_bufio"} {
		if !strings.Contains(loaded, name+" ") {
			t.Errorf("module %s is not loaded", name)
		}
	}
	if strings.Contains(loaded, "nd_pmem") {
		t.Error("nd_pmem is loaded, nobody asked for it")
	}
	g.MustRun(t, "modprobe", "dm-zero")
	g.MustRun(t, "grep", "-q", "^dm_zero ", "/proc/modules")
}

// Kernels of different versions and this process read each other's bytes, and
// one of them may die.
func TestSharedPool(t *testing.T) {
	testutil.VM(t)
	kernels, err := Kernels(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const size = 64 * mib
	pool := TempPool(t, size)
	outside := mapFile(t, pool)
	oldest := Start(t, Machine{Kernel: kernels[0], Pool: pool, NdPmem: true})
	newest := Start(t, Machine{Kernel: kernels[len(kernels)-1], Pool: pool})
	if oldest.PoolAddress() == 0 || newest.PoolAddress() == 0 {
		t.Fatalf("pool at %#x and %#x", oldest.PoolAddress(), newest.PoolAddress())
	}
	// The one has a block device, the other only a physical range.
	read := map[*Guest]func(off int) string{
		oldest: func(off int) string {
			return oldest.MustRun(t, "dd", "if=/dev/pmem0", "iflag=direct", "status=none", "bs=4096", "count=1", fmt.Sprint("skip=", off/4096))
		},
		newest: func(off int) string {
			return peekInside(t, newest, newest.PoolAddress()+uint64(off))
		},
	}
	for g, at := range read {
		for _, off := range []int{0, 4096, size - 4096} {
			want := fmt.Sprintf("%s at %d", g.Kernel.Name, off)
			copy(outside[off:], want)
			if got := at(off); !strings.HasPrefix(got, want) {
				t.Errorf("kernel %s reads %.20q at %d, want %q", g.Kernel.Name, got, off, want)
			}
		}
	}
	oldest.MustRun(t, "sh", "-c", "{ printf 'from one kernel'; head -c 4081 /dev/zero; } | dd of=/dev/pmem0 oflag=direct bs=4096 seek=7 status=none iflag=fullblock")
	if got := read[newest](7 * 4096); !strings.HasPrefix(got, "from one kernel") {
		t.Errorf("kernel %s reads %.20q, the other one wrote %q", newest.Kernel.Name, got, "from one kernel")
	}
	if !bytes.HasPrefix(outside[7*4096:], []byte("from one kernel")) {
		t.Errorf("outside %.20q, a guest wrote %q", outside[7*4096:], "from one kernel")
	}

	oldest.Kill()
	if _, err := oldest.Run(t.Context(), Command{Args: []string{"true"}}); err == nil {
		t.Error("a command ran in a guest that was killed")
	}
	if got := read[newest](7 * 4096); !strings.HasPrefix(got, "from one kernel") {
		t.Errorf("kernel %s reads %.20q after the other one's death", newest.Kernel.Name, got)
	}
}

// A defect of the kernel ends the guest and is told with its log.
func TestOops(t *testing.T) {
	if testing.Short() {
		t.Skip("one guest for each kernel more")
	}
	EachKernel(t, func(t *testing.T, k Kernel) {
		g, err := Boot(t.Context(), Machine{Kernel: k})
		if err != nil {
			t.Fatal(err)
		}
		defer g.Kill()
		if lines := g.Trouble(); len(lines) > 0 {
			t.Errorf("trouble in a fresh guest: %q", lines)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		r, err := g.Run(ctx, Command{Args: []string{"sh", "-c", "echo c >/proc/sysrq-trigger; sleep 60"}})
		if err == nil || ctx.Err() != nil {
			t.Fatalf("a command during a panic: %+v, %v", r, err)
		}
		if !strings.Contains(err.Error(), "Kernel panic") || !strings.Contains(strings.Join(g.Trouble(), "\n"), "Kernel panic") {
			t.Errorf("error %v, trouble %q; want the panic in both", err, g.Trouble())
		}
		if !strings.Contains(g.Console(), "sysrq_handle_crash") {
			t.Error("the console ends before the stack of the panic")
		}
	})
}

// QEMU ends with the process that booted it, even if that one is killed.
func TestNothingLeft(t *testing.T) {
	testutil.VM(t)
	if testing.Short() {
		t.Skip("one guest more")
	}
	kernels, err := Kernels(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lab := filepath.Join(t.TempDir(), "lab")
	if out, err := exec.Command("go", "build", "-o", lab, "../cmd/lab").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, sig := range []unix.Signal{unix.SIGINT, unix.SIGKILL} {
		tmp := t.TempDir()
		cmd := exec.Command(lab, "exec", "-kernel", kernels[0].Name, "--", "sh", "-c", "echo booted; sleep 1234")
		cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, len("booted\n"))
		if _, err := out.Read(line); err != nil || string(line) != "booted\n" {
			t.Fatalf("lab says %q, %v", line, err)
		}
		qemu := children(t, cmd.Process.Pid)
		if len(qemu) != 1 {
			t.Fatalf("lab has the children %v, want QEMU alone", qemu)
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Errorf("lab ends well after %v", sig)
		}
		for i := 0; ; i++ {
			if _, err := os.Stat("/proc/" + qemu[0]); os.IsNotExist(err) {
				break
			}
			if i == 100 {
				t.Errorf("QEMU lives 10 s after lab's end by %v", sig)
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
			t.Errorf("temporary files after %v: %v, %v", sig, left, err)
		}
	}
}

// children returns the ids of a process's children.
func children(t *testing.T, pid int) []string {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, path := range tasks {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, strings.Fields(string(b))...)
	}
	return ids
}

func mapFile(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	return b
}
