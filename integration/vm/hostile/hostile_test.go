package hostile

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/vm"
	"github.com/daxfs/containerd-daxfs/integration/vm/hostile/inside"
	"github.com/daxfs/containerd-daxfs/integration/vm/hostile/mutate"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
)

var imageCount = flag.Int("images", 10_000, "mutated images of TestMutated, unless -short")

// In a guest, this binary is package inside.
func TestMain(m *testing.M) {
	if os.Getenv(inside.Env) != "" {
		os.Exit(inside.Main())
	}
	os.Exit(m.Run())
}

// seed is that of all mutations: image n is the same in every run.
const seed = 3

// What the guests' kernels look for besides what they always do: writes behind
// or before an object of a cache, and to one that was freed.
const checks = "slub_debug=FZP,daxfs_inode,kmalloc-*"

func sound(t *testing.T) ([]mutate.Image, *mutate.Mutator) {
	t.Helper()
	images, err := mutate.Images()
	if err != nil {
		t.Fatal(err)
	}
	m, err := mutate.New(images)
	if err != nil {
		t.Fatal(err)
	}
	return images, m
}

// pool is the memory that guests mount images from, mapped here.
type pool struct {
	file string
	mem  []byte
	end  int64 // of what was put
}

func newPool(t *testing.T, size int64) *pool {
	t.Helper()
	size = disk.AlignUp(size, vm.PoolAlign)
	p := &pool{file: vm.TempPool(t, size)}
	f, err := os.OpenFile(p.file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if p.mem, err = unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(p.mem) })
	return p
}

// put copies an image to the pool and returns its offset. What it says about
// its size may go on into those that follow.
func (p *pool) put(image []byte) int64 {
	at := p.end
	copy(p.mem[at:], image)
	p.end = disk.AlignUp(at+int64(len(image)), disk.BlockSize)
	return at
}

// room is how many bytes the next image may say it uses.
func (p *pool) room() uint64 { return uint64(int64(len(p.mem)) - p.end) }

// start boots a guest for tasks.
func start(t *testing.T, k vm.Kernel, p *pool, tasks ...inside.Task) *guest {
	t.Helper()
	// The guest sees what is there when it boots.
	g := &guest{}
	dir := t.TempDir()
	for i, task := range tasks {
		g.tasks = append(g.tasks, filepath.Join(dir, fmt.Sprintf("task%d", i)))
		if err := task.Write(g.tasks[i]); err != nil {
			t.Fatal(err)
		}
	}
	g.Guest = vm.Start(t, vm.Machine{Kernel: k, Pool: p.file, Daxfs: true, Append: checks})
	return g
}

type guest struct {
	*vm.Guest
	tasks []string // files
}

// run runs package inside in the guest with one of the tasks, and decodes what
// it prints last.
func (g *guest) run(t *testing.T, ctx context.Context, task int, mode string, out any, onLine func(line string)) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w := &lines{each: onLine}
	r, err := g.Run(ctx, vm.Command{Args: []string{self, mode}, Env: []string{inside.Env + "=" + g.tasks[task]}, Stdout: w})
	if err != nil {
		t.Fatalf("%s: %v\n%s", mode, err, w.last)
	}
	if r.Code != 0 {
		t.Fatalf("%s: exit status %d\n%s", mode, r.Code, r.Stderr)
	}
	if err := json.Unmarshal(w.last, out); err != nil {
		t.Fatalf("%s: %v\n%s", mode, err, w.last)
	}
}

// lines splits output.
type lines struct {
	each func(line string)
	rest []byte
	last []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		l.last, l.rest = bytes.Clone(line), rest
		if l.each != nil {
			l.each(string(line))
		}
	}
}

// report shows and judges what a guest found.
func report(t *testing.T, g *guest, r *inside.Report) {
	t.Helper()
	t.Logf("kernel %s: %v", g.Kernel.Name, r)
	for _, b := range r.Broken {
		t.Error(b)
	}
	checkLog(t, g.Console())
}

// logged matches a line of the module about a mount, with its time.
var logged = regexp.MustCompile(`^(?:<\d+>)?\[ *(\d+\.\d+)\](?:\[ *[TC]\d+\])? daxfs: ([\w-]+): `)

// checkLog: about one mount, one line in five seconds.
func checkLog(t *testing.T, console string) {
	t.Helper()
	const interval = 4.9 // rounded
	last := map[string]float64{}
	count := 0
	for line := range strings.Lines(console) {
		m := logged.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		count++
		at, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		if before, ok := last[m[2]]; ok && at-before < interval {
			t.Errorf("kernel log: %.1f s after the one before: %s", at-before, line)
		}
		last[m[2]] = at
	}
	t.Logf("kernel log: %d lines of %d mounts", count, len(last))
	if count == 0 {
		t.Error("kernel log: no line about a damaged image")
	}
}

// TestMutated mounts and visits mutated images on each kernel.
func TestMutated(t *testing.T) {
	testutil.VM(t)
	count := *imageCount
	if testing.Short() {
		count = 300
	}
	images, m := sound(t)
	mutated := make([]mutate.Mutated, count)
	const costly = 1 << 20 // bytes of each of those
	size := int64(4 * costly)
	for n := range mutated {
		mutated[n] = m.Mutate(seed, uint64(n))
		size += int64(len(mutated[n].Bytes))
	}
	// Also for few images there is much that they can claim.
	p := newPool(t, max(size, 256<<20))
	task := inside.Task{Anchor: p.put(images[0].Bytes), Via: inside.ViaPhys}
	for n, i := range mutated {
		if i.From == "pool" {
			mutate.Stretch(i.Bytes, p.room())
			mutate.Scatter(rand.New(rand.NewPCG(seed, uint64(n))), i.Bytes, p.room())
		}
		task.Images = append(task.Images, p.put(i.Bytes))
	}
	for _, i := range append(mutate.Costly(costly), mutate.OverlappingFiles(costly, p.room()-2*costly)) {
		task.Images = append(task.Images, p.put(i.Bytes))
	}
	t.Logf("%d images in %d MiB", len(task.Images), len(p.mem)>>20)

	// The other ways to the memory differ in faults and pages only: a tenth.
	tasks := []inside.Task{task}
	for _, via := range []string{inside.ViaDmabuf, inside.ViaNopages} {
		few := task
		few.Via, few.Images = via, task.Images[len(task.Images)-count/10:]
		tasks = append(tasks, few)
	}

	vm.EachKernel(t, func(t *testing.T, k vm.Kernel) {
		g := start(t, k, p, tasks...)
		for i, task := range tasks {
			t.Logf("via %s", task.Via)
			count := len(task.Images)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute+time.Duration(count)*500*time.Millisecond)
			var r inside.Report
			g.run(t, ctx, i, inside.Images, &r, nil)
			cancel()
			report(t, g, &r)
			if t.Failed() {
				first := len(tasks[0].Images) - count
				describe(t, mutated[min(first, len(mutated)):], r.Broken)
				return
			}
			if r.Mounts["novalidate ok"] < count/10 || r.Mounts["validate EUCLEAN"] < count/10 {
				t.Errorf("of %d images %d mount without and %d are refused by the check: mutations have lost their bite",
					count, r.Mounts["novalidate ok"], r.Mounts["validate EUCLEAN"])
			}
		}
	})
}

// named finds the images that a message is about.
var named = regexp.MustCompile(`\bimage(\d+)\b`)

// describe tells what was done to images that messages name.
func describe(t *testing.T, mutated []mutate.Mutated, messages []string) {
	t.Helper()
	for _, m := range messages {
		for _, match := range named.FindAllStringSubmatch(m, -1) {
			if n, err := strconv.Atoi(match[1]); err == nil && n < len(mutated) {
				t.Logf("image%d is %s with %s", n, mutated[n].From, strings.Join(mutated[n].Changes, "; "))
			}
		}
	}
}

// TestLive changes images while four processes read them through their mounts.
func TestLive(t *testing.T) {
	testutil.VM(t)
	seconds := 60
	if testing.Short() {
		seconds = 5
	}
	images, m := sound(t)
	const apart = 20 << 20 // so that files that go astray are where no page structs are
	p := newPool(t, int64(len(images)+2)*apart)
	task := inside.Task{Anchor: p.put(images[0].Bytes), Via: inside.ViaPhys, Seconds: seconds}
	var targets []target
	for n, i := range images {
		p.end = int64(n+1) * apart
		b := bytes.Clone(i.Bytes)
		if i.Name == "pool" {
			mutate.Stretch(b, p.room())
		}
		at := p.put(b)
		task.Images = append(task.Images, at)
		targets = append(targets, target{n, b, p.mem[at:][:len(b):len(b)], uint64(int64(len(p.mem)) - at)})
	}

	vm.EachKernel(t, func(t *testing.T, k vm.Kernel) {
		g := start(t, k, p, task)
		var before, after map[int64]string
		g.run(t, t.Context(), 0, inside.Trees, &before, nil)

		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute+time.Duration(seconds)*2*time.Second)
		defer cancel()
		d := &disturber{mutator: m, targets: targets, end: make(chan struct{})}
		defer d.stop()
		var r inside.Report
		g.run(t, ctx, 0, inside.Live, &r, func(line string) {
			if line == inside.Ready {
				d.running.Go(d.run)
			}
		})
		if d.stop(); d.changes == 0 {
			t.Fatal("nothing was changed")
		}
		t.Logf("%d changes", d.changes)
		report(t, g, &r)
		if len(r.Calls) == 0 || r.Calls["lstat EUCLEAN"] == 0 {
			t.Error("no reader noticed a change")
		}

		g.run(t, t.Context(), 0, inside.Trees, &after, nil)
		for at, want := range before {
			if after[at] != want {
				t.Errorf("image at %d: tree is %s, was %s", at, after[at], want)
			}
		}
	})
}

// target is an image in the pool that is changed.
type target struct {
	index int // among the mutator's images
	sound []byte
	mem   []byte
	room  uint64 // bytes from mem on in the pool
}

// disturber changes images, and changes them back.
type disturber struct {
	mutator *mutate.Mutator
	targets []target
	changes int

	running sync.WaitGroup
	end     chan struct{}
	once    sync.Once
}

func (d *disturber) run() {
	r := rand.New(rand.NewPCG(seed, 0))
	for {
		select {
		case <-d.end:
			for _, t := range d.targets {
				copy(t.mem, t.sound)
			}
			return
		default:
		}
		t := d.targets[r.IntN(len(d.targets))]
		for range r.IntN(8) {
			d.mutator.Disturb(r, t.index, t.mem)
			d.changes++
		}
		if r.IntN(4) == 0 {
			mutate.Scatter(r, t.mem, t.room)
			d.changes++
		}
		// As often right as wrong, for a moment or longer.
		time.Sleep(time.Duration(r.IntN(2000)) * time.Microsecond)
		if r.IntN(2) == 0 {
			copy(t.mem, t.sound)
		}
	}
}

func (d *disturber) stop() {
	d.once.Do(func() { close(d.end) })
	d.running.Wait()
}
