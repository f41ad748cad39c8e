package images

import (
	"archive/tar"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Hand-written images come out the same wherever and whenever they are made,
// and every layer reads back as a tar.
func TestNastyIsReproducible(t *testing.T) {
	prog := filepath.Join(t.TempDir(), "prog")
	if err := os.WriteFile(prog, []byte("not run here"), 0o755); err != nil {
		t.Fatal(err)
	}
	var digests [2][]string
	for i := range digests {
		c := Cache{Dir: t.TempDir(), TestProg: prog}
		l, err := c.Get(context.Background(), "nasty")
		if err != nil {
			t.Fatal(err)
		}
		layers, err := l.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for _, layer := range layers {
			digests[i] = append(digests[i], layer.Digest.String())
			if n := countEntries(t, l, layer); n == 0 && len(digests[i]) != 3 { // the third is empty on purpose
				t.Errorf("layer %d has no entries", len(digests[i])-1)
			}
		}
	}
	if a, b := strings.Join(digests[0], " "), strings.Join(digests[1], " "); a != b {
		t.Errorf("two images differ:\n%s\n%s", a, b)
	}
}

func countEntries(t *testing.T, l *Layout, layer Layer) int {
	t.Helper()
	r, err := l.Open(layer)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	tr := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == "odd/sparse" {
			b, err := io.ReadAll(tr)
			if err != nil || len(b) != 10<<20 || !strings.HasPrefix(string(b), "head\x00") || !strings.HasSuffix(string(b), "\x00tail") ||
				string(b[1<<20:1<<20+5000]) != noise(1, 5000) {
				t.Errorf("the sparse file reads back wrong: %v, %d bytes", err, len(b))
			}
		}
	}
}

func TestBreak(t *testing.T) {
	prog := filepath.Join(t.TempDir(), "prog")
	if err := os.WriteFile(prog, []byte("not run here"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := Cache{Dir: t.TempDir(), TestProg: prog}
	good, err := c.Get(context.Background(), "rootopaque")
	if err != nil {
		t.Fatal(err)
	}
	before, err := good.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, how := range Damages {
		l, err := Break(good, filepath.Join(c.Dir, string(how)), how)
		if err != nil {
			t.Fatal(err)
		}
		after, err := l.Layers()
		if err != nil {
			t.Fatal(err)
		}
		if after[0].Digest != before[0].Digest {
			t.Errorf("%s: another first layer", how)
		}
		last := len(before) - 1
		if same := after[last].Digest == before[last].Digest && after[last].DiffID == before[last].DiffID; same != (how == WrongDigest) {
			t.Errorf("%s: last layer %+v, was %+v", how, after[last], before[last])
		}
		if n := countEntries(t, good, before[last]); n == 0 {
			t.Errorf("%s: damaged the original", how)
		}
	}
}

// The benchmark's images are there for those who ask, and for nobody else: they
// take minutes.
func TestBenchImagesAreApart(t *testing.T) {
	for _, name := range Names() {
		if strings.HasPrefix(name, "bench-") {
			t.Errorf("%s is made with all the others", name)
		}
	}
	if len(Related) != 20 {
		t.Errorf("%d related images, want 20", len(Related))
	}
	seen := map[string]bool{}
	for _, r := range benchRecipes {
		if base, ok := find(r.base); !ok || seen[r.name] || base.name != "debian" && !seen[base.name] {
			t.Errorf("%s: base %q is not made before it, or the name is taken", r.name, r.base)
		}
		seen[r.name] = true
	}
}
