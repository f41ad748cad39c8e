package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

// TestMethods tries every method on disk and on tmpfs, and that the kernel's
// superblock is known to be there as long as something uses it.
func TestMethods(t *testing.T) {
	testutil.Root(t)
	tmpfs := t.TempDir()
	if err := unix.Mount("tmpfs", tmpfs, "tmpfs", 0, "size=16m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(tmpfs, unix.MNT_DETACH)
	worked := 0
	for _, dir := range []string{t.TempDir(), tmpfs} {
		trial, err := trialBeside(filepath.Join(dir, "image"))(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for i := range methods {
			target := t.TempDir()
			e := &Erofs{method: &methods[i]}
			m, err := e.Mount(t.Context(), trial.Source, target)
			if err != nil {
				t.Logf("%s: %v", methods[i].name, err)
				continue
			}
			worked++
			t.Logf("%s: %+v", dir, *m)
			if !Mounted(target) {
				t.Errorf("%s: not seen as mounted", m.Method)
			}
			if err := verifyDax(target); !errors.Is(err, unix.EOPNOTSUPP) {
				t.Errorf("%s: a mount without DAX is verified: %v", m.Method, err)
			}
			f, err := os.Open(filepath.Join(target, "probe"))
			if err != nil {
				t.Fatal(err)
			}
			if err := Unmount(m); err != nil {
				t.Fatal(err)
			}
			if m.Gone() {
				t.Errorf("%s: superblock is gone while a file is open", m.Method)
			}
			f.Close()
			if !m.Gone() {
				t.Errorf("%s: superblock is there after the last user: %v", m.Method, m.Superblocks)
			}
		}
		trial.Close()
		p := (&Erofs{}).Probe(t.Context(), Pool{Region: File(filepath.Join(dir, "pool"))})
		t.Logf("%+v", p)
		if p.Answer != Yes {
			t.Errorf("probe in %s: %+v", dir, p)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left behind in %s: %v, %v", dir, left, err)
		}
	}
	if worked < 3 {
		t.Errorf("only %d methods worked", worked)
	}
}

// A device that becomes free while an image is mounted is the image's, under a
// name that was there before; and what others mount meanwhile is not.
func TestSuperblockBesideOthers(t *testing.T) {
	testutil.Root(t)
	trial, err := trialBeside(filepath.Join(t.TempDir(), "image"))(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer trial.Close()
	mounted := func(target string) {
		t.Helper()
		if err := mountLoop(trial.Source, target, false); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
	}
	earlier, other, target := t.TempDir(), t.TempDir(), t.TempDir()
	mounted(earlier)
	m, err := (&method{mount: func(src Source, target string) error {
		if err := unix.Unmount(earlier, 0); err != nil {
			return err
		}
		mounted(target)
		mounted(other)
		return nil
	}}).attempt(trial.Source, target)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(target, &st); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%s/loop%d", sysErofs, unix.Minor(st.Dev))
	if len(m.Superblocks) != 1 || m.Superblocks[0] != want {
		t.Errorf("superblocks %v, want %s", m.Superblocks, want)
	}
}

// fake is a region that is not there.
type fake struct {
	kind    string
	address uint64
	size    int64
}

func (f fake) ReadAt([]byte, int64) (int, error) { return 0, io.EOF }
func (f fake) Size() int64                       { return f.size }
func (f fake) Kind() string                      { return f.kind }
func (f fake) Path() string                      { return "the " + f.kind + " region" }
func (f fake) Address() uint64                   { return f.address }

// Which engine takes which region does not depend on the machine. A refusal
// says what the region is, and what to do, and Mount refuses the same.
func TestSuits(t *testing.T) {
	for _, c := range []struct {
		engine Engine
		pool   Pool
		reason string // "" for what goes on to ask the kernel
	}{
		{&Daxfs{}, Pool{Region: fake{"file", 0, 1 << 30}}, "has no physical address"},
		{&Daxfs{}, Pool{Region: fake{"phys", 1 << 40, 1 << 30}, Shared: true}, ""},
		{&Daxfs{}, Pool{Region: fake{"pmem", 1 << 40, 1 << 30}}, ""},
		{&Daxfs{}, Pool{Region: fake{"pmem", 1<<40 + 4096, 1 << 30}}, "multiples of 2 MiB"},
		{&Daxfs{}, Pool{Region: fake{"pmem", 1 << 40, 1<<30 - 4096}}, "multiples of 2 MiB"},
		{&Daxfs{}, Pool{Region: fake{"pmem", 0, 1 << 30}}, "has no physical address"},
		{&ErofsDax{}, Pool{Region: fake{"file", 0, 1 << 30}}, "not a pmem device"},
		{&ErofsDax{}, Pool{Region: fake{"phys", 1 << 40, 1 << 30}}, "not a pmem device"},
		{&ErofsDax{}, Pool{Region: fake{"pmem", 1 << 40, 1 << 30}}, ""},
		{&Erofs{}, Pool{Region: fake{"phys", 1 << 40, 1 << 30}}, "neither a file nor a block device"},
		{&Erofs{}, Pool{Region: fake{"pmem", 1 << 40, 1 << 30}, Shared: true}, ""},
	} {
		p := c.engine.Probe(t.Context(), c.pool)
		src := Source{Region: c.pool.Region, Offset: 4096, Size: 4096}
		_, err := c.engine.Mount(t.Context(), src, t.TempDir())
		if c.reason == "" {
			if p.Answer == Yes || p.Reason == "" {
				t.Errorf("%s on %+v: %+v", c.engine.Name(), c.pool, p)
			}
			if err == nil || errors.Is(err, ErrUnsuitable) {
				t.Errorf("%s on %+v: %v", c.engine.Name(), c.pool, err)
			}
			continue
		}
		if p.Answer != No || !strings.Contains(p.Reason, c.reason) || p.Remedy == "" {
			t.Errorf("%s on %+v: %+v, want %q", c.engine.Name(), c.pool, p, c.reason)
		}
		if !errors.Is(err, ErrUnsuitable) || !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), c.reason) {
			t.Errorf("%s on %+v: %v, want %q", c.engine.Name(), c.pool, err, c.reason)
		}
	}
	p := (&ErofsDax{}).Probe(t.Context(), Pool{Region: fake{"pmem", 1 << 40, 1 << 30}, Shared: true})
	if p.Answer != No || !strings.Contains(p.Reason, "one inode for each page") || !strings.Contains(p.Remedy, "share_extents") {
		t.Errorf("erofs-dax on a pool with shared extents: %+v", p)
	}
}

// Select takes the first engine that works, in the order asked for, and says
// of the others why not.
func TestSelect(t *testing.T) {
	testutil.Root(t)
	if got, want := Names(), []string{"daxfs", "erofs-dax", "erofs"}; !slices.Equal(got, want) {
		t.Errorf("names %q, want %q", got, want)
	}
	p := Pool{Region: File(filepath.Join(t.TempDir(), "pool"))}
	e, probes, err := Select(t.Context(), nil, p)
	if err != nil || e.Name() != "erofs" || len(probes) != 3 || probes[0].Answer != No || probes[1].Answer != No || probes[2].Answer != Yes {
		t.Errorf("%v %+v %v", e, probes, err)
	}
	if e, probes, err = Select(t.Context(), []string{"erofs", "daxfs"}, p); err != nil || e.Name() != "erofs" || len(probes) != 1 {
		t.Errorf("%v %+v %v", e, probes, err)
	}
	_, probes, err = Select(t.Context(), []string{"daxfs", "erofs-dax"}, p)
	if !errors.Is(err, ErrNoEngine) || len(probes) != 2 || !strings.Contains(err.Error(), "daxfs: ") || !strings.Contains(err.Error(), "erofs-dax: ") {
		t.Errorf("%+v %v", probes, err)
	}
	if _, _, err = Select(t.Context(), []string{"warp"}, p); !errdefs.IsInvalidArgument(err) {
		t.Errorf("%v", err)
	}
}

// MountBest passes over engines that cannot mount the image at hand.
func TestMountBest(t *testing.T) {
	testutil.Root(t)
	trial, err := trialBeside(filepath.Join(t.TempDir(), "image"))(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer trial.Close()
	target := t.TempDir()
	m, err := MountBest(t.Context(), nil, trial.Source, target)
	if err != nil {
		t.Fatal(err)
	}
	if m.Engine != "erofs" || m.Target != target || !Mounted(target) {
		t.Errorf("%+v", m)
	}
	if err := Unmount(m); err != nil || !m.Gone() {
		t.Errorf("%v, gone %v", err, m.Gone())
	}
	if err := Unmount(m); err != nil {
		t.Errorf("unmount of what is not mounted: %v", err)
	}
	if _, err := MountBest(t.Context(), []string{"daxfs"}, trial.Source, target); !errors.Is(err, ErrNoEngine) || !errors.Is(err, ErrUnsuitable) {
		t.Errorf("%v", err)
	}
}

// A trial that nothing can be lent for is no answer.
func TestTrialFails(t *testing.T) {
	testutil.Root(t)
	full := errors.New("the pool is full")
	r := fake{"pmem", 1 << 40, 1 << 30}
	lend := Lend(r, func(context.Context, []byte) (int64, func(), error) { return 0, nil, full })
	if p := (&Erofs{}).Probe(t.Context(), Pool{Region: r, Trial: lend}); p.Answer != Unknown || !strings.Contains(p.Reason, full.Error()) {
		t.Errorf("%+v", p)
	}
}

// A daemon that is killed during a trial leaves nothing: its mount is nowhere
// but in the thread that tries it.
func TestTrialIsNotSeen(t *testing.T) {
	testutil.Root(t)
	dir := t.TempDir()
	trial, err := trialBeside(filepath.Join(dir, "image"))(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer trial.Close()
	_, err = trial.try(func(src Source, target string) (*Mount, error) {
		if err := mountLoop(src, target, false); err != nil {
			return nil, err
		}
		here, err := os.ReadFile("/proc/thread-self/mountinfo")
		if err != nil {
			return nil, err
		}
		outside, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", os.Getpid()))
		if err != nil {
			return nil, err
		}
		trial := " " + target + " ro,"
		if !strings.Contains(string(here), trial) || strings.Contains(string(outside), trial) {
			t.Errorf("%s is mounted for all to see, or not at all", target)
		}
		if left, err := os.ReadDir(fmt.Sprintf("/proc/%d/root%s", os.Getpid(), dir)); err != nil || len(left) > 0 {
			t.Errorf("in the pool's directory meanwhile: %v, %v", left, err)
		}
		return &Mount{Target: target}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A mount that a killed daemon has not written down is found out at its end.
func TestUnmountUnnamed(t *testing.T) {
	testutil.Root(t)
	trial, err := trialBeside(filepath.Join(t.TempDir(), "image"))(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer trial.Close()
	target := t.TempDir()
	if err := mountLoop(trial.Source, target, false); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(target, trialFile))
	if err != nil {
		t.Fatal(err)
	}
	m := &Mount{Target: target}
	if err := Unmount(m); err != nil {
		t.Fatal(err)
	}
	if m.Gone() || len(m.Superblocks) != 1 {
		t.Errorf("gone %v while a file is open, superblocks %v", m.Gone(), m.Superblocks)
	}
	f.Close()
	if !m.Gone() {
		t.Errorf("superblock is there after the last user: %v", m.Superblocks)
	}
}

// Gone follows the directories of the superblocks that may be the mount's.
func TestGone(t *testing.T) {
	sb := filepath.Join(t.TempDir(), "0:45.1234")
	if err := os.Mkdir(sb, 0o755); err != nil {
		t.Fatal(err)
	}
	m := Mount{Superblocks: []string{sb + "5", sb}}
	if m.Gone() {
		t.Error("gone while its superblock is there")
	}
	if err := os.Remove(sb); err != nil {
		t.Fatal(err)
	}
	if !m.Gone() {
		t.Error("not gone")
	}
	if (&Mount{}).Gone() {
		t.Error("a mount of unknown superblock is gone")
	}
	// Another one that has its name by now.
	next := filepath.Join(t.TempDir(), "next")
	for _, dir := range []string{sb, next} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.on([]string{sb})
	if m.Gone() {
		t.Error("gone while the directory that was seen is there")
	}
	if err := unix.Rename(next, sb); err != nil {
		t.Fatal(err)
	}
	if !m.Gone() {
		t.Error("another superblock of the same name is taken for it")
	}
	// As a daemon that knew EROFS only wrote it.
	old := Mount{Superblocks: []string{"features"}}
	if _, err := os.Stat(sysErofs + "/features"); err == nil && old.Gone() {
		t.Error("a name below /sys/fs/erofs is not found")
	}
}

// What the kernel says about a mount that fails is in the error.
func TestMountMessages(t *testing.T) {
	testutil.Root(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	err := mountNew("erofs", []option{{key: "source", value: dir + "/f"}, {key: "warp"}}, dir)
	if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "Unknown parameter 'warp'") {
		t.Errorf("%v", err)
	}
}
