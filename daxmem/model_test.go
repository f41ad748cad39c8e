package daxmem

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// model is what a pool must hold, in the simplest form.
type model struct {
	layers map[string][]int    // name → files by number
	images map[string][]string // name → layers
}

func (m *model) used(layer string) bool {
	for _, ls := range m.images {
		if slices.Contains(ls, layer) {
			return true
		}
	}
	return false
}

// extents are the distinct files of all layers.
func (m *model) extents() int {
	seen := map[int]bool{}
	for _, fs := range m.layers {
		for _, f := range fs {
			seen[f] = true
		}
	}
	return len(seen)
}

func file(n int) []byte {
	size := 1 + n*n*37%30000
	if n%17 == 0 {
		size = mib + n
	}
	return randomBytes(uint64(n), size)
}

// TestAgainstModel does random things to a pool, in turn on a file on disk and
// in shared memory, checks it, reopens it and compares with the model.
func TestAgainstModel(t *testing.T) {
	dirs := []string{t.TempDir()}
	if shm, err := os.MkdirTemp("/dev/shm", "daxmem-test-"); err == nil {
		t.Cleanup(func() { os.RemoveAll(shm) })
		dirs = append(dirs, shm)
	} else {
		t.Logf("no shared memory: %v", err)
	}
	fulls := 0
	for seed := range uint64(4) {
		for i, dir := range dirs {
			t.Run(fmt.Sprintf("seed %d dir %d", seed, i), func(t *testing.T) {
				path := filepath.Join(dir, fmt.Sprint("pool", seed))
				fulls += playModel(t, path, rand.New(rand.NewPCG(seed, 1)))
			})
		}
	}
	if fulls == 0 {
		t.Error("the pool was never full: the test does not test that")
	}
}

func playModel(t *testing.T, path string, rnd *rand.Rand) (fulls int) {
	opts := Options{MaxSize: 5 * mib}
	if rnd.IntN(2) == 0 {
		opts.SyncDelay = 1
	}
	p, err := OpenOrCreate(bg, path, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { mustClose(t, p) }()
	m := &model{layers: map[string][]int{}, images: map[string][]string{}}
	for step := range 400 {
		name := fmt.Sprint("n", rnd.IntN(12))
		switch rnd.IntN(10) {
		case 0, 1, 2:
			var files []int
			var data [][]byte
			for range rnd.IntN(12) {
				f := rnd.IntN(60)
				files = append(files, f)
				data = append(data, file(f))
			}
			_, err := tryLayer(p, key(name), data...)
			if errors.Is(err, ErrFull) {
				fulls++
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, there := m.layers[name]; !there {
				m.layers[name] = files
			}
		case 3, 4:
			var names []string
			var keys [][32]byte
			for _, l := range slices.Sorted(maps.Keys(m.layers)) {
				if rnd.IntN(3) == 0 {
					names, keys = append(names, l), append(keys, key(l))
				}
			}
			if len(names) == 0 {
				break
			}
			_, err := tryImage(p, key(name), keys...)
			if errors.Is(err, ErrFull) {
				fulls++
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, there := m.images[name]; !there {
				m.images[name] = names
			}
		case 5:
			err := p.Remove(bg, KindImage, key(name))
			if _, there := m.images[name]; there != (err == nil) {
				t.Fatalf("step %d: remove image: %v, want there %v", step, err, there)
			}
			delete(m.images, name)
		case 6:
			err := p.Remove(bg, KindLayer, key(name))
			if _, there := m.layers[name]; (there && !m.used(name)) != (err == nil) {
				t.Fatalf("step %d: remove layer: %v, want there %v used %v", step, err, there, m.used(name))
			}
			if err == nil {
				delete(m.layers, name)
			}
		case 7: // an import that fails half way
			imp, err := p.NewImport(bg)
			if err != nil {
				t.Fatal(err)
			}
			_, err = putAll(imp, [][]byte{file(rnd.IntN(60)), randomBytes(rnd.Uint64(), 2*mib)})
			if err != nil && !errors.Is(err, ErrFull) {
				t.Fatal(err)
			}
			imp.Abort()
		case 8:
			live := map[[32]byte]bool{}
			for _, n := range slices.Sorted(maps.Keys(m.layers)) {
				live[key(n)] = rnd.IntN(4) > 0
			}
			if _, err := p.Collect(bg, func(k Kind, id [32]byte) bool { return k == KindImage || live[id] }, false); err != nil {
				t.Fatal(err)
			}
			for n := range m.layers {
				if !live[key(n)] && !m.used(n) {
					delete(m.layers, n)
				}
			}
		case 9:
			if rnd.IntN(4) == 0 {
				mustClose(t, p)
				if p, err = OpenOrCreate(bg, path, opts); err != nil {
					t.Fatal(err)
				}
			} else if err := p.Sync(bg); err != nil {
				t.Fatal(err)
			}
		}
		if step%20 == 0 {
			compareModel(t, p, m)
		}
	}
	compareModel(t, p, m)
	return fulls
}

func compareModel(t *testing.T, p *Pool, m *model) {
	t.Helper()
	if err := p.Sync(bg); err != nil {
		t.Fatal(err)
	}
	mustCheck(t, p)
	s := mustStat(t, p)
	if s.LayerCount != len(m.layers) || s.ImageCount != len(m.images) || s.ExtentCount != m.extents() || s.Inflight+s.Retired+s.Lost != 0 {
		t.Fatalf("%d layers, %d images, %d extents; got %+v", len(m.layers), len(m.images), m.extents(), s)
	}
	for name, files := range m.layers {
		if _, err := p.Layer(key(name)); err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			want := file(f)
			e := p.byDigest[hashBytes(want)]
			if e == nil || !bytes.Equal(content(t, p, Extent{Offset: e.off, Size: e.size}), want) {
				t.Fatalf("layer %s: file %d is not there", name, f)
			}
		}
	}
}
